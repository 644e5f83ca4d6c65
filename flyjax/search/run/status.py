"""How a run stands, in a line for the terminal: what is done and spent, and what is left."""

from __future__ import annotations

from flyjax.config import Experiment
from flyjax.search.iteration import next_nodes
from flyjax.search.journal.state import State
from flyjax.search.llm.prices import NOT_REPORTED, dollars
from flyjax.utils.format import duration

#: What ends or pauses a run early.
LIMITS = ("max_usd", "max_tokens", "max_calls", "max_wall_s", "max_nodes", "target", "patience")


def limits_text(experiment: Experiment) -> str:
    """`limits: max_usd=2, …`"""
    limits = {k: getattr(experiment.search, k) for k in LIMITS if getattr(experiment.search, k) is not None}
    return "limits: " + (", ".join(f"{k}={v:.12g}" for k, v in limits.items()) or "none")


def left(experiment: Experiment, state: State) -> tuple[int, int]:
    """(nodes, iterations) that a run may still train, those in training included; target and patience may end it before."""
    search, newest = experiment.search, state.iteration
    running = [n for n in state.nodes.values() if n.status == "running"]
    # A block that has begun goes to its end, also where n_blocks is less by now.
    blocks = max(search.n_blocks, newest.block) if newest else search.n_blocks
    iterations = blocks * search.n_iter_block - (newest.number if newest else 0)
    nodes = max(0, iterations) * search.n_candidates
    if search.max_nodes is not None:
        nodes = max(0, min(nodes, search.max_nodes - len(state.nodes)))
    if not next_nodes(experiment, state, state.wall_s)[0]:
        nodes = 0
    return nodes + len(running), -(-nodes // search.n_candidates) + bool(running)


def seconds_left(experiment: Experiment, state: State) -> float | None:
    """What is left at the pace so far; None before an iteration is done."""
    done = len(state.iterations) - (state.pending is not None)
    if not done or not state.wall_s:
        return None
    seconds, limit = left(experiment, state)[1] * state.wall_s / done, experiment.search.max_wall_s
    return seconds if limit is None else min(seconds, max(0.0, limit - state.wall_s))


def left_text(experiment: Experiment, state: State) -> str:
    """`at most 8 nodes in 2 iterations are left, about 4 min`; empty where none are."""
    (nodes, iterations), seconds = left(experiment, state), seconds_left(experiment, state)
    if not iterations:
        return ""
    at_pace = "" if seconds is None else f", about {duration(seconds)} at the pace so far"
    return f"at most {nodes} node{'s' * (nodes != 1)} in {iterations} iteration{'s' * (iterations != 1)} left{at_pace}"


def _counted(used: str, limit: str | None, what: str) -> str:
    return f"{used} {what}" if limit is None else f"{used} of {limit} {what}"


def spent_text(experiment: Experiment, state: State) -> str:
    """`12 of 20 nodes, 3 of 10 calls, 84,210 tokens, $0.41 of $2 paid, 12 min worked`; money only where a model was asked."""
    search, spent = experiment.search, state.spent
    done = sum(n.status != "running" for n in state.nodes.values())
    parts = [
        _counted(
            str(done),
            search.max_nodes and str(search.max_nodes),
            "node" if (done, search.max_nodes) == (1, None) else "nodes",
        )
    ]
    if spent.calls:
        tokens = spent.input_tokens + spent.output_tokens
        some = "" if not spent.unpriced_calls else f" (of {spent.unpriced_calls} calls {NOT_REPORTED})"
        parts += [
            _counted(
                str(spent.calls),
                None if search.max_calls is None else str(search.max_calls),
                "call" if spent.calls == 1 else "calls",
            ),
            _counted(f"{tokens:,}", None if search.max_tokens is None else f"{search.max_tokens:,}", "tokens"),
            f"cost {NOT_REPORTED}"
            if spent.unpriced_calls >= spent.calls
            else _counted(dollars(spent.usd), None if search.max_usd is None else f"${search.max_usd:.12g}", "paid")
            + some,
        ]
    limit = None if search.max_wall_s is None else duration(search.max_wall_s)
    return ", ".join([*parts, _counted(duration(state.wall_s), limit, "worked")])
