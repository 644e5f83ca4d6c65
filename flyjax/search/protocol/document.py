"""The protocol: a document for people, whose rules between two markers are data and may be edited.

A run works on its own copy (`instantiate`), whose parameter listings state the run's own values and
ranges. Everything outside the markers is locked; an edit replaces one passage between them. It may not add text that
would pass for a locked part, or hide one.
"""

import difflib
import functools
import itertools
import math
import re
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from flyjax.config import Experiment, Range, Training
from flyjax.search.proposals.types import ProtocolEdit
from flyjax.search.protocol.rule_table import MAX_ROW, Hint, Rule, parse_hints, parse_rules
from flyjax.search.sanitize import is_forbidden, is_invisible, visible
from flyjax.utils.errors import UserError

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


BEGIN = "## Parent Selection Rule (CRITICAL)"
END = "## END Parent selection Rule (CRITICAL)"
MAX_EDIT = 6_000  # characters of one replacement


@dataclass(frozen=True)
class Rules:
    """The rules between the markers that code can act on."""

    rows: tuple[Rule, ...]
    hints: tuple[Hint, ...]

    @property
    def usable(self) -> tuple[Rule, ...]:
        return tuple(r for r in self.rows if not r.problem)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every row that code cannot act on; it is for readers."""
        return tuple(f"row {r.text.strip()!r}: {r.problem}" for r in self.rows if r.problem)


def _find(text: str, marker: str) -> re.Match:
    # \s would run over line ends.
    words = r"[ \t]+".join(re.escape(w) for w in marker.split())
    found = list(re.finditer(rf"^{words}[ \t]*$", text, re.M | re.I))
    if len(found) != 1:
        raise UserError(
            f"protocol: the line {marker!r} occurs {len(found)} times, it has to occur once; restore the file"
        )
    return found[0]


def split(text: str) -> tuple[str, str, str]:
    """(up to and with the first marker's line, the rules, the second marker's line and the rest).

    **Raises:** `UserError` unless both markers occur exactly once, in order.
    """
    begin, end = _find(text, BEGIN).end() + 1, _find(text, END).start()
    if begin > end:
        raise UserError("protocol: the END marker stands before the first one; restore the file")
    return text[:begin], text[begin:end], text[end:]


def body(text: str) -> str:
    """The rules between the markers."""
    return split(text)[1]


@functools.lru_cache(maxsize=16)  # read many times between two edits
def rules(text: str) -> Rules:
    """The rules between the markers as data."""
    inside = body(text)
    return Rules(parse_rules(inside), parse_hints(inside))


def with_body(text: str, new: str) -> str:
    """`text` with other rules between its markers; all else stays bit for bit.

    **Raises:** `EditRefused` for rules that the guard does not allow (`check_body`).
    """
    head, old, tail = split(text)
    check_body(new, old)
    result = head + (new if new.endswith("\n") else new + "\n") + tail
    with suppress(UserError):
        if split(result)[::2] == (head, tail):
            return result
    raise EditRefused("an edit may change nothing outside the markers")


def restored(text: str, earlier: str) -> str:
    """`text` with the rules of an earlier version of it, which passed the guard of their time."""
    head, _, tail = split(text)
    return head + body(earlier) + tail


def apply_edit(text: str, edit: ProtocolEdit) -> str:
    """The protocol after an edit; unchanged for "no changes needed".

    **Raises:** `EditRefused`, one line, where the guard does not allow it.
    """
    if not edit.is_edit:
        return text
    inside = body(text)
    if max(len(edit.old), len(edit.new)) > MAX_EDIT:
        raise EditRefused(f"an edit replaces at most {MAX_EDIT} characters")
    # Compared without the invisible characters, which cannot be quoted.
    old, drawn = visible(edit.old), visible(inside)
    if not old:
        raise EditRefused("old is empty: quote the passage that new replaces")
    places = [k for k in range(len(drawn)) if drawn.startswith(old, k)]
    if len(places) != 1:
        raise EditRefused(f"old occurs {len(places)} times between the markers; it has to occur exactly once")
    index = [k for k, c in enumerate(inside) if not is_invisible(c)] + [len(inside)]  # of each drawn character
    edited = inside[: index[places[0]]] + edit.new + inside[index[places[0] + len(old)] :]
    if edited == inside:
        raise EditRefused("old and new are the same text")
    return with_body(text, edited)


def diff(before: str, after: str, name: str = "protocol.md") -> str:
    """Unified diff of two versions; empty where they are equal."""
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"a/{name}", f"b/{name}")
    return "".join(lines)


# --- parameter listings -------------------------------------------------------------------------

_FENCE = re.compile(r"^```yaml\n(training|simulation|search):\n(.*?)```", re.S | re.M)
_LINE = re.compile(r"^  (\w+):[ \t]*(\S+)[ \t]*#[ \t]*(.*)$", re.M)
_SPAN = re.compile(r",?\s*(?:range: \S+ to \S+(?: \((?:log|whole numbers)\))?|values: .+|fixed in this run)$")


def _number(value, span: Range | None = None) -> str:
    """A value as YAML, exactly; small numbers, and those of a log range, like 1.0E-3."""
    if isinstance(value, str):
        return f'"{value}"'
    if value and abs(value) < (0.1 if span is not None and span.scale == "log" else 1e-3):
        power = math.floor(math.log10(abs(value)) + 1e-9)
        mantissa = f"{value / 10**power:.6g}"
        text = f"{mantissa if '.' in mantissa else mantissa + '.0'}E{power}"
        return text if float(text) == value else repr(value)
    short = f"{value:.12g}"
    return short if float(short) == value else repr(value)


def _span_text(span: Range | None) -> str:
    if span is None:
        return "fixed in this run"
    if span.scale == "choice":
        return "values: " + ", ".join(_number(v) for v in span.values or ())
    extra = {"log": " (log)", "int": " (whole numbers)"}.get(span.scale, "")
    return f"range: {_number(span.min, span)} to {_number(span.max, span)}{extra}"


def _listing(section: str, described: dict[str, str], experiment: Experiment) -> str:
    """The lines of one listing: `name: value  # description, range: low to high`."""
    search = experiment.search
    if section == "search":
        spans, rows = {}, [(k, getattr(search, k), text) for k, text in described.items()]
    else:
        spans = search.ranges if section == "training" else search.simulation_ranges
        names = [k for k in described if k in spans or section == "simulation"] + [
            k for k in spans if k not in described
        ]
        fields, values = Training.model_fields, getattr(experiment, section)
        rows = []
        for k in names:
            text = described.get(k) or (fields[k].description if k in fields else None) or k.replace("_", " ")
            rows.append((k, getattr(values, k), f"{text}, {_span_text(spans.get(k))}"))
    cells = [(f"  {k}: {_number(v, spans.get(k))}", text) for k, v, text in rows]
    width = max(len(c) for c, _ in cells)
    return "".join(f"{c:<{width}}  # {text}\n" for c, text in cells)


def instantiate(template: str, experiment: Experiment) -> str:
    """The run's copy of a template: its parameter listings state this experiment's values and ranges."""
    head, inside, tail = split(template)

    def own(match):
        described = {name: _SPAN.sub("", comment).strip() for name, _, comment in _LINE.findall(match[2])}
        return f"```yaml\n{match[1]}:\n{_listing(match[1], described, experiment)}```"

    return _FENCE.sub(own, head) + inside + _FENCE.sub(own, tail)


def _stated_ranges(text: str) -> dict[str, str]:
    """Name -> the range of a training parameter, as a protocol's locked listings state it."""
    listings = [lines for part in split(text)[::2] for section, lines in _FENCE.findall(part) if section == "training"]
    rows = (row for lines in listings for row in _LINE.findall(lines))
    return {name: found[0].strip(", ") for name, _, comment in rows if (found := _SPAN.search(comment))}


def carry_over(earlier: str, template: str, experiment: Experiment) -> str:
    """The run's copy with the rules an earlier run has learned.

    **Raises:** `UserError` where the earlier file differs from the template in anything locked (goal,
    metrics, formats) or states other training ranges than this run, naming the first difference.
    """
    own = instantiate(template, experiment)
    head, inside, tail = split(earlier)
    locked = [_FENCE.sub("", part).splitlines() for part in (head + tail, "".join(split(template)[::2]))]
    for theirs, ours in itertools.zip_longest(*locked, fillvalue=""):
        if theirs != ours:
            raise UserError(
                f"--protocol: {theirs.strip()[:60]!r} differs from the template's {ours.strip()[:60]!r}; "
                "only the rules between the markers carry over"
            )
    here, there = map(_stated_ranges, (own, earlier))
    for name in sorted(set(here) | set(there)):
        mine, other = here.get(name, "absent"), there.get(name, "absent")
        if mine != other:
            raise UserError(
                f"--protocol: the range of {name} is {other} there and {mine} here; set search.ranges to the same"
            )
    try:
        return with_body(own, inside)
    except EditRefused as error:
        raise UserError(f"--protocol: {error}; change that between the file's markers") from None
