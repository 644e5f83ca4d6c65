"""The strategy table of a protocol as data: conditions that code can check, actions it can take.

A row that cannot be read is kept with the reason (a language model still sees it in the protocol).
"""

import math
import re
from dataclasses import dataclass

MAX_ROW = 500  # characters: patterns are searched in it, and people read it
ACTIONS = ("exploit", "failure-probe", "explore", "robustness-test", "force-branch")


@dataclass(frozen=True)
class Condition:
    """One test on a block. `count` None with `divisor` d means max(2, ceil(n_iter_block / d))."""

    kind: str  # default | successes | branching | improvement | plateau | good_config | best
    op: str = ">="
    value: float = 0.0  # a share (rates) or an R2 threshold
    count: int | None = None
    divisor: int | None = None
    last_block: bool = False  # measured on the block before

    def iterations(self, n_iter_block: int) -> int:
        """The count in iterations."""
        return max(2, math.ceil(n_iter_block / self.divisor)) if self.divisor else self.count or 0


@dataclass(frozen=True)
class Rule:
    """One row. `conditions` all have to hold; a `problem` says why the row cannot be used."""

    text: str
    strategy: str
    conditions: tuple[Condition, ...] = ()
    factor: float = 10.0  # of a failure-probe
    top: int = 3  # of a force-branch
    problem: str = ""

    @property
    def is_default(self) -> bool:
        return not self.problem and any(c.kind == "default" for c in self.conditions)


@dataclass(frozen=True)
class Hint:
    """One row of the first-moves table: what to try first on one parameter."""

    parameter: str
    factor: float | None = None  # multiply, clipped to the range
    end: str = ""  # "max" | "min"


_R2 = r"R(?:2|²)\s*(?P<op>>=|≥|>)\s*(?P<value>\d*\.?\d+)"
_WINDOW = r"(?:\s+in\s+(?P<last>(?:the\s+)?last)\s+block)?"
_PATTERNS = (
    ("default", re.compile(r"(?:default|otherwise)", re.I)),
    (
        "successes",
        re.compile(
            r"(?:at least\s+|>=\s*|≥\s*)?(?:(?P<count>\d+)|n_iter_block\s*/\s*(?P<divisor>\d+))\s*\+?"
            rf"\s+consecutive\s+success(?:es)?(?:\s*\(\s*{_R2}\s*\))?",
            re.I,
        ),
    ),
    (
        "rate",
        re.compile(
            r"(?P<what>branching|improvement)\s+rate\s*(?P<op><=|>=|≤|≥|<|>|=)\s*(?P<value>\d+(?:\.\d+)?)\s*%"
            + _WINDOW,
            re.I,
        ),
    ),
    (
        "plateau",
        re.compile(
            r"(?:R(?:2|²)\s+)?plateau\s*(?:\(\s*(?:\+/-|\+-|±)\s*(?P<value>\d*\.?\d+)\s*\))?"
            r"\s*(?:for|>=|≥)\s*(?P<count>\d+)\s*\+?\s+iter(?:ation)?s?",
            re.I,
        ),
    ),
    ("good_config", re.compile(rf"found\s+(?:a\s+)?good\s+config(?:uration)?(?:\s*\(\s*{_R2}\s*\))?", re.I)),
    ("best", re.compile(r"best\s+R(?:2|²)\s*(?P<op><=|>=|≤|≥|<|>)\s*(?P<value>\d*\.?\d+)", re.I)),
)
_OPS = {"≥": ">=", "≤": "<="}
_FACTOR = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:x\b|×|times\b)|\bfactor\s+(?:of\s+)?(\d+(?:\.\d+)?)|(?:\bx|×)\s*(\d+(?:\.\d+)?)", re.I
)
_TOP = re.compile(r"\b(?:top|best)[\s-]+(\d+)|(\d+)\s+(?:best|top|highest)\b", re.I)


def plain(cell: str) -> str:
    """A cell without Markdown emphasis and code ticks."""
    return re.sub(r"[*`]", "", cell).strip()


def parse_condition(text: str) -> tuple[Condition, ...]:
    """The conditions of a cell, joined by "and".

    **Raises:** `ValueError` for a text that is not understood.
    """
    return tuple(_condition(part.strip()) for part in re.split(r"\s+and\s+", plain(text), flags=re.I))


def _condition(text: str) -> Condition:
    matches = ((kind, pattern.fullmatch(text)) for kind, pattern in _PATTERNS)
    kind, found = next(((kind, m.groupdict()) for kind, m in matches if m), (None, {}))
    if kind is None:
        raise ValueError(f"condition {text!r} is not one that code can check")
    number = None if found.get("value") is None else float(found["value"])
    op: str = found.get("op") or ">="
    op = _OPS.get(op, op)
    count, divisor = (None if found.get(name) is None else int(found[name]) for name in ("count", "divisor"))
    if kind == "rate":
        return Condition(found["what"].lower(), op, float(found["value"]) / 100, last_block=bool(found["last"]))
    if kind == "plateau":
        return Condition(kind, value=0.05 if number is None else number, count=count)
    if divisor == 0 or count == 0:
        raise ValueError("a count of zero iterations has no meaning")
    if number is not None and number > 1:
        raise ValueError(f"R2 is never above 1, and the row asks for {number:g}")
    return Condition(kind, op, 0.9 if number is None else number, count, divisor)


def _cells(line: str) -> list[str]:
    return [c.strip() for c in line.strip().strip("|").split("|")]


def parse_row(line: str) -> Rule | None:
    """A rule from a table line; None for the line under a heading."""
    cells = _cells(line) if len(line) <= MAX_ROW else []
    if cells and all(re.fullmatch(r":?-+:?", c) for c in cells if c):
        return None
    strategy = plain(cells[1] if len(cells) > 2 else "".join(cells[-1:])).lower()
    try:
        if not cells:
            raise ValueError(f"a row has at most {MAX_ROW} characters")
        if len(cells) < 3:
            raise ValueError("a row has three cells: condition, strategy, action")
        return _rule(line, strategy, cells[0], plain(cells[2]))
    except ValueError as error:
        return Rule(line, strategy, problem=str(error))


def _rule(line: str, strategy: str, condition: str, action: str) -> Rule:
    """**Raises:** `ValueError` where code cannot act on the row."""
    if strategy not in ACTIONS:
        raise ValueError(f"strategy {strategy!r} is not one of {', '.join(ACTIONS)}")
    conditions = parse_condition(condition)
    if strategy != "exploit" and any(c.kind == "default" for c in conditions):
        raise ValueError("what is done by default is exploit; another strategy needs a condition")
    factor, top = (next(filter(None, m.groups())) if (m := p.search(action)) else None for p in (_FACTOR, _TOP))
    wanted = {"failure-probe": (factor, "10x"), "force-branch": (top, "top 3")}.get(strategy)
    if wanted and wanted[0] is None and re.search(r"\d", re.sub(r"R2|\bUCB\b", "", action)):
        raise ValueError(f"the number in its action is not understood; write it as {wanted[1]}")
    size = float(factor[:20]) if factor else 10.0
    size = 1 / size if 0 < size < 1 else size  # 0.1x and 10x are the same probe, in either direction
    if not 1 < size < 1e6:
        raise ValueError(f"a probe by a factor of {size:g} is no probe; give one above 1, say 10x")
    return Rule(line, strategy, conditions, size, max(1, int(top[:6])) if top else 3)


def _tables(body: str, first: str) -> list[str]:
    """Lines of the tables whose first heading is `first`, headings left out."""
    rows, inside = [], False
    for line in body.splitlines():
        if not line.lstrip().startswith("|"):
            inside = False
        elif not inside:
            inside = plain(_cells(line)[0]).lower() == first
        elif not re.fullmatch(r"[\s|:-]+", line):
            rows.append(line)
    return rows


def parse_rules(body: str) -> tuple[Rule, ...]:
    """Every row of the strategy table (heading `Condition`) in the protocol's text."""
    return tuple(r for r in map(parse_row, _tables(body, "condition")) if r is not None)


def parse_hints(body: str) -> tuple[Hint, ...]:
    """Every readable row of the first-moves table (heading `Parameter`): `x2`, `x0.5`, `max` or `min`."""
    out = []
    for line in _tables(body, "parameter"):
        name, move = [*map(plain, _cells(line)), ""][:2]
        factor = re.fullmatch(r"x\s*(\d*\.?\d+)", move.lower())
        if factor and 0 < float(factor[1]) < 1e6:
            out.append(Hint(name, float(factor[1])))
        elif move.lower() in ("max", "min"):
            out.append(Hint(name, end=move.lower()))
    return tuple(out)
