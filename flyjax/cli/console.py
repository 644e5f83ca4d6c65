"""Output for people: lines, tables and progress bars."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.table import Table

from flyjax.cli.progress import RunProgress
from flyjax.report.tables import format_cell
from flyjax.utils.format import printable


class Console:
    """Standard output; what a search prints is also in its run directory."""

    def __init__(self):
        self.rich = RichConsole(highlight=False)

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
