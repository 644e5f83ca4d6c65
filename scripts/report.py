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

`python scripts/report.py runs/quickstart --csv nodes.csv --trainings trainings.csv`

`python scripts/report.py runs/quickstart --transcript answers.jsonl`  then, without a key:
`python scripts/meta_loop.py --proposer replay --set search.transcript=answers.jsonl --run runs/again`
"""


@app.command(epilog=EPILOG)
def main(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="a run directory, in progress or finished")],
    open_: Annotated[bool, typer.Option("--open", help="show the page in a browser")] = False,
    csv: Annotated[
        Path | None, typer.Option(help="also write the nodes as CSV: metrics, place in the tree, every setting")
    ] = None,
    trainings: Annotated[
        Path | None, typer.Option(help="also write a row per node and seed as CSV: every metric and setting")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="also write the table of nodes as Markdown")] = None,
    transcript: Annotated[
        Path | None, typer.Option(help="also write the answers of the run's proposer, for --proposer replay")
    ] = None,
    tree: Annotated[Path | None, typer.Option(help="also draw the tree and the edits of the protocol as PNG")] = None,
) -> None:
    """Write RUN_DIR/report.html from the run's journal and figures; safe while the run is in progress."""
    from flyjax.report.figures.run import run_figure
    from flyjax.report.html import write_report
    from flyjax.report.run_tables import as_csv, load_run
    from flyjax.report.tables import markdown_table
    from flyjax.search.proposers.replay import write_transcript
    from flyjax.utils.atomic_io import write_atomic
    from flyjax.utils.errors import UserError

    written = [write_report(run_dir)]
    run = load_run(run_dir)
    tables = {csv: as_csv(run.nodes), trainings: as_csv(run.trainings), markdown: markdown_table(run.nodes)}
    for path, table in tables.items():
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
