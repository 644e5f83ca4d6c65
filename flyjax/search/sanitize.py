"""Texts of others made harmless: which characters nobody sees, and copies of a text without them or without a secret."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

MAX_TEXT = 100_000  # characters of one text; whoever validates it refuses far less
MIN_SECRET = 16  # characters: what local gateways take for a key ("x") stands in every text

# Everything below 32 but tab and newline, DEL and C1, line separators.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# Marks that join or vary, fillers and blanks: letters and signs by category, drawn as nothing.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def unseen(c: str) -> bool:
    """Whether a character is drawn as nothing: direction marks, zero widths, fillers."""
    return unicodedata.category(c) == "Cf" or _UNSEEN.match(c) is not None


def seen(text: str) -> str:
    """A text without the characters that are drawn as nothing."""
    return text if text.isascii() else "".join(c for c in text if not unseen(c))


def odd(text: str) -> list[str]:
    """The characters that have no place in a document people read, each once, sorted."""
    refused = ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
    return sorted(c for c in set(text) if c not in "\n\t" and (unicodedata.category(c) in refused or unseen(c)))


def text(value: Any) -> str:
    """A string as any file can hold it; anything else is no text and becomes empty."""
    if not isinstance(value, str):
        return ""
    value = value[: MAX_TEXT + 1].replace("\r\n", "\n").replace("\r", "\n")
    value = _CONTROL.sub(" ", seen(value))
    return value.encode("utf-8", "replace").decode("utf-8")


def line(value: Any) -> str:
    """One line: an answer cannot forge log entries or headings."""
    return " ".join(text(value).split())


def scrub(value: Any, secret: str) -> Any:
    """A copy without the secret, should a service or a file have echoed it."""
    if len(secret) < MIN_SECRET:
        return value
    if isinstance(value, str):
        return value.replace(secret, "[redacted]")
    if isinstance(value, dict):
        return {scrub(k, secret): scrub(v, secret) for k, v in value.items()}
    if isinstance(value, list):
        return [scrub(v, secret) for v in value]
    return value
