"""The nodes of a run as tables: plain rows, Markdown, CSV, and the live table of the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from flyjax.search.journal.state import Node, State
from flyjax.search.policy import measures, ucb
from flyjax.search.proposals.types import ROOT
from flyjax.utils import format
from flyjax.utils.format import MISSING, finite, printable

#: Columns of metrics.json that a table of nodes shows, in order.
METRICS = (
    "connectivity_R2",
    "tau_R2",
    "V_rest_R2",
    "cluster_accuracy",
    "test_R2",
    "test_pearson",
    "external_input_R2",
    "final_loss",
)
COLUMNS = (
    "node",
    "block",
    "iteration",
    "parent",
    "strategy",
    "mutation",
    *METRICS,
    "reward",
    "reward_min",
    "reward_CV",
    "seeds",
    "UCB",
    "class",
    "status",
    "reason",
)
#: How the log and narrow tables call the longest names.
SHORT = {
    "learning_rate_W_start": "lr_W",
    "learning_rate_start": "lr",
    "learning_rate_embedding_start": "lr_emb",
    "noise_model_level": "noise",
    "data_augmentation_loop": "loop",
    "batch_size": "batch",
}


def number(value: Any, digits: int = 3) -> str:
    """A fraction such as R2 to `digits` decimals; a dash where there is no finite number."""
    value = finite(value)
    if value is None:
        return MISSING
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.{digits}g}"


def figures(value: Any, digits: int = 3) -> str:
    """A quantity of any size to `digits` significant figures."""
    value = finite(value)
    return MISSING if value is None else f"{value:.{digits}g}"


def setting(value: Any) -> str:
    """A value of a configuration as people write it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        mantissa, _, power = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.6g}"


def root_config(state: State) -> dict[str, Any]:
    """The baseline: the training section of the run's experiment."""
    return state.experiment.get("training") or {}


def parent_config(state: State, node: Node) -> dict[str, Any]:
    """The configuration a node's changes are against."""
    parent = state.nodes.get(node.parent) if node.parent != ROOT else None
    return parent.config if parent else root_config(state)


def mutation(state: State, node: Node, short: bool = False) -> str:
    """`name: old -> new` for every parameter that differs from the parent's."""
    if node.strategy == "root":
        return "root configuration"
    before = parent_config(state, node)
    changed = [k for k, v in node.config.items() if k in before and before[k] != v]
    if not changed:
        return "none (same configuration)"
    return ", ".join(
        f"{SHORT.get(k, k) if short else k}: {setting(before[k])} -> {setting(node.config[k])}" for k in changed
    )


def moved(state: State, node: Node) -> str:
    """The same for a terminal: one change as `name: old -> new`, several as `name=new`."""
    told = mutation(state, node, short=True)
    if told.count(" -> ") > 1:
        before = parent_config(state, node)
        new = {SHORT.get(k, k): v for k, v in node.config.items() if k in before and before[k] != v}
        told = ", ".join(f"{k.removeprefix('coeff_')}={setting(v)}" for k, v in new.items())
    return told


def ucb_scores(state: State) -> dict[int, float]:
    """UCB of every trained node at the end of its block, or now where the block goes on."""
    c = state.experiment.get("search", {}).get("ucb_c", 1.414)
    return {s.node.id: s.ucb for block in state.blocks for s in ucb.scores(state, block, c)}


def nodes_table(state: State) -> list[dict[str, Any]]:
    """One row per node, by id. Keys are `COLUMNS`; a value that does not exist is None.

    A failed node keeps its row: metrics None, `status` failed and the `reason`. `reward` is the
    objective's mean over the node's seeds, `reward_min` and `reward_CV` their minimum and
    coefficient of variation (None for a single seed).
    """
    ucb, rows = ucb_scores(state), []
    for node in sorted(state.nodes.values(), key=lambda n: n.id):
        metrics, done = node.metrics or {}, node.status != "running"
        rows.append(
            {
                "node": node.id,
                "block": node.block,
                "iteration": node.iteration,
                "parent": node.parent,
                "strategy": node.strategy,
                "mutation": mutation(state, node),
                **{name: finite(metrics.get(name)) for name in METRICS},
                "reward": node.reward,
                "reward_min": node.spread.get("min"),
                "reward_CV": node.spread.get("cv"),
                "seeds": len(node.seeds),
                "UCB": ucb.get(node.id),
                "class": node.classification if done else None,
                "status": node.status,
                "reason": node.reason or None,
            }
        )
    return rows


def cell(name: str, value: Any) -> str:
    """One value as a table shows it."""
    if value is None:
        return MISSING
    if name == "final_loss":
        return figures(value)
    return number(value) if isinstance(value, float) else str(value)


def markdown_table(rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """A pipe table; pipes and line breaks inside cells are escaped."""
    return format.markdown_table(columns, [[cell(c, r.get(c)) for c in columns] for r in rows])


def csv(rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Comma-separated values at full precision; a missing value is an empty cell."""
    return format.csv_table(columns, rows)


_CLASS_STYLE = {"converged": "green", "partial": "yellow", "failed": "red"}


def rich_table(state: State, iteration: int | None = None) -> Table:
    """The live table after an iteration (the newest by default): its nodes, the run's best marked.

    `*` is the best node of the run, `>` the one the iteration's step chose.
    """
    newest = state.iteration.number if state.iteration else None
    iteration = newest if iteration is None else iteration
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", title_justify="left", title_style="bold")
    if iteration not in state.iterations:
        table.title = "no iteration yet"
        return table
    it, best = state.iterations[iteration], measures.best_node(state)
    n_iter_block = state.experiment.get("search", {}).get("n_iter_block")
    of = f"/{n_iter_block}" if n_iter_block else ""
    table.title = (
        f"block {it.block}, iteration {it.iter_in_block}{of}: R2 of W, tau and V_rest; cluster accuracy; test r"
    )
    # Ten columns fit into 80 characters: only the mutation wraps. The highest UCB follow in lines of their own.
    table.add_column("node", justify="right", no_wrap=True)
    table.add_column("from", justify="right", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    table.add_column("mutation", overflow="fold")
    for name in ("W", "tau", "V_rest", "clust", "r", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    chosen = state.choices[iteration].chosen if iteration in state.choices else None
    for i in it.nodes:
        node = state.nodes[i]
        m, is_best = node.metrics or {}, best is not None and best.id == i
        mark = ("*" if is_best else "") + (">" if chosen == i else "")
        change = f"failed: {node.reason or 'no reason given'}" if node.status == "failed" else moved(state, node)
        style = _CLASS_STYLE[node.classification] if node.status != "running" else "dim"
        cells = [
            Text(f"{mark}{i}"),
            Text(printable(str(node.parent))),
            Text(printable(node.strategy)),
            Text(printable(change)[:120]),
        ]
        cells += [Text(number(m.get("connectivity_R2")), style=style)]
        cells += [Text(number(m.get(k))) for k in ("tau_R2", "V_rest_R2", "cluster_accuracy", "test_pearson")]
        cells.append(Text(figures(m.get("final_loss"))))
        table.add_row(*cells, style="bold" if is_best else "")
    return table
