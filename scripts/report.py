"""Draw the report of a run: one HTML page that can be mailed, printed and read without network."""

from __future__ import annotations

import webbrowser
from _cli import Figures, make_app, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/report.py runs/quickstart --open\n
  python scripts/report.py runs/quickstart --csv nodes.csv\n
  python scripts/report.py runs/quickstart --trainings trainings.csv\n
  python scripts/report.py runs/quickstart --transcript answers.jsonl

  # the page follows a search that runs, until Ctrl-C\n
  python scripts/report.py runs/quickstart --serve

  # side by side, in comparison.html\n
  python scripts/report.py --compare runs/a runs/b --open

A transcript is repeated without a key: meta_loop.py with --proposer replay and --set search.transcript=FILE.
Searches, sweeps and single trainings have a report. In the page, click a mark of any chart for the node behind it, and
filter nodes by words and conditions: explore connectivity_R2>0.9 batch_size=4. How to read it:
docs/how_to/read_a_run.md
"""


@app.command(epilog=EXAMPLES)
def main(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="a run directory, in progress or finished")],
    open_: Annotated[bool, typer.Option("--open", help="show the page in a browser")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="serve the page to this machine alone, new whenever the run has moved on")
    ] = False,
    port: Annotated[int, typer.Option(help="of --serve; 0: any free one", min=0, max=65535)] = 8400,
    compare: Annotated[bool, typer.Option("--compare", help="draw all RUN_DIRs on one page, side by side")] = False,
    out: Annotated[Path, typer.Option(help="the page of --compare")] = Path("comparison.html"),
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
    figures: Figures = None,
) -> None:
    """Write RUN_DIR/report.html from the run's journal and figures; safe while the run is in progress."""
    from flyjax.report.figures.run import run_figure
    from flyjax.report.html import write_comparison, write_report
    from flyjax.report.run_tables import as_csv, load_run
    from flyjax.report.serve import ReportServer
    from flyjax.report.tables import markdown_table
    from flyjax.search.proposers.replay import write_transcript
    from flyjax.utils.atomic_io import write_atomic
    from flyjax.utils.errors import UserError

    run_dir = run_dirs[0]
    if len(run_dirs) > 1 and not compare:
        raise UserError("several run directories: add --compare to draw them side by side")
    if serve:
        with ReportServer(run_dir, port) as server:
            typer.echo(f"{run_dir} at {server.address} on this machine; Ctrl-C ends it")
            if open_:
                webbrowser.open(server.address)
            server.serve_forever()
    written = [write_comparison(run_dirs, out) if compare else write_report(run_dir)]
    exported = load_run(run_dir)
    tables = {
        csv: as_csv(exported.nodes),
        trainings: as_csv(exported.trainings),
        markdown: markdown_table(exported.nodes),
    }
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
