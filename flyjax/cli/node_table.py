"""The table of the newest nodes that a run prints after each iteration."""

from rich.table import Table
from rich.text import Text

from flyjax.report.tables import (
    SHORT_NAMES,
    changed_settings,
    describe_mutation,
    format_quantity,
    format_score,
    format_setting,
)
from flyjax.search.journal.state import Node, State
from flyjax.search.policy import measures
from flyjax.utils.format import printable

_CLASS_STYLE = {"converged": "green", "partial": "yellow", "failed": "red"}


def _describe(state: State, node: Node) -> str:
    """What became of a node: one change as `name: old -> new`, several as `name=new`, or why it failed."""
    if node.status == "failed":
        return f"failed: {node.reason or 'no reason given'}"
    changed = changed_settings(state, node)
    if node.strategy == "root" or len(changed) < 2:
        return describe_mutation(state, node, short=True)
    names = {k: SHORT_NAMES.get(k, k).removeprefix("coeff_") for k in changed}
    return ", ".join(f"{names[k]}={format_setting(new)}" for k, (_, new) in changed.items())


def node_table(state: State, iteration: int | None = None) -> Table:
    """The nodes of an iteration, the newest by default.

    `*` marks the best node of the run, `>` the one that the iteration's step chose.
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
    # Ten columns fit into 80 characters: only the mutation wraps.
    table.add_column("node", justify="right", no_wrap=True)
    table.add_column("from", justify="right", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    table.add_column("mutation", overflow="fold")
    for name in ("W", "tau", "V_rest", "clust", "r", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    chosen = state.choices[iteration].chosen if iteration in state.choices else None
    for i in it.nodes:
        node = state.nodes[i]
        metrics, is_best = node.metrics or {}, best is not None and best.id == i
        mark = ("*" if is_best else "") + (">" if chosen == i else "")
        others = ("tau_R2", "V_rest_R2", "cluster_accuracy", "test_pearson")
        table.add_row(
            Text(f"{mark}{i}"),
            Text(printable(str(node.parent))),
            Text(printable(node.strategy)),
            Text(printable(_describe(state, node))[:120]),
            Text(
                format_score(metrics.get("connectivity_R2")),
                style=_CLASS_STYLE[node.classification] if node.status != "running" else "dim",
            ),
            *(Text(format_score(metrics.get(k))) for k in others),
            Text(format_quantity(metrics.get("final_loss"))),
            style="bold" if is_best else "",
        )
    return table
