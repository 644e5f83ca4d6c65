"""The strategy table of a protocol as data: conditions that code can check, actions it can take.

A row that cannot be read is kept with the reason (a language model still sees it in the protocol).
"""

from __future__ import annotations

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
        return self.count if self.divisor is None else max(2, math.ceil(n_iter_block / self.divisor))


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


def plain(cell: str) -> str:
    """A cell without Markdown emphasis and code ticks."""
    return re.sub(r"[*`]", "", cell).strip()


def parse_condition(text: str) -> tuple[Condition, ...]:
    """The conditions of a cell, joined by "and".

    **Raises:** `ValueError` for a text that is not understood.
    """
    out = []
    for part in re.split(r"\s+and\s+", plain(text), flags=re.I):
        for kind, pattern in _PATTERNS:
            match = pattern.fullmatch(part.strip())
            if match:
                out.append(_condition(kind, match.groupdict()))
                break
        else:
            raise ValueError(f"condition {part.strip()!r} is not one that code can check")
    return tuple(out)


def _condition(kind: str, found: dict) -> Condition:
    number = None if found.get("value") is None else float(found["value"])
    op = _OPS.get(found.get("op") or ">=", found.get("op") or ">=")
    count = None if found.get("count") is None else int(found["count"])
    if kind == "rate":
        return Condition(found["what"].lower(), op, number / 100, last_block=bool(found["last"]))
    if kind == "plateau":
        return Condition(kind, value=0.05 if number is None else number, count=count)
    divisor = None if found.get("divisor") is None else int(found["divisor"])
    if divisor == 0 or count == 0:
        raise ValueError("a count of zero iterations has no meaning")
    if number is not None and number > 1:
        raise ValueError(f"R2 is never above 1, and the row asks for {number:g}")
    return Condition(kind, op, 0.9 if number is None else number, count, divisor)


def parse_row(line: str) -> Rule | None:
    """A rule from a table line; None for the line under a heading."""
    if len(line) > MAX_ROW:
        return Rule(line, "", problem=f"a row has at most {MAX_ROW} characters")
    cells = [c.strip() for c in line.strip().strip("|").split("|")]
    if all(re.fullmatch(r":?-+:?", c) for c in cells if c):
        return None
    if len(cells) < 3:
        return Rule(line, plain(cells[-1]).lower(), problem="a row has three cells: condition, strategy, action")
    strategy, action = plain(cells[1]).lower(), plain(cells[2])
    if strategy not in ACTIONS:
        return Rule(line, strategy, problem=f"strategy {strategy!r} is not one of {', '.join(ACTIONS)}")
    try:
        conditions = parse_condition(cells[0])
    except ValueError as error:
        return Rule(line, strategy, problem=str(error))
    if strategy != "exploit" and any(c.kind == "default" for c in conditions):
        return Rule(line, strategy, problem="what is done by default is exploit; another strategy needs a condition")
    factor = re.search(
        r"(\d+(?:\.\d+)?)\s*(?:x\b|×|times\b)|\bfactor\s+(?:of\s+)?(\d+(?:\.\d+)?)|(?:\bx|×)\s*(\d+(?:\.\d+)?)",
        action,
        re.I,
    )
    top = re.search(r"\b(?:top|best)[\s-]+(\d+)|(\d+)\s+(?:best|top|highest)\b", action, re.I)
    wanted = {"failure-probe": (factor, "10x"), "force-branch": (top, "top 3")}.get(strategy)
    if wanted and wanted[0] is None and re.search(r"\d", re.sub(r"R2|\bUCB\b", "", action)):
        return Rule(line, strategy, problem=f"the number in its action is not understood; write it as {wanted[1]}")
    factor, top = (m and [g for g in m.groups() if g] for m in (factor, top))
    size = float(factor[0][:20]) if factor else 10.0
    size = 1 / size if 0 < size < 1 else size  # 0.1x and 10x are the same probe, in either direction
    if not 1 < size < 1e6:
        return Rule(line, strategy, problem=f"a probe by a factor of {size:g} is no probe; give one above 1, say 10x")
    return Rule(line, strategy, conditions, size, max(1, int(top[0][:6])) if top else 3)


def _tables(body: str, first: str) -> list[str]:
    """Lines of the tables whose first heading is `first`, headings left out."""
    rows, inside = [], False
    for line in body.splitlines():
        if not line.lstrip().startswith("|"):
            inside = False
            continue
        head = plain(line.strip().strip("|").split("|")[0]).lower()
        if not inside:
            inside = head == first
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
        cells = [plain(c) for c in line.strip().strip("|").split("|")]
        move = cells[1].lower() if len(cells) > 1 else ""
        factor = re.fullmatch(r"x\s*(\d*\.?\d+)", move)
        if factor and 0 < float(factor[1]) < 1e6:
            out.append(Hint(cells[0], float(factor[1])))
        elif move in ("max", "min"):
            out.append(Hint(cells[0], end=move))
    return tuple(out)
