"""Sanitise texts from outside: remove invisible characters, replace keys, bound sizes."""

import json
import math
import re
import unicodedata
from typing import Any

from flyjax.utils.secrets import redact

MAX_TEXT = 110_000  # characters of one text; the validation accepts far less
MAX_RAW = 500_000  # characters of a whole answer in the journal
MAX_ITEMS = 1_000  # entries of one list or object
MAX_DEPTH = 12

# Everything below 32 but tab and newline, DEL and C1, line separators.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# Letters and signs by Unicode category that are drawn as nothing: joiners, variation selectors, fillers, blanks.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def is_invisible(character: str) -> bool:
    """Whether a character is drawn as nothing: direction marks, zero widths, fillers."""
    return unicodedata.category(character) == "Cf" or _BLANK.match(character) is not None


def visible(text: str) -> str:
    """A text without its invisible characters."""
    return text if text.isascii() else "".join(c for c in text if not is_invisible(c))


def is_forbidden(character: str) -> bool:
    """Whether a character has no place in a document: control, private, unassigned or invisible ones."""
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp") or is_invisible(character)


def clean_text(text: str) -> str:
    """A text that any file can hold: UTF-8 without control or invisible characters, without keys, cut at `MAX_TEXT`."""
    size = len(text)  # of the whole: a part of a key is a leak as well
    text = redact(text).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub(" ", visible(text)).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text if size <= MAX_TEXT else f"{text[:MAX_TEXT]} ... ({size:,} characters)"


def clean(value: Any, depth: int = 0) -> Any:
    """A copy of parsed JSON with every text cleaned, bounded in size and depth, and without numbers that JSON lacks."""
    if depth > MAX_DEPTH:
        return "(deeper)"
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(k))[:200]: clean(v, depth + 1) for k, v in list(value.items())[:MAX_ITEMS]}
    if isinstance(value, (list, tuple)):
        return [clean(v, depth + 1) for v in value[:MAX_ITEMS]]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() >= 1024:
        return "(huge integer)"
    return value if value is None or isinstance(value, (bool, int, float)) else f"({type(value).__name__})"


def clean_raw(value: Any) -> Any:
    """What the journal keeps of an answer: its clean copy, or the beginning where that is too long."""
    text = json.dumps(value := clean(value))
    return value if len(text) <= MAX_RAW else {"cut": text[:MAX_RAW]}


def one_line(text: str, limit: int | None = None) -> str:
    """A text as one line of at most `limit` characters, so that it cannot forge log entries or headings."""
    return " ".join(text.split())[:limit]
