"""Output for people: lines, tables, the nodes of an iteration, and progress bars."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from flyjax.cli.progress import RunProgress
from flyjax.report.tables import (
    SHORT_NAMES,
    changed_settings,
    describe_mutation,
    format_cell,
    format_quantity,
    format_score,
    format_setting,
)
from flyjax.search.journal.state import Node, State
from flyjax.search.policy import measures
from flyjax.utils.format import printable


class Console:
    """Standard output; what a search prints is also in its run directory."""

    def __init__(self):
        console = RichConsole(highlight=False)
        if console.is_jupyter:  # plain lines: a bar would need widgets, or print itself anew at every refresh
            console = RichConsole(highlight=False, force_jupyter=False, force_terminal=False)
        self.rich = console

    def log(self, text: str) -> None:
        """Print text as it is."""
        self.rich.print(text, markup=False, soft_wrap=True)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Print rows of plain values as a table, in which no number or word is cut.

        On a terminal texts wrap between words; elsewhere every row is one line.
        """
        table = Table(box=None, pad_edge=False)
        cells = [[printable(format_cell(name, row.get(name))) for row in rows] for name in columns]
        for name, column in zip(columns, cells, strict=True):
            whole = " ".join([name, *column]).split() if self.rich.is_terminal else [name, *column]
            text = bool(rows) and isinstance(rows[0].get(name), str)
            table.add_column(name, justify="left" if text else "right", min_width=max(map(cell_len, whole)))
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        self.rich.print(table, crop=False)

    def progress(self) -> RunProgress:
        """The progress of a run of several iterations."""
        return RunProgress(self.rich, self.log)

    @contextmanager
    def training_bar(self, title: str, ids: Sequence[int] = ()) -> Iterator[tuple]:
        """The progress of a single batch of trainings, see `RunProgress.iteration`."""
        with self.progress() as run, run.iteration(title, ids) as callbacks:
            yield callbacks


#: Short column heads of the metrics.
METRICS = {
    "W": "connectivity_R2", "tau": "tau_R2", "V_rest": "V_rest_R2", "clust": "cluster_accuracy", "r": "test_pearson",
}  # fmt: skip
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
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", title_justify="left", title_style="bold")
    newest = state.iteration if iteration is None else state.iterations.get(iteration)
    if newest is None:
        table.title = "no iteration yet"
        return table
    best, n_iter_block = measures.best_node(state), state.experiment.get("search", {}).get("n_iter_block")
    table.title = (
        f"block {newest.block}, iteration {newest.iter_in_block}{f'/{n_iter_block}' if n_iter_block else ''}: "
        "R2 of W, tau and V_rest; cluster accuracy; test r"
    )
    # Ten columns fit into 80 characters: only the mutation wraps.
    for name in ("node", "from", "strategy", "mutation", *METRICS, "loss"):
        justify: Any = "left" if name in ("strategy", "mutation") else "right"
        table.add_column(name, justify=justify, no_wrap=name != "mutation", overflow="fold")
    for i in newest.nodes:
        node = state.nodes[i]
        metrics, is_best = node.metrics or {}, best is not None and best.id == i
        is_chosen = newest.number in state.choices and state.choices[newest.number].chosen == i
        style = _CLASS_STYLE[node.classification] if node.status != "running" else "dim"
        table.add_row(
            Text(f"{'*' * is_best}{'>' * is_chosen}{i}"),
            Text(printable(str(node.parent))),
            Text(printable(node.strategy)),
            Text(printable(_describe(state, node))[:120]),
            *(Text(format_score(metrics.get(k)), style if k == "connectivity_R2" else "") for k in METRICS.values()),
            Text(format_quantity(metrics.get("final_loss"))),
            style="bold" if is_best else "",
        )
    return table
