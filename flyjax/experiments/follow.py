"""Trainings that several processes share: process 0 says what is trained, the others follow it.

Process 0 runs a search or a sweep as a single process would. Where it trains, it first sends what to train, and all
processes call `train_sweep` alike; between trainings the others wait. They read the recordings that process 0 made,
evaluate nothing and write nothing but their parts of the checkpoints.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from flyjax.config import Experiment, Model, Simulation, Training
from flyjax.data.cache import Recordings
from flyjax.experiments.node import NodeSpec, learner_for
from flyjax.training import Halving, train_sweep
from flyjax.utils import distributed
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import checkpoint_folder, identity

#: A file that another machine wrote may appear so much later.
SHARED_S = 15.0


def announce(
    run_dir: Path,
    experiment: Experiment,
    simulation: Simulation,
    specs: Sequence[NodeSpec],
    halving: Halving | None = None,
    saves: bool = True,
) -> None:
    """Have the other processes train these nodes too. **Arguments:** `saves`: with checkpoints."""
    if distributed.count() > 1:
        distributed.send(
            {
                "run": identity(run_dir),
                "simulation": simulation.model_dump(mode="json"),
                "model": experiment.model.model_dump(mode="json"),
                "max_disk_gb": experiment.search.max_disk_gb,
                "nodes": [(spec.training.model_dump(mode="json"), spec.seeds) for spec in specs],
                "checkpoint_every": experiment.training.checkpoint_every,
                "halving": halving,
                "saves": saves,
            }
        )


def check_shared(run_dir: Path, run: str) -> None:
    """**Raises:** `UserError` where a directory is not that of the run of this `identity`."""
    end = time.monotonic() + SHARED_S
    while not run_dir.is_dir() or identity(run_dir) != run:
        if time.monotonic() > end:
            raise UserError(
                f"{run_dir} is not the run directory of process 0: it must be on a file system that all processes share"
            )
        time.sleep(0.2)


def follow(run_dir: Path) -> None:
    """Train what process 0 says until it ends.

    **Raises:** `UserError` where `run_dir` is not the run directory of process 0, or another process was lost.
    """
    while (work := distributed.receive()) is not None:
        check_shared(run_dir, work["run"])
        simulation = Simulation.model_validate(work["simulation"])
        recordings = Recordings(simulation, run_dir / "recordings", work["max_disk_gb"], reads_only=True)
        try:
            train_sweep(
                learner_for(simulation, Model.model_validate(work["model"])),
                [Training.model_validate(training) for training, _ in work["nodes"]],
                [seeds for _, seeds in work["nodes"]],
                recordings.train,
                checkpoint_dir=checkpoint_folder(run_dir) if work["saves"] else None,
                checkpoint_every=work["checkpoint_every"],
                halving=work["halving"] and Halving(*work["halving"]),
            )
        except distributed.Stopped:
            continue
