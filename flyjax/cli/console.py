"""Output for people: lines, tables and progress bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

from flyjax.cli.progress import training_progress
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
        """Print rows of plain values as a table."""
        table = Table(box=None, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="left" if rows and isinstance(rows[0].get(name), str) else "right")
        for row in rows:
            table.add_row(*(printable(format_cell(name, row.get(name))) for name in columns))
        self.rich.print(table)

    def training_bar(self, title: str, ids: Sequence[int] = ()) -> AbstractContextManager:
        """See `flyjax.cli.progress.training_progress`."""
        return training_progress(self.rich, self.log, title, ids)
