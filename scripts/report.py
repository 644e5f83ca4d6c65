"""Draw the report of a run: one HTML page that can be mailed, printed and read without network."""

from __future__ import annotations

import webbrowser
from _cli import make_app, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app("markdown")

EPILOG = """
**Examples**

`python scripts/report.py runs/quickstart`

`python scripts/report.py runs/quickstart --open`

`python scripts/report.py runs/quickstart --csv nodes.csv --markdown nodes.md`

`python scripts/report.py runs/quickstart --transcript answers.jsonl`  then, without a key:
`python scripts/meta_loop.py --proposer replay --set search.transcript=answers.jsonl --run runs/again`
"""


@app.command(epilog=EPILOG)
def main(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="a run directory, in progress or finished")],
    open_: Annotated[bool, typer.Option("--open", help="show the page in a browser")] = False,
    csv: Annotated[Path | None, typer.Option(help="also write the table of nodes as CSV")] = None,
    markdown: Annotated[Path | None, typer.Option(help="also write the table of nodes as Markdown")] = None,
    transcript: Annotated[
        Path | None, typer.Option(help="also write the answers of the run's proposer, for --proposer replay")
    ] = None,
    tree: Annotated[Path | None, typer.Option(help="also draw the tree and the edits of the protocol as PNG")] = None,
) -> None:
    """Write RUN_DIR/report.html from the run's journal and figures; safe while the run is in progress."""
    from flyjax.report.figures.run import run_figure
    from flyjax.report.html import write_report
    from flyjax.report.tables import COLUMNS, markdown_table, nodes_table
    from flyjax.search.journal.journal import read_journal
    from flyjax.search.journal.state import fold
    from flyjax.search.proposers.replay import write_transcript
    from flyjax.utils.atomic_io import write_atomic
    from flyjax.utils.errors import UserError
    from flyjax.utils.format import csv_table

    written = [write_report(run_dir)]
    rows = nodes_table(fold(read_journal(run_dir)))
    for path, table in ((csv, csv_table(COLUMNS, rows)), (markdown, markdown_table(rows))):
        if path is None:
            continue
        try:
            write_atomic(path, table)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; name a file in an existing folder") from None
        written.append(path)
    if transcript is not None:
        written.append(write_transcript(run_dir, transcript))
    if tree is not None:
        written.append(run_figure(tree, run_dir))
    for path in written:
        typer.echo(f"wrote {path}")
    if open_ and not webbrowser.open(written[0].resolve().as_uri()):
        typer.echo("no browser found; open the file yourself")


if __name__ == "__main__":
    run(app)
