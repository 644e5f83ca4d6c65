"""API keys taken out of texts: at every place where text enters, and again where files and terminal lines are written.

A key is found in whatever form it survives a gateway or an editor: with invisible characters, blanks or line ends
between its characters, as JSON, URL or HTML escapes, and in base64.
"""

import base64
import functools
import re
from typing import Any

from flyjax.utils import environment

REDACTED = "[redacted]"
MIN_LENGTH = 16  # characters; a shorter key, such as a local gateway's "x", occurs in ordinary text

#: One escaped character that no key contains.
_ESCAPE = (
    r"\\{1,8}(?:u\{?[0-9a-fA-F]{4,6}\}?|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2})"
    r"|%[0189a-fA-F][0-9a-fA-F]|%20|%7[fF]|&#?\w{1,9};"
)
#: What may stand between two characters of a key: everything but printable ASCII.
_GAP = rf"(?:[^!-~]|{_ESCAPE}|\\{{1,8}}[abfnrtv0])*"
#: The same within one line.
_GAP_IN_WORD = rf"(?:[^ -~\t\r\n]|{_ESCAPE})*"


def _pattern(text: str, gap: str = _GAP) -> str:
    """A text, each character as it is or escaped, with gaps."""

    def forms(c: str) -> str:
        n = ord(c)
        return rf"(?:{re.escape(c)}|\\{{1,8}}(?:u00|x)(?i:{n:02x})|%(?i:{n:02x})|&#0*{n};|&#[xX]0*(?i:{n:x});)"

    return gap.join(map(forms, text))


def _in_base64(secret: bytes) -> set[str]:
    """The part of a secret's base64 that does not depend on what stands around it, for its three offsets."""
    out = set()
    for offset in range(3):
        data = base64.b64encode(b"\0" * offset + secret).decode()
        used = (offset + len(secret)) * 8 // 6  # characters that its bytes determine alone
        out.add(data[(0, 2, 3)[offset] : used])
    return {*out, *(s.translate(str.maketrans("+/", "-_")) for s in out)}


_CHARACTER = rf"(?:{_GAP_IN_WORD}[\w-])"
#: The rest of a key that was wrapped: a word of letters in upper case and digits.
_NEXT_LINE = r"(?:[ \t]*\r?\n[ \t]*(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{8,})"
#: Keys of Anthropic, whoever they belong to.
_KEY_LIKE = (
    rf"{_pattern('sk-ant-')}(?:{_CHARACTER}{{10,}}{_NEXT_LINE}?|{_CHARACTER}*{_NEXT_LINE})|c2stYW50L[\w+/=-]{{10,}}"
)


@functools.lru_cache(maxsize=4)
def _finder(secret: str) -> re.Pattern[str]:
    data = secret.encode("utf-8", "surrogateescape")
    encoded = [*sorted(_in_base64(data)), data.hex()] if len(secret) >= MIN_LENGTH else []
    forms = ["[^!-~]*".join(map(re.escape, text)) for text in encoded]
    if len(secret) >= MIN_LENGTH:  # where a key is not ASCII, a gap could be any of its characters
        forms.append(_pattern(secret) if secret.isascii() else re.escape(secret))
    first = re.escape("".join({text[0] for text in (*encoded, secret) if text}))  # the others are passed over fast
    return re.compile(rf"(?=[{first}sc\\%&])(?:{'|'.join([*forms, _KEY_LIKE])})", re.ASCII)


def redact(value: Any) -> Any:
    """A copy of a text, or of parsed JSON, in which the service's key, and all that looks like one, is replaced."""
    if isinstance(value, str):
        return _finder(environment.api_key()).sub(REDACTED, value)
    if isinstance(value, dict):
        return {redact(k): redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([redact(v) for v in value])
    return value


class RedactedStream:
    """A text stream that no key gets through; all else is the stream's own."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
