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
#: The same without blanks and line ends.
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


_WORD = re.compile(rf"((?:[ \t\r\n]|\\{{1,8}}[abfnrtv0])*)((?:{_GAP_IN_WORD}[\w-])+)", re.ASCII)
#: Keys of Anthropic, whoever they belong to; of `rest` as much as `_end_of_key` says.
_KEY_LIKE = rf"{_pattern('sk-ant-')}(?P<rest>(?:{_GAP}[\w-]){{10,400}}[\w-]*)|c2stYW50L[\w+/=-]{{10,}}"
_KEY_LENGTH = 101  # characters after the prefix
_PROSE = re.compile("[A-Z]?[a-z]+")  # of two letters or more
_PROSE_WORDS = 3  # of four letters or more that end a key


@functools.lru_cache(maxsize=4)
def _finder(secret: str) -> re.Pattern[str]:
    data = secret.encode("utf-8", "surrogateescape")
    encoded = [*sorted(_in_base64(data)), data.hex()] if len(secret) >= MIN_LENGTH else []
    forms = ["[^!-~]*".join(map(re.escape, text)) for text in encoded]
    if len(secret) >= MIN_LENGTH:  # where a key is not ASCII, a gap could be any of its characters
        forms.append(_pattern(secret) if secret.isascii() else re.escape(secret))
    first = re.escape("".join({text[0] for text in (*encoded, secret) if text}))  # the others are passed over fast
    return re.compile(rf"(?=[{first}sc\\%&])(?:{'|'.join([*forms, _KEY_LIKE])})", re.ASCII)


def _end_of_key(rest: str) -> int:
    """How much of a text after the prefix of a key belongs to it; 0 where it is prose."""
    end = length = prose = 0
    for word in _WORD.finditer(rest):
        visible = re.sub("[^!-~]", "", word[2])
        if word[1] and len(visible) > 1 and _PROSE.fullmatch(visible):
            prose += len(visible) > 3
        else:
            end, prose = word.end(), 0
        length += len(visible)
        if length >= _KEY_LENGTH or prose == _PROSE_WORDS:
            break
    return end


def _without_keys(text: str) -> str:
    finder, parts, at = _finder(environment.api_key()), [], 0
    while found := finder.search(text, at):
        end = found.end()
        if found["rest"]:
            end = found.start("rest") + _end_of_key(found["rest"])
        is_key = end > found.start("rest")
        parts += [text[at : found.start()], REDACTED if is_key else text[found.start() : end]]
        at = end
    return "".join(parts) + text[at:]


def redact(value: Any) -> Any:
    """A copy of a text, or of parsed JSON, in which the service's key, and all that looks like one, is replaced."""
    if isinstance(value, str):
        return _without_keys(value)
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
