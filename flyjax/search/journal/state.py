"""The state of a run: a pure fold over its events (`flyjax.search.journal.journal`).

Nothing here reads a file, a clock or a random number.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Self

from flyjax.utils.errors import UserError
from flyjax.utils.format import finite
from flyjax.utils.metric_names import CONVERGED, FAILED

Event = dict[str, Any]
CONFIRMATION = "confirmation"  # kind of an iteration, and strategy of its nodes


def objective_metric(objective: str) -> str:
    """The metric of a node's reward; `blind` is what a real recording would allow.

    The objective `map` is a score of all nodes: the tree of its nodes keeps the reward of the protocol.
    """
    return {"blind": "test_R2", "map": "connectivity_R2"}.get(objective, objective)


@dataclass(frozen=True)
class Node:
    """One training configuration, trained with its seeds in its block's simulation."""

    id: int
    parent: int | str
    block: int
    iteration: int
    iter_in_block: int
    config: dict[str, Any]  # the training section
    changes: dict[str, Any]  # against the parent's
    strategy: str
    seeds: tuple[int, ...]
    hypothesis: str = ""
    parent_rule: str = ""  # why this parent, for the log
    proposed_from: int | None = None  # whose configuration was changed, where the reversion check set another parent
    by: str = field(default="", compare=False)  # who proposed it: the same tree may have been found by others
    status: str = "running"  # running | finished | failed
    metrics: dict[str, Any] | None = None
    reason: str = ""  # why it failed
    reward: float | None = None  # the objective, mean over seeds; see `_pooled` for a seed without one
    spread: dict[str, float] = field(default_factory=dict)  # n, min, std, cv, failed_seeds (without a value)
    values: tuple[float, ...] = ()  # the objective of each seed, counted as in the reward
    activity: str = ""  # the log's `Activity:` line, as measured or as a step words it
    observation: str = ""

    @property
    def classification(self) -> str:
        """converged (> 0.9), partial or failed (< 0.1), by connectivity_R2, or the reward where it is unknown."""
        r2 = finite((self.metrics or {}).get("connectivity_R2", self.reward))
        if r2 is None or r2 < FAILED:
            return "failed"
        return "converged" if r2 > CONVERGED else "partial"


@dataclass(frozen=True)
class Iteration:
    """K nodes trained together."""

    number: int
    block: int
    iter_in_block: int
    nodes: tuple[int, ...]
    wall_s: float = field(default=0.0, compare=False)  # of its training


@dataclass(frozen=True)
class Confirmation:
    """The best settings trained again on fresh seeds, after the end of a search; no part of its tree."""

    number: int  # of the iteration that it takes the place of
    block: int
    nodes: dict[int, Node]


@dataclass(frozen=True)
class Block:
    """Iterations that share one simulation; `ended` holds the block_ended event."""

    number: int
    simulation: dict[str, Any]
    iterations: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    ended: dict[str, Any] | None = None


@dataclass(frozen=True)
class Choice:
    """What the step after an iteration decided."""

    iteration: int
    chosen: int
    reason: str
    next_parents: tuple[int | str, ...]
    map_score: dict[str, float] | None = None  # of the objective `map`, see `run_map.map_score`


@dataclass(frozen=True)
class Spent:
    """What proposers have cost so far. `usd` sums the calls that reported a price."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced_calls: int = 0  # calls whose price is not reported

    def plus(self, usage: dict[str, Any] | None) -> Self:
        """With one more bill; None or {}: nothing was paid."""
        if not usage:
            return self
        calls, usd = int(finite(usage.get("calls", 1)) or 0), finite(usage.get("usd"))
        return replace(
            self,
            calls=self.calls + calls,
            input_tokens=self.input_tokens + int(finite(usage.get("input_tokens")) or 0),
            output_tokens=self.output_tokens + int(finite(usage.get("output_tokens")) or 0),
            usd=self.usd + (usd or 0.0),
            unpriced_calls=self.unpriced_calls + (calls if usd is None else 0),
        )


@dataclass(frozen=True)
class State:
    """Everything that a proposer, the loop or a rendering may ask about a run."""

    experiment: dict[str, Any] = field(default_factory=dict)  # as the run began, later limits applied
    config_overrides: dict[str, Any] | None = None  # changeable settings in the config files, see `run.opening`
    started: dict[str, Any] | None = None
    made_with: dict[str, Any] = field(default_factory=dict)  # versions, devices, commit of the newest session
    protocols: tuple[str, ...] = ()  # every version of the run's protocol, oldest first
    nodes: dict[int, Node] = field(default_factory=dict)
    iterations: dict[int, Iteration] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)
    confirmations: dict[int, Confirmation] = field(default_factory=dict)  # one after each end of the search
    step: dict[str, Any] | None = None  # the newest accepted `proposal` event
    notes: str = ""
    acknowledged: tuple[tuple[int, str], ...] = ()  # (iteration, instruction of a user)
    edits: tuple[dict[str, Any], ...] = ()  # protocol_edited events
    spent: Spent = Spent()
    in_flight: dict[str, Any] | None = None  # what the call that is being made may cost at most
    finished: str | None = None  # reason of run_finished, unless the run went on
    wall_s: float = 0.0  # seconds of work, without the time between a stop and its resume
    last_time: float | None = None  # of the newest event of a session

    @property
    def protocol(self) -> str:
        """Text of the run's protocol.md now."""
        return self.protocols[-1] if self.protocols else ""

    @property
    def iteration(self) -> Iteration | None:
        """The newest iteration, running or done."""
        return self.iterations[max(self.iterations)] if self.iterations else None

    @property
    def number(self) -> int:
        """Number of the newest iteration, 0 before the first."""
        return max(self.iterations, default=0)

    @property
    def pending(self) -> Iteration | None:
        """The iteration in training: begun, and not all of its nodes journaled."""
        newest = self.iteration
        if newest and any(self.nodes[i].status == "running" for i in newest.nodes):
            return newest
        return None

    @property
    def confirming(self) -> Confirmation | None:
        """The confirmation in training."""
        running = (c for c in self.confirmations.values() if any(n.status == "running" for n in c.nodes.values()))
        return next(running, None)

    @property
    def all_nodes(self) -> list[Node]:
        """The nodes of the search and those of its confirmations, by id."""
        nodes = [*self.nodes.values(), *(n for c in self.confirmations.values() for n in c.nodes.values())]
        return sorted(nodes, key=lambda node: node.id)

    @property
    def objective(self) -> str:
        return self.experiment.get("search", {}).get("objective", "connectivity_R2")

    @property
    def n_iter_block(self) -> int:
        """Iterations per block."""
        return self.experiment.get("search", {}).get("n_iter_block", 12)

    @property
    def ucb_c(self) -> float:
        """The exploration constant of UCB."""
        return self.experiment.get("search", {}).get("ucb_c", 1.414)

    def block_nodes(self, block: int) -> list[Node]:
        """Nodes of a block that are trained (finished or failed), by id."""
        if block not in self.blocks:
            return []
        nodes = (self.nodes[i] for i in self.blocks[block].nodes)
        return [n for n in nodes if n.status != "running"]

    def chosen(self, iteration: int) -> Node:
        """The node that the step after a trained iteration chose; before the step, the best of its nodes."""
        if iteration in self.choices:
            return self.nodes[self.choices[iteration].chosen]
        trained = (self.nodes[i] for i in self.iterations[iteration].nodes if self.nodes[i].status != "running")
        return max(trained, key=lambda n: (n.reward if n.reward is not None else -math.inf, -n.id))


def _pooled(values: list[Any]) -> tuple[float | None, dict[str, float], tuple[float, ...]]:
    """The reward of a node, the spread of its seeds' objectives, and these.

    A seed without a result counts as 0, or as the worst of the others where that is negative: no result is not
    better than a bad one.
    """
    known = [value for value in map(finite, values) if value is not None]
    if not known:
        return None, {}, ()
    failed = len(values) - len(known)
    seeds = known + [min(0.0, *known)] * failed
    mean = sum(seeds) / len(seeds)
    # n - 1: the seeds are a sample; one seed has no spread rather than a spread of zero.
    out = {"n": len(seeds), "min": min(seeds)} | ({"failed_seeds": failed} if failed else {})
    if len(seeds) > 1:
        out["std"] = math.sqrt(sum((v - mean) ** 2 for v in seeds) / (len(seeds) - 1))
        if mean:
            out["cv"] = out["std"] / abs(mean)
    return mean, out, tuple(seeds)


def _with_node(state: State, event: Event, **fields: Any) -> State:
    number, reason = event["node"], event.get("reason") or ""
    for key, found in state.confirmations.items():
        if number in found.nodes:
            nodes = found.nodes | {number: replace(found.nodes[number], reason=reason, **fields)}
            return replace(state, confirmations=state.confirmations | {key: replace(found, nodes=nodes)})
    return replace(state, nodes=state.nodes | {number: replace(state.nodes[number], reason=reason, **fields)})


def _damaged(problem: str) -> UserError:
    return UserError(f"the journal is damaged: {problem}; restore the file from a copy")


def _proposal(state: State, event: Event) -> State:
    nodes, user_input = dict(state.nodes), event.get("user_input")
    for key in ("activity", "observation"):
        for node, text in (event.get(key) or {}).items():
            if int(node) in nodes:
                nodes[int(node)] = replace(nodes[int(node)], **{key: text})
    return replace(
        state,
        nodes=nodes,
        # A run that goes on after its end takes its last step again: the choice is made anew.
        choices={k: c for k, c in state.choices.items() if k != event["iteration"]},
        step=event,
        notes=event.get("notes") or state.notes,
        acknowledged=(*state.acknowledged, *([(event["iteration"], user_input)] if user_input else [])),
        spent=state.spent.plus(event.get("usage")),
        in_flight=None,
        finished=None,
    )


_PLANNED = ("parent", "config", "changes", "strategy", "hypothesis", "parent_rule", "proposed_from", "by")


def _iteration_started(state: State, event: Event) -> State:
    place = {name: event[name] for name in ("block", "iteration", "iter_in_block")}
    new = {}
    for planned in event["nodes"]:
        fields = {name: planned[name] for name in _PLANNED if name in planned}
        new[planned["node"]] = Node(planned["node"], **place, **fields, seeds=tuple(planned["seeds"]))
    number = event["iteration"]
    if state.pending or state.confirming or {*new} & {node.id for node in state.all_nodes}:
        raise _damaged(f"iteration {number} begins twice, or before the one before it has ended")
    if event.get("kind") == CONFIRMATION:
        confirmation = Confirmation(number, event["block"], new)
        return replace(state, confirmations=state.confirmations | {number: confirmation}, finished=None)
    block = state.blocks.get(event["block"]) or Block(event["block"], event["simulation"])
    block = replace(block, iterations=(*block.iterations, number), nodes=(*block.nodes, *new))
    iteration = Iteration(number, block.number, event["iter_in_block"], tuple(new))
    return replace(
        state,
        nodes=state.nodes | new,
        iterations=state.iterations | {number: iteration},
        blocks=state.blocks | {block.number: block},
        finished=None,
    )


def _node_finished(state: State, event: Event) -> State:
    metrics, name = event.get("metrics") or {}, objective_metric(state.objective)
    # Metrics are means over the seeds that have them; the reward counts every seed, or a configuration that fails
    # half of the time would win.
    known = finite(metrics.get(name)) is not None
    seeds = [m.get(name) for m in event.get("per_seed") or [metrics]] if known else []
    reward, spread, values = _pooled(seeds)
    fields = {"reward": reward, "spread": spread, "values": values, "activity": event.get("activity") or ""}
    return _with_node(state, event, status="finished", metrics=metrics, **fields)


def _after(state: State, event: Event) -> State:
    """The state after an event, but for the time; an event of an unknown name changes nothing."""
    match event["event"]:
        case "run_started" | "run_resumed" as name:
            if name == "run_started":
                state = replace(state, started=event, protocols=(event["protocol"],))
            return replace(
                state,
                # A call without an outcome was cut off by a kill: its bill is not known and counts as the most it
                # can be.
                spent=state.spent.plus(state.in_flight),
                in_flight=None,
                experiment=event.get("experiment", state.experiment),
                config_overrides=event.get("config_overrides", state.config_overrides),
                made_with=event.get("made_with") or state.made_with,
            )
        case "run_paused" | "proposal_rejected":  # an unknown bill counts as the most it can be
            usage = event.get("usage")
            return replace(state, spent=state.spent.plus(state.in_flight if usage is None else usage), in_flight=None)
        case "run_finished":
            return replace(state, finished=event.get("reason") or "done")
        case "protocol_edited":
            return replace(state, protocols=(*state.protocols, event["protocol"]), edits=(*state.edits, event))
        case "call_started":
            return replace(state, in_flight=event.get("usage"))
        case "proposal":
            return _proposal(state, event)
        case "iteration_started":
            return _iteration_started(state, event)
        case "node_finished":
            return _node_finished(state, event)
        case "node_failed":
            return _with_node(state, event, status="failed")
        case "choice":
            chosen, parents = state.nodes[event["chosen"]].id, tuple(event["next_parents"])
            choice = Choice(event["iteration"], chosen, event.get("reason", ""), parents, event.get("map_score"))
            return replace(state, choices=state.choices | {choice.iteration: choice})
        case "block_ended":
            block = replace(state.blocks[event["block"]], ended=event)
            return replace(state, blocks=state.blocks | {block.number: block})
    return state


def _work_seconds(state: State, event: Event) -> float:
    """Seconds of work between the event before this one and this one."""
    # No work between a stop and the next session, but for that of a session that was killed.
    if event["event"] == "run_resumed" or state.last_time is None:
        return event.get("crashed_session_s", 0.0) + event.get("startup_s", 0.0)
    # A clock that is set back is no work, nor is waiting for a user's answer.
    return max(0.0, event["time"] - state.last_time - max(0.0, event.get("waited_s", 0.0)))


def apply(state: State, event: Event) -> State:
    """The state after one event; an event of an unknown name changes nothing but the time.

    **Raises:** `UserError` for an event about a node or block that never began.
    """
    try:
        after = _after(state, event)
    except KeyError as missing:
        raise _damaged(f"{event['event']!r} is about {missing}, which never began") from None
    if "reverts" in event:
        return after  # written between sessions: no work
    seconds, training = _work_seconds(state, event), state.pending
    if training is not None and seconds:
        training = replace(training, wall_s=training.wall_s + seconds)
        after = replace(after, iterations=after.iterations | {training.number: training})
    return replace(after, wall_s=state.wall_s + seconds, last_time=event["time"])


def fold(events: Iterable[Event]) -> State:
    """The state after all events."""
    return reduce(apply, events, State())
