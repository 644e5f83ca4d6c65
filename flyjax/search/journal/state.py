"""The state of a run: a pure fold over its events.

`fold(events)` gives everything a proposer, the loop or a rendering may ask. Nothing here reads a
file, a clock or a random number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from flyjax.utils.errors import UserError
from flyjax.utils.format import finite

CONVERGED, FAILED = 0.9, 0.1  # the protocol's classes of connectivity_R2


def objective_metric(objective: str) -> str:
    """The metric a search maximises; `blind` is what a real recording would allow."""
    return "test_R2" if objective == "blind" else objective


@dataclass(frozen=True)
class Node:
    """One training configuration, trained with its seeds in its block's simulation."""

    id: int
    parent: int | str
    block: int
    iteration: int
    iter_in_block: int
    config: dict[str, Any]  # the whole training section
    changes: dict[str, Any]  # against the parent's
    strategy: str
    hypothesis: str
    seeds: tuple[int, ...]
    parent_rule: str = ""  # why this parent, for the log
    by: str = field(default="", compare=False)  # who proposed it: the same tree may have been found by others
    status: str = "running"  # running | finished | failed
    metrics: dict[str, Any] | None = None
    reason: str = ""  # why it failed
    reward: float | None = None  # the objective, mean over seeds; see `_pooled` for a seed without one
    spread: dict[str, float] = field(default_factory=dict)  # n, min, std, cv, failed_seeds (without a value)
    activity: str = ""  # the log's `Activity:` line, as measured or as a step words it
    observation: str = ""

    @property
    def classification(self) -> str:
        """converged (> 0.9), partial or failed (< 0.1), by connectivity_R2."""
        r2 = finite((self.metrics or {}).get("connectivity_R2"))
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


@dataclass(frozen=True)
class Spent:
    """What proposers have cost so far. `usd` sums the calls that reported a price."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced_calls: int = 0  # calls whose price is not reported

    def plus(self, usage: dict[str, Any]) -> Spent:
        if not usage:
            return self
        calls, usd = int(finite(usage.get("calls", 1)) or 0), finite(usage.get("usd"))
        return Spent(
            self.calls + calls,
            self.input_tokens + int(finite(usage.get("input_tokens")) or 0),
            self.output_tokens + int(finite(usage.get("output_tokens")) or 0),
            self.usd + (usd or 0.0),
            self.unpriced_calls + (calls if usd is None else 0),
        )


@dataclass(frozen=True)
class State:
    """Everything the journal says."""

    experiment: dict[str, Any] = field(default_factory=dict)  # as the run began, later budgets applied
    said: dict[str, Any] | None = None  # of the changeable settings by the config files alone, see `resuming`
    started: dict[str, Any] | None = None
    made_with: dict[str, Any] = field(default_factory=dict)  # versions, devices, commit of the newest session
    protocols: tuple[str, ...] = ()  # every version of the run's protocol, oldest first
    nodes: dict[int, Node] = field(default_factory=dict)
    iterations: dict[int, Iteration] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)
    step: dict[str, Any] | None = None  # the newest accepted `proposal` event
    notes: str = ""
    acknowledged: tuple[tuple[int, str], ...] = ()  # (iteration, instruction of people)
    edits: tuple[dict[str, Any], ...] = ()  # protocol_edited events
    spent: Spent = Spent()
    in_flight: dict[str, Any] | None = None  # what the call that is being made may cost; settled by what comes of it
    finished: str | None = None  # reason of run_finished, while it is the last word
    wall_s: float = 0.0  # seconds worked: the time between a stop and its resume does not count
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
    def pending(self) -> Iteration | None:
        """The iteration in training: begun, and not all of its nodes journaled."""
        newest = self.iteration
        if newest and any(self.nodes[i].status == "running" for i in newest.nodes):
            return newest
        return None

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


def _pooled(values: list[Any]) -> tuple[float | None, dict[str, float]]:
    """The reward of a node, and the spread of its seeds' objectives.

    A seed without a result counts as 0, or as the worst of the others where that is negative: no result is not
    better than a bad one.
    """
    known = [value for value in map(finite, values) if value is not None]
    if not known:
        return None, {}
    failed = len(values) - len(known)
    seeds = [min(0.0, *known) if finite(v) is None else finite(v) for v in values]
    mean = sum(seeds) / len(seeds)
    # n - 1: the seeds are a sample; one seed has no spread rather than a spread of zero.
    out = {"n": len(seeds), "min": min(seeds)} | ({"failed_seeds": failed} if failed else {})
    if len(seeds) > 1:
        out["std"] = math.sqrt(sum((v - mean) ** 2 for v in seeds) / (len(seeds) - 1))
        if mean:
            out["cv"] = out["std"] / abs(mean)
    return mean, out


def _known_node(state: State, event) -> Node:
    node = state.nodes.get(event.get("node"))
    if node is None:
        raise UserError(
            f"journal: {event['event']} for node {event.get('node')!r}, which never began; restore the file"
        )
    return node


def _run_started(state, event):
    return replace(
        state,
        experiment=event["experiment"],
        said=event.get("said"),
        started=event,
        protocols=(event["protocol"],),
        made_with=event.get("made_with") or {},
    )


def _run_resumed(state, event):
    return replace(
        state,
        # A call that nothing came of was cut off by a kill: nobody knows the bill, it counts as the most it can be.
        spent=state.spent.plus(state.in_flight or {}),
        in_flight=None,
        experiment=event.get("experiment", state.experiment),
        said=event.get("said", state.said),
        made_with=event.get("made_with") or state.made_with,
    )


def _protocol_edited(state, event):
    return replace(state, protocols=(*state.protocols, event["protocol"]), edits=(*state.edits, event))


def _proposal(state, event):
    nodes, read = dict(state.nodes), event.get("user_input")
    for key in ("activity", "observation"):
        for node, text in (event.get(key) or {}).items():
            if int(node) in nodes:
                nodes[int(node)] = replace(nodes[int(node)], **{key: text})
    # A run that goes on after its end takes its last step once more: the choice is made anew.
    choices = {k: c for k, c in state.choices.items() if k != event["iteration"]}
    return replace(
        state,
        nodes=nodes,
        choices=choices,
        step=event,
        notes=event.get("notes") or state.notes,
        acknowledged=(*state.acknowledged, (event["iteration"], read)) if read else state.acknowledged,
        spent=state.spent.plus(event.get("usage") or {}),
        in_flight=None,
        finished=None,
    )


def _call_started(state, event):
    # Of one step: the call and what failed tries before it may have cost.
    return replace(state, in_flight=event.get("usage") or {})


def _spending(state, event):
    # Without a bill what is in flight counts as the most it can be; {} says that nothing was paid.
    usage = event.get("usage")
    return replace(state, spent=state.spent.plus((state.in_flight if usage is None else usage) or {}), in_flight=None)


def _iteration_started(state, event):
    number, block = event["iteration"], event["block"]
    new = {
        n["node"]: Node(
            id=n["node"],
            parent=n["parent"],
            block=block,
            iteration=number,
            iter_in_block=event["iter_in_block"],
            config=n["config"],
            changes=n["changes"],
            strategy=n["strategy"],
            hypothesis=n.get("hypothesis", ""),
            seeds=tuple(n["seeds"]),
            parent_rule=n.get("parent_rule", ""),
            by=n.get("by", ""),
        )
        for n in event["nodes"]
    }
    old = state.blocks.get(block) or Block(block, event["simulation"])
    grown = replace(old, iterations=(*old.iterations, number), nodes=(*old.nodes, *new))
    return replace(
        state,
        nodes={**state.nodes, **new},
        iterations={**state.iterations, number: Iteration(number, block, event["iter_in_block"], tuple(new))},
        blocks={**state.blocks, block: grown},
        finished=None,
    )


def _node_finished(state, event):
    node, metrics = _known_node(state, event), event.get("metrics") or {}
    name = objective_metric(state.objective)
    # Metrics are means over the seeds that have them: the reward is not, or a config that fails half the time would win.
    known = finite(metrics.get(name)) is not None
    reward, spread = _pooled([m.get(name) for m in event.get("per_seed") or [metrics]]) if known else (None, {})
    done = replace(
        node,
        status="finished",
        metrics=metrics,
        reason=event.get("reason") or "",
        reward=reward,
        spread=spread,
        activity=event.get("activity") or "",
    )
    return replace(state, nodes={**state.nodes, node.id: done})


def _node_failed(state, event):
    node = _known_node(state, event)
    return replace(
        state, nodes={**state.nodes, node.id: replace(node, status="failed", reason=event.get("reason") or "")}
    )


def _choice(state, event):
    _known_node(state, {**event, "node": event["chosen"]})
    made = Choice(event["iteration"], event["chosen"], event.get("reason", ""), tuple(event["next_parents"]))
    return replace(state, choices={**state.choices, event["iteration"]: made})


def _block_ended(state, event):
    _check({**event["edit"], **event.get("measures", {})}, {"old": str, "new": str, "reason": str, "text": str})
    block = replace(state.blocks[event["block"]], ended=event)
    return replace(state, blocks={**state.blocks, event["block"]: block})


def _run_finished(state, event):
    return replace(state, finished=event.get("reason") or "done")


_FOLD = {
    "run_started": _run_started,
    "run_resumed": _run_resumed,
    "run_paused": _spending,
    "call_started": _call_started,
    "protocol_edited": _protocol_edited,
    "proposal": _proposal,
    "proposal_rejected": _spending,
    "iteration_started": _iteration_started,
    "node_finished": _node_finished,
    "node_failed": _node_failed,
    "choice": _choice,
    "block_ended": _block_ended,
    "run_finished": _run_finished,
}


#: Types of fields that readers of the state rely on, where they are there.
_NUMBER = (int, float)
_TYPES = {
    "run_started": {"experiment": dict, "protocol": str, "said": dict},
    "run_resumed": {"experiment": dict, "unseen_s": _NUMBER, "said": dict},
    "run_paused": {"usage": (dict, type(None))},
    "call_started": {"usage": dict},
    "protocol_edited": {"block": int, "by": str, "reason": str, "protocol": str, "diff": str, "reverts": int},
    "proposal": {
        "iteration": int, "block": int, "by": str, "activity": dict, "observation": dict, "proposals": (list, tuple), "simulation": dict,
        "opens_block": bool, "n_next": int, "why_none": str, "notes": str, "block_summary": str, "protocol_edit": (dict, type(None)),
        "user_input": str, "usage": (dict, type(None)),
    },
    "proposal_rejected": {"errors": (list, tuple), "usage": (dict, type(None))},
    "iteration_started": {"iteration": int, "block": int, "iter_in_block": int, "simulation": dict},
    "choice": {"iteration": int, "chosen": int, "reason": str},
    "block_ended": {"block": int, "summary": str, "edit": dict, "measures": dict},
    "run_finished": {"reason": str},
}  # fmt: skip
_NODE_TYPES = {
    "node": int,
    "parent": (int, str),
    "config": dict,
    "changes": dict,
    "strategy": str,
    "seeds": (list, tuple),
}


def _check(fields: dict[str, Any], types: dict[str, Any]) -> None:
    for name, kind in types.items():
        if name in fields and not isinstance(fields[name], kind):
            raise TypeError(f"{name}={str(fields[name])[:40]!r}")


def _worked(state: State, event: dict[str, Any]) -> float:
    """Seconds of work between the event before this one and this one."""
    if event["event"] == "run_resumed":
        # Nobody worked between a stop and this; what a killed session did after its last event is told.
        return event.get("unseen_s", 0.0)
    # A clock may be set back, and that is no work; neither is waiting for a person's answer.
    return (
        max(0.0, event["time"] - state.last_time - max(0.0, event.get("waited_s", 0.0)))
        if state.last_time is not None
        else 0.0
    )


def apply(state: State, event: dict[str, Any]) -> State:
    """The state after one event; an event of an unknown name changes nothing but the clock."""
    name = event["event"]
    try:
        _check(event, {"waited_s": _NUMBER, **_TYPES.get(name, {})})
        for node in event["nodes"] if name == "iteration_started" else ():
            _check(node, _NODE_TYPES)
        after = _FOLD.get(name, lambda s, e: s)(state, event)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"the journal is damaged: a {name!r} event lacks or garbles {error}; restore the file from a copy"
        ) from None
    if "reverts" in event:
        return after  # written between sessions: no work
    spent, now = _worked(state, event), state.pending
    if now is not None and spent:
        grown = replace(now, wall_s=now.wall_s + spent)
        after = replace(after, iterations={**after.iterations, now.number: grown})
    return replace(after, wall_s=state.wall_s + spent, last_time=event["time"])


def fold(events) -> State:
    """The state after all events."""
    return reduce(apply, events, State())
