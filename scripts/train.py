"""Train one configuration and evaluate it."""

from __future__ import annotations

from _cli import ROOT, DryRun, Figures, Memory, Settings, Viewers, make_app, prepare_devices, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/train.py\n
  python scripts/train.py --set training.batch_size=4 --log tensorboard\n
  python scripts/train.py experiments/full_scale.yaml --run runs/one\n
  python scripts/train.py experiments/full_scale.yaml --dry-run --memory 80

The same command continues a training that was stopped; after its end it changes nothing. To train again, give another
--run.
"""


@app.command(epilog=EXAMPLES)
def main(
    config: Annotated[
        Path,
        typer.Argument(
            help="Experiment file (YAML); its training section is what is trained.",
            show_default="experiments/quickstart.yaml",
        ),
    ] = ROOT / "experiments" / "quickstart.yaml",
    run_dir: Annotated[
        Path | None, typer.Option("--run", help="Where to write. Default: runs/<config name>-train.")
    ] = None,
    settings: Settings = None,
    viewers: Viewers = None,
    figures: Figures = None,
    dry_run: DryRun = False,
    memory: Memory = None,
):
    """Train the training section of a config with its n_seeds seeds; write metrics, figures and parameters."""
    prepare_devices()
    from flyjax.cli.console import Console
    from flyjax.cli.fallbacks import check_stimuli
    from flyjax.config import load_experiment
    from flyjax.data import with_recording
    from flyjax.experiments.sweep import describe, run_sweep
    from flyjax.training.loggers import MetricLogger
    from flyjax.utils.run_directory import check, run_path

    experiment = with_recording(load_experiment(config, settings))
    out, console = run_path(run_dir, f"{experiment.name}-train"), Console()
    check(out, "train")
    MetricLogger(viewers or (), out, experiment.name)  # a missing package is an error of a dry run, too
    check_stimuli(experiment, dry_run, search=False)
    if dry_run:
        console.log(describe(experiment, [experiment.training], memory))
    else:
        run_sweep(experiment, [experiment.training], out, console, viewers or (), kind="train")


if __name__ == "__main__":
    run(app)
