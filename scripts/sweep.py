"""Train a grid, a list or a random sample of configurations as one batched sweep."""

from __future__ import annotations

from _cli import (
    ROOT,
    Coordinator,
    Devices,
    Distributed,
    DryRun,
    Figures,
    Memory,
    Process,
    Processes,
    Settings,
    Viewers,
    Workers,
    connect,
    is_follower,
    make_app,
    prepare_devices,
    run,
    use_workers,
)
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/sweep.py experiments/sweep_noise.yaml\n
  python scripts/sweep.py experiments/sweep_random.yaml --log tensorboard\n
  python scripts/sweep.py experiments/quickstart.yaml --set sweep.n_random=8\n
  python scripts/sweep.py --set "sweep.grid={batch_size: [1, 4]}"\n
  python scripts/sweep.py experiments/landscape_published.yaml\n
  python scripts/sweep.py experiments/full_scale.yaml --dry-run --memory 80

The same command continues a sweep that was stopped; after its end it changes nothing. To train again, give another
--run.
"""


@app.command(epilog=EXAMPLES)
def main(
    config: Annotated[
        Path,
        typer.Argument(
            help="Experiment file (YAML) with a sweep section.", show_default="experiments/sweep_noise.yaml"
        ),
    ] = ROOT / "experiments" / "sweep_noise.yaml",
    run_dir: Annotated[Path | None, typer.Option("--run", help="Where to write. Default: runs/<config name>.")] = None,
    settings: Settings = None,
    viewers: Viewers = None,
    figures: Figures = None,
    dry_run: DryRun = False,
    memory: Memory = None,
    devices: Devices = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process: Process = None,
    processes: Processes = None,
    workers: Workers = None,
):
    """Train every configuration of the sweep section with n_seeds seeds each, those of one static signature together.

    Writes nodes/ (metrics, figures, parameters of each), results.csv, results.md, report.html, parallel.png and
    history.jsonl; with sweep.output=trainings only trainings.csv, a row per training.
    """
    prepare_devices()
    connect(distributed, coordinator, process, processes, dry_run)
    use_workers(workers, dry_run)
    from flyjax.cli.console import Console
    from flyjax.cli.fallbacks import check_stimuli
    from flyjax.config import load_experiment
    from flyjax.data import with_recording
    from flyjax.experiments.sweep import describe, node_specs, run_sweep, sweep_candidates
    from flyjax.experiments.trainings import run_trainings
    from flyjax.training.loggers import MetricLogger
    from flyjax.utils.run_directory import check, run_path

    experiment = with_recording(load_experiment(config, settings))
    out = run_path(run_dir, experiment.name)
    if is_follower(out, experiment, dry_run):
        return
    check_stimuli(experiment, dry_run, search=False)
    candidates, console = sweep_candidates(experiment), Console()
    check(out, "sweep")
    MetricLogger(viewers or (), out, experiment.name)  # a missing package is an error of a dry run, too
    console.log(describe(experiment, candidates, memory, devices))
    if experiment.sweep.output == "trainings" and not dry_run:
        run_trainings(experiment, node_specs(experiment, candidates), out, console)
    elif not dry_run:
        run_sweep(experiment, candidates, out, console, viewers or ())


if __name__ == "__main__":
    run(app)
