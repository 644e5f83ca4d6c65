"""One of several processes on this machine: `one_of_several.py WHAT PORT PROCESS PROCESSES FOLDER [KIND]`."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402

from flyjax.cli.app import make_app, run  # noqa: E402

app = make_app()

#: Two chunks of three lanes on the smallest circuit.
EXPERIMENT = {
    "name": "several",
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 120, "n_test_frames": 60},
    "model": {"width": 8},
    "training": {"data_augmentation_loop": 20, "checkpoint_every": 10_000},
    "search": {"simulation_ranges": {}},
}
RATES, SEEDS = (1e-3, 2e-3, 3e-3), (1, 2, 3)


def train(folder: Path, stop_after: int | None = None):
    """Train the lanes; `stop_after` so many chunks as a budget that is spent would. **Returns:** a number per lane."""
    import numpy as np

    from flyjax.config import parse_experiment
    from flyjax.data.cache import Recordings
    from flyjax.experiments.follow import announce
    from flyjax.experiments.node import NodeSpec, learner_for
    from flyjax.training import train_sweep
    from flyjax.utils.errors import UserError
    from flyjax.utils.run_directory import RunDirectory

    experiment = parse_experiment(EXPERIMENT, "several")
    chunks = []

    def on_progress(progress):
        chunks.append(progress)
        if len(chunks) == stop_after:
            raise UserError("stopped by the test")

    specs = [
        NodeSpec(k, experiment.training.model_copy(update={"learning_rate_W_start": rate}), (seed,))
        for k, (rate, seed) in enumerate(zip(RATES, SEEDS, strict=True))
    ]
    with RunDirectory(folder, "sweep"):
        recordings = Recordings(experiment.simulation, folder / "recordings")
        recordings.train(specs[0].training.noise_model_level)
        announce(folder, experiment, experiment.simulation, specs)
        trained = train_sweep(
            learner_for(experiment.simulation, experiment.model),
            [spec.training for spec in specs],
            [spec.seeds for spec in specs],
            recordings.train,
            checkpoint_dir=folder / "checkpoints",
            on_progress=on_progress,
        )
    return [[float(np.sum(one.losses, dtype=np.float64)), float(np.sum(one.params["W"]))] for (one,) in trained]


@app.command()
def main(
    what: str, port: int, process: int, processes: int, folder: Path, kind: Annotated[str, typer.Argument()] = ""
) -> None:
    """Connect and do something."""
    from flyjax.utils import distributed

    if what == "wait":
        distributed.LOST_S = 4.0
    elif what == "unreachable":
        distributed.CONNECT_S = 1
    distributed.connect(f"127.0.0.1:{port}", process, processes)
    if what == "train" and process:
        from flyjax.experiments.follow import follow

        follow(folder)
    elif what == "train":
        print(json.dumps(train(folder, int(kind) if kind else None)))
    elif what == "wait":
        (folder / f"{process}").touch()
        if process:
            distributed.receive()
        else:
            time.sleep(100)
    else:
        distributed.check_same({"config": kind})


if __name__ == "__main__":
    run(app)
