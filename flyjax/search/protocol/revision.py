"""The protocol's own table of self-revision: from a block's measures to an edit of the rules.

branching rate 0 %         a force-branch row joins
improvement rate < 30 %    the R2 thresholds rise by 0.02
improvement rate > 80 %    the failure-probe comes one success earlier
a plateau of 3 or more     a forced-branching row joins

A measure that chance gives with a probability above `CHANCE` (`Measures`) edits nothing: in a block of three
iterations the improvement rate is 0, 50 or 100 %, whatever was done.
"""

import re
from collections.abc import Callable

from flyjax.search.policy.measures import Measures
from flyjax.search.proposals.types import ProtocolEdit
from flyjax.search.protocol.document import Rules, body, rules

CHANCE = 0.1
RAISE, CEILING = 0.02, 0.98  # of R2 thresholds: at 1 no row would ever hold again
_ACTION = "**force-branch** | Select random node from top 3 UCB, not the sequential parent |"
BRANCH_ROW = f"| Branching rate < 20% in last block | {_ACTION}"
PLATEAU_ROW = f"| Plateau (+/-0.05) for 3+ iterations | {_ACTION}"
_R2 = re.compile(r"(R(?:2|²)\s*(?:>=|≥|>)\s*)(\d*\.?\d+)")
_COUNT = re.compile(r"(?<![\d/])(\d+)(\s*\+?\s+consecutive)")  # not the divisor of n_iter_block/4


def _has(known: Rules, kind: str) -> bool:
    return any(r.strategy == "force-branch" and any(c.kind == kind for c in r.conditions) for r in known.usable)


def _lines(text: str, known: Rules) -> list[str]:
    """The strategy table's rows as they stand, the first to the last."""
    lines, rows = body(text).split("\n"), {r.text for r in known.rows}
    places = [k for k, line in enumerate(lines) if line in rows]
    return lines[places[0] : places[-1] + 1]


def revise(text: str, measures: Measures) -> ProtocolEdit:
    """The edit that a block's measures ask for, or "No changes needed" with the three numbers."""
    known, improvement = rules(text), measures.improvement
    probes = {r.text for r in known.usable if r.strategy == "failure-probe"}

    def raised(line: str) -> str:
        return _R2.sub(lambda m: m[1] + f"{max(float(m[2]), min(CEILING, float(m[2]) + RAISE)):.4g}", line)

    def earlier(line: str) -> str:
        return _COUNT.sub(lambda m: f"{max(1, int(m[1]) - 1)}{m[2]}", line) if line in probes else line

    table: list[tuple[bool, Callable[[list[str]], list[str]], str]] = [
        (
            improvement is not None and improvement < 0.3 and measures.p_few <= CHANCE,
            lambda lines: list(map(raised, lines)),
            f"improvement rate below 30 %: R2 thresholds raised by {RAISE}",
        ),
        (
            improvement is not None and improvement > 0.8 and measures.p_many <= CHANCE,
            lambda lines: list(map(earlier, lines)),
            "improvement rate above 80 %: failure-probe one success earlier",
        ),
        (
            measures.branching == 0 and measures.p_sequential <= CHANCE and not _has(known, "branching"),
            lambda lines: [*lines, BRANCH_ROW],
            "branching rate 0 %: a force-branch row added",
        ),
        (
            measures.plateau >= 3 and measures.p_plateau <= CHANCE and not _has(known, "plateau"),
            lambda lines: [*lines, PLATEAU_ROW],
            "stuck on a plateau: forced branching added",
        ),
    ]
    before = after = _lines(text, known)
    why = []
    for holds, change, words in table:
        if holds and (changed := change(after)) != after:
            after = changed
            why.append(words)
    if not why:
        return ProtocolEdit("", "", f"No changes needed: {measures.describe()}, no cause for an edit above {CHANCE}")
    return ProtocolEdit("\n".join(before), "\n".join(after), f"{'; '.join(why)} ({measures.describe()})")
