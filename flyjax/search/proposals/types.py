"""What a proposer is asked and what it answers: plain data, the same for every proposer.

One iteration trains K candidates; then one `Step` reads them, chooses among them and proposes the
next K. Every step is validated (`flyjax.search.proposals.validation`), whoever made it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flyjax.config import Experiment
from flyjax.utils.errors import UserError

ROOT = "root"  # parent of the first candidate of every block: the baseline configuration

STRATEGIES = ("root", "exploit", "failure-probe", "explore", "robustness-test", "force-branch")


@dataclass(frozen=True)
class Proposal:
    """One candidate: a parent's configuration with `changes` applied.

    `changes` maps tunable training names to values; empty only for a robustness-test.
    """

    parent: int | str
    changes: dict[str, Any]
    strategy: str = "exploit"
    hypothesis: str = ""
    by: str = ""  # who proposed it, where that is not the proposer of the step
    slot: int | None = None  # of the draft that it replaces, from 1; None where there are no drafts


class BadAnswer(Exception):
    """A proposer's answer that could not be read at all.

    It is treated like an invalid step: `errors` go back as feedback, `raw` and `usage` are journaled. A
    proposer that cannot go on (no key, budget spent, service down) raises `Paused` instead.
    """

    def __init__(self, errors, raw: Any = None, usage: dict[str, Any] | None = None):
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)
        self.raw = raw
        self.usage = dict(usage or {})


class Paused(UserError):
    """The search cannot go on now but can later: service down, key refused, budget spent.

    One line with the remedy; `usage` is what was paid for without an answer.
    """

    def __init__(self, message: str, usage: dict[str, Any] | None = None):
        super().__init__(" ".join(message.split()))
        self.usage = dict(usage or {})


@dataclass(frozen=True)
class ProtocolEdit:
    """Replace `old` by `new` between the markers of the run's protocol. Both empty: no changes needed."""

    old: str
    new: str
    reason: str

    @property
    def is_edit(self) -> bool:
        return bool(self.old or self.new)


@dataclass(frozen=True)
class Problem:
    """Why a part of a step cannot be carried out as given. `slot` counts proposals from 0."""

    part: str  # the field of the step: proposals, chosen, reason, activity, ..., or answer
    message: str
    slot: int | None = None
    noun: str = "proposal"  # "slot" where an optimiser drafts
    remedy: str = ""  # of a warning: what replaces the missing part already, so that the step can be carried out

    def __str__(self) -> str:
        where = self.part if self.slot is None else f"{self.noun} {self.slot + 1}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Step:
    """A proposer's answer to one iteration."""

    proposals: tuple[Proposal, ...]  # K, or K - 1 where the next iteration opens a block (its first is the root)
    chosen: int | None = None  # among the iteration's nodes; None only for the very first step of a run
    reason: str = ""  # why this choice, and the parent rule applied
    activity: dict[int, str] = field(default_factory=dict)  # node -> the log's `Activity:` line
    observation: dict[int, str] = field(default_factory=dict)  # node -> the log's `Observation:` line
    notes: str = ""  # memory notes (<= 500 lines), which replace those kept so far; empty keeps them
    block_summary: str = ""  # the block's `Observation:` line; block ends only
    next_simulation: dict[str, Any] = field(default_factory=dict)  # changes to the simulation; block ends only
    protocol_edit: ProtocolEdit | None = None  # block ends only
    #: of paid proposers: calls, input_tokens, output_tokens, usd (None: not reported)
    usage: dict[str, Any] = field(default_factory=dict)
    raw: Any = None  # what came back before validation, for the journal
    warnings: tuple[Problem, ...] = ()  # what was missing in the answer and is filled in, each with its remedy


@dataclass(frozen=True)
class Context:
    """All that a proposer may know, built from the journal."""

    experiment: Experiment
    state: Any  # flyjax.search.journal.state.State: every node, block and choice so far
    protocol: str  # text of the run's protocol.md
    block: int  # 1, 2, ...: the block the *next* proposals belong to is block + 1 at a block end
    iter_in_block: int  # 1 .. n_iter_block; 0 for the first step of a run, before any training
    n_iter_block: int
    new_nodes: tuple[int, ...]  # nodes of the iteration just trained
    n_proposals: int  # how many proposals are wanted
    next_opens_block: bool  # the proposals are trained beside a root: parent must be "root"
    available_stimuli: tuple[str, ...]
    run_dir: Path
    user_input: str = ""  # pending instructions of people
    feedback: tuple[str, ...] = ()  # errors of the previous attempt at this step
    drafts: tuple[Proposal, ...] | None = None  # of an optimiser (hybrid), of which the model may override some
    overrides: int = 0  # how many of the drafts may be replaced
    #: called before each paid call with what this step may have cost at most after it; the loop journals it
    on_call: Callable[[dict[str, Any]], None] = lambda usage: None

    @property
    def is_block_end(self) -> bool:
        return self.iter_in_block == self.n_iter_block


class Proposer(Protocol):
    """Anything that turns a Context into a Step. Its randomness comes from (run seed, iteration).

    Optional attributes: `reads_instructions` (True; of people, in user_input.md), `corrects_answers` (True; where the
    reversion check replaces a parent, the proposer is informed before the program does so) and a method
    `with_drafts(context)`, which adds an optimiser's drafts to the context of every attempt at a step. A proposer that
    costs money checks the budgets before each call (`flyjax.search.llm.budget.check_budget`).
    """

    name: str

    def step(self, context: Context) -> Step: ...
