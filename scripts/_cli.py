"""Put the checkout on the path, so that the scripts run without an installation; options that several have."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  before anything that an older Python cannot read or lacks
    sys.stderr.write("error: flyjax needs Python 3.11 or newer, this is {}.{}\n".format(*sys.version_info))
    sys.exit(2)

import os
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flyjax.cli.app import commit, make_app, prepare_devices, run  # noqa: E402

Settings = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. training.batch_size=4; repeatable.")]
Viewers = Annotated[
    list[str] | None,
    typer.Option(
        "--log", help="Also watch in tensorboard, wandb or trackio; repeatable. history.jsonl is always written."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan (programs, memory, recordings, time), train nothing.")
]
Memory = Annotated[
    float | None, typer.Option(help="With --dry-run: plan for an accelerator of so many GB instead of this machine.")
]
Devices = Annotated[int | None, typer.Option(min=1, help="With --memory: plan for so many accelerators.")]


def _also_as(ctx: typer.Context, formats: list[str] | None) -> list[str] | None:
    from flyjax.report.figures.exports import FORMATS, also_as

    for name in formats or ():
        if name not in FORMATS:
            raise typer.BadParameter(f"{name}: one of {', '.join(FORMATS)}")
    ctx.with_resource(also_as(formats or ()))
    return formats


Figures = Annotated[
    list[str] | None,
    typer.Option(
        "--figures",
        callback=_also_as,
        help="Also write every figure as svg or pdf, with the numbers behind it as CSV; repeatable.",
    ),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed", help="One of several processes that train together, started by Slurm, Open MPI or a Cloud TPU."
    ),
]
Coordinator = Annotated[
    str | None, typer.Option(help="HOST:PORT of process 0, for processes that are started by hand.")
]
Process = Annotated[int | None, typer.Option(help="Number of this process, from 0.")]
Processes = Annotated[int | None, typer.Option(help="Number of all processes.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Leave the training to so many processes of scripts/worker.py, which may come and go.",
        show_default="train here",
    ),
]  # fmt: skip


def connect(
    distributed: bool, coordinator: str | None, process: int | None, processes: int | None, dry_run: bool
) -> None:
    """Connect with the other processes, where there are any, before JAX starts."""
    if (distributed or coordinator or process is not None or processes) and not dry_run:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # JAX warns of how the processes are connected
        from flyjax.utils import distributed as group

        group.connect(coordinator, process, processes)


def use_workers(n_workers: int | None, dry_run: bool) -> None:
    """Have workers train, where there shall be some."""
    if n_workers is not None and not dry_run:
        from flyjax.experiments import workers
        from flyjax.utils import distributed
        from flyjax.utils.errors import UserError

        if distributed.count() > 1:
            raise UserError("--workers and --distributed are two ways to the same end: choose one")
        workers.use(n_workers, commit())


def is_follower(run_dir: Path, experiment, dry_run: bool) -> bool:
    """Train what process 0 says, where this is another process; what process 0 has to do alone is then done."""
    from flyjax import __version__
    from flyjax.experiments.follow import follow
    from flyjax.utils import distributed, system

    if dry_run or distributed.count() == 1:
        return False
    config = distributed.digest(experiment.model_dump(mode="json"))
    distributed.check_same(
        {"config": config, "commit": commit(), "version": __version__, "JAX": system.versions()["jax"]}
    )
    if not distributed.is_leader():
        follow(run_dir)
    return not distributed.is_leader()


__all__ = [
    "ROOT",
    "Coordinator",
    "Devices",
    "Distributed",
    "DryRun",
    "Figures",
    "Memory",
    "Process",
    "Processes",
    "Settings",
    "Viewers",
    "Workers",
    "commit",
    "connect",
    "is_follower",
    "make_app",
    "prepare_devices",
    "run",
    "use_workers",
]
