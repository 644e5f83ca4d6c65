"""What an edit of the rules may not add: text that would pass for a locked part of the protocol, or hide one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from flyjax.search.protocol.rule_table import MAX_ROW, parse_rules
from flyjax.search.sanitize import is_forbidden

MAX_BODY = 12_000  # characters between the markers

#: Patterns that are refused between the markers, and why.
_PATTERNS = (
    (r"^ {0,3}#{1,2}(?:[^\S\n].*)?$", "headings of level 1 and 2 are refused between the markers; use ### or deeper"),
    (
        r"^ {0,3}\S[^\n]*\n {0,3}(?:=+|-{2,})[ \t]*$",
        "underlined headings are refused between the markers; use ### or deeper",
    ),
    (r"<[a-z/!?]\w*", "HTML is refused between the markers; a smaller-than sign needs a space after it"),
    (r"`{3,}[ \t]*ya?ml", "listings of parameters are stated outside the markers only"),
)


class EditRefused(ValueError):
    """An edit that breaks the guard; the message says how."""


def check_body(new: str, old: str) -> None:
    """Check the rules `new` that are to replace `old`. What `old` holds already may stay.

    **Raises:** `EditRefused` for rules that are too long, or that add markers, section headings, control
    characters, an open code fence and the like, or leave no readable Default row.
    """
    if len(new) > MAX_BODY:
        raise EditRefused(f"the rules would be {len(new)} characters long; at most {MAX_BODY}")
    before = _offences(old)
    for why, found in _offences(new).items():
        if added := Counter(found) - Counter(before[why]):
            raise EditRefused(why.format(", ".join(sorted(added))[:80]))


def _offences(body: str) -> dict[str, list[str]]:
    """Reason -> each passage that is refused for it; the same reasons for any text."""
    plain = unicodedata.normalize("NFKC", body)
    has_default = any(r.is_default and r.strategy == "exploit" for r in parse_rules(body))
    return {
        "control and invisible characters are refused: {}": [f"U+{ord(c):04X}" for c in body if is_forbidden(c)],
        "the markers cannot be written by an edit, nor what looks like them": re.findall(
            r"parent[\W_]*selection[\W_]*rule", plain, re.I
        ),
        f"a row of a table has at most {MAX_ROW} characters": [  # one that is too long already may be reworded
            "row" for line in body.split("\n") if line.lstrip().startswith("|") and len(line) > MAX_ROW
        ],
        **{why: re.findall(pattern, body, re.M | re.I) for pattern, why in _PATTERNS},
        "a code fence is left open, or made of ~": ["fence"] * _has_open_fence(body),
        "the strategy table has to keep its Default row with the strategy exploit": ["none"] * (not has_default),
    }


def _has_open_fence(text: str) -> bool:
    """Whether a code fence would include what follows the text; one of ~ counts as open."""
    ticks = 0  # of the fence that is open
    for fence, rest in re.findall(r"^ {0,3}(`{3,}|~{3,})(.*)$", text, re.M):
        if not ticks and fence[0] == "~":
            return True
        if not ticks:
            ticks = 0 if "`" in rest else len(fence)
        elif fence[0] == "`" and len(fence) >= ticks and not rest.strip():
            ticks = 0
    return ticks > 0
