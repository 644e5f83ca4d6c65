"""Train for a search or a sweep that was started with --workers."""

from __future__ import annotations

from _cli import commit, make_app, prepare_devices, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/meta_loop.py CONFIG --run runs/full --workers 8\n
  # as often as you like, on machines that see the same run directory\n
  python scripts/worker.py runs/full

Exit code 0: the run has ended; 2: no run waits for workers, or it is of another version of JAX, flyjax or its commit;
75: the run was lost.
"""


@app.command(epilog=EXAMPLES)
def main(run_dir: Annotated[Path, typer.Argument(help="Run directory of the search or sweep.")]):
    """Train what a run hands out until the run ends; may be started before it, and stopped at any time."""
    prepare_devices()
    from flyjax.experiments.workers import work

    if not work(run_dir, commit(), typer.echo):
        typer.echo(f"the run in {run_dir} was lost", err=True)
        raise typer.Exit(75)


if __name__ == "__main__":
    run(app)
