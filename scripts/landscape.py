"""Map a training landscape: which settings work, which fail, and how sure that is."""

from __future__ import annotations

from _cli import Figures, make_app, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/landscape.py runs/quickstart\n
  python scripts/landscape.py runs/a runs/b --out runs/map\n
  python scripts/landscape.py trainings.csv.gz --metric V_rest_R2 --out map

Trainings of each condition (learner, ground truth, stimulus, ...) have a map of their own. How to read it:
docs/landscape.md
"""


@app.command(epilog=EXAMPLES)
def main(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories of searches and sweeps, or tables (trainings.csv.gz).")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page. Default: landscape/ in the first run directory, or beside the table."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What is mapped.")] = "connectivity_R2",
    pool: Annotated[bool, typer.Option("--pool", help="One map of all conditions together.")] = False,
    title: Annotated[str, typer.Option(help="Of the page.")] = "The training landscape",
    figures: Figures = None,
):
    """Write landscape.md, landscape.html, figures/ and trainings.csv.gz, the table of all trainings."""
    from flyjax.landscape import Trainings, fit
    from flyjax.landscape.space import ranges_of
    from flyjax.report.landscape import write_page
    from flyjax.utils.format import plural

    trainings = Trainings.read(runs)
    ranges = ranges_of(trainings)
    parts = {"all trainings": trainings} if pool else trainings.split(ranges)
    maps = {name: fit(part, ranges, metric, pool=pool) for name, part in parts.items()}
    folder = out or (runs[0] / "landscape" if runs[0].is_dir() else runs[0].parent)
    typer.echo(f"{plural(len(trainings), 'training')} of {plural(len(maps), 'condition')}")
    for path in write_page(folder, title, maps, trainings, ranges, runs):
        typer.echo(f"wrote {path}")
    for name, one in maps.items():
        typer.echo(f"{name}: {one.problem or f'R2 {one.surrogate().skill.value:.2f} on held-out configurations'}")


if __name__ == "__main__":
    run(app)
