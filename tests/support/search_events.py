"""Events of one block as short rows, for tests of what is computed from a journal."""

from __future__ import annotations

from typing import Any

from flyjax.search.journal.state import State, fold


def block_events(rows, n_iter_block: int = 12, choices: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """Events of one block. Rows are iterations, each a list of (parent, reward; None: the node failed)."""
    search = {"search": {"n_iter_block": n_iter_block}}
    out: list[dict[str, Any]] = [{"event": "run_started", "time": 0.0, "experiment": search, "protocol": ""}]
    node = 0
    for number, row in enumerate(rows, 1):
        nodes = []
        for parent, _ in row:
            node += 1
            entry = {"node": node, "parent": parent, "changes": {}, "config": {"x": node}}
            nodes.append({**entry, "strategy": "exploit", "seeds": [1]})
        base = {"iteration": number, "block": 1, "time": 0.0}
        out.append({"event": "iteration_started", "iter_in_block": number, "simulation": {}, "nodes": nodes, **base})
        for entry, (_, reward) in zip(nodes, row, strict=True):
            name = "node_failed" if reward is None else "node_finished"
            metrics = None if reward is None else {"connectivity_R2": reward}
            out.append({"event": name, "node": entry["node"], "metrics": metrics, **base})
        if choices and number in choices:
            out.append({"event": "choice", "chosen": choices[number], "reason": "", "next_parents": [], **base})
    return out


def chain(*values: float | None) -> list[list[tuple[int | str, float | None]]]:
    """Rows of one node each, every node the child of the one before."""
    return [[(k or "root", value)] for k, value in enumerate(values)]


def chain_state(*values: float | None, **kwargs: Any) -> State:
    """The state after the iterations of a `chain`."""
    return fold(block_events(chain(*values), **kwargs))
