"""Evaluate trained networks again from their files."""

from __future__ import annotations

from _cli import Figures, make_app, prepare_devices, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  # the best node of a run\n
  python scripts/evaluate.py runs/quickstart\n
  python scripts/evaluate.py runs/quickstart --node 7\n
  python scripts/evaluate.py runs/quickstart/nodes/0007 --lesion 0.5\n
  python scripts/evaluate.py runs/quickstart --protocol moving_edges\n
  # the figures of a node for a paper, with their numbers\n
  python scripts/evaluate.py runs/quickstart --node 7 --figures pdf
"""


@app.command(epilog=EXAMPLES)
def main(
    where: Annotated[Path, typer.Argument(help="A run directory, or a node's folder in it.")],
    node: Annotated[int, typer.Option(help="Node of the run; 0: the one with the best connectivity_R2.")] = 0,
    lesion: Annotated[
        float, typer.Option(help="Also cut this share of the synapses in fly and network, and compare their free runs.")
    ] = 0.0,
    protocol: Annotated[
        str | None,
        typer.Option(help="Instead: the tuning of fly and network, moving_edges, flashes or white_noise."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of --protocol: KEY=VALUE, e.g. speeds=[9.7,19]; repeatable.")
    ] = None,
    figures: Figures = None,
):
    """Print and write every metric of a trained node beside the ceiling, per cell type, and draw its figures."""
    prepare_devices()
    from flyjax.cli.console import Console
    from flyjax.experiments.reevaluate import evaluate_saved_node
    from flyjax.experiments.tuning import compare_saved_node

    if protocol is not None:
        compare_saved_node(where, node, protocol, settings or (), Console())
        return
    evaluate_saved_node(where, node, Console(), lesion)


if __name__ == "__main__":
    run(app)
