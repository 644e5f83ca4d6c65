"""Independent workers: processes that train the programs of a run, and come and go (the extra `workers`, Dask).

The process of the run plans as if the devices of all workers were its own and hands out each program, or the part of it
that fills the devices of one worker. A worker trains it as a process alone would, from checkpoints where there are
some; the part of a worker that is lost is given to another. Results do not depend on how many workers there are, when.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from flyjax import __version__
from flyjax.config import Experiment, Simulation, Training, parse_experiment
from flyjax.data.cache import Recordings
from flyjax.experiments.follow import announce, check_shared
from flyjax.experiments.node import NodeSpec, learner_for
from flyjax.models import Learner
from flyjax.recovery.ahead import compile_evaluation_ahead
from flyjax.training import Trained, train_sweep
from flyjax.training.ahead import compile_trainings_ahead
from flyjax.training.data import computes_target
from flyjax.training.grouping import Budget, Group, Lane, device_memory, plan, sizes_of
from flyjax.utils import distributed
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import checkpoint_folder, identity
from flyjax.utils.system import versions

#: In the run directory: where workers connect to, with the key that lets them.
FILE_NAME = ".workers.json"
#: A worker that was started before the run waits so long for it.
WAIT_S = 120.0


def _dask() -> Any:
    try:
        import dask.config

        dask.config.set({"logging.distributed": "critical"})  # read once, at the import
        import distributed
    except ImportError as error:
        raise UserError(f"workers need the package {error.name}: pip install 'flyjax[workers]'") from None
    # One program at a time and worker; the others wait in the queue for whoever is free.
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    return distributed


def _facts(commit: str) -> dict[str, str]:
    """What has to be equal for equal results."""
    devices = jax.local_devices()
    return {
        "version of JAX": versions()["jax"],
        "version of flyjax": __version__,
        "commit": commit,
        "kind or number of devices": f"{len(devices)} x {devices[0].device_kind}",
    }


# --- the process of the run ---


class Pool:
    """The workers of a run, `n_workers` of which it is planned for."""

    def __init__(self, n_workers: int, commit: str):
        self.n_workers, self._facts = n_workers, _facts(commit)
        self._dask = _dask()
        self._client: Any = None

    def _open(self, run_dir: Path) -> Any:
        """A client of the scheduler, which is started at the first training: then the run directory exists."""
        if self._client is None:
            security = self._dask.Security.temporary()
            cluster = self._dask.LocalCluster(
                n_workers=0, processes=False, protocol="tls", host="0.0.0.0", dashboard_address=None, security=security,
                silence_logs=50,
            )  # fmt: skip
            pem = {name: getattr(security, name) for name in ("tls_ca_file", "tls_worker_key", "tls_worker_cert")}
            content = {"address": cluster.scheduler_address, "facts": self._facts, "security": pem}
            path, before = run_dir / FILE_NAME, os.umask(0o077)  # who can read it can run code in all workers
            write_atomic(path, json.dumps(content).encode())
            os.umask(before)
            self._client = self._dask.Client(cluster)
            for end in (cluster.close, self._client.close, path.unlink):  # the last first
                atexit.register(end)
        return self._client

    def train(
        self, run_dir: Path, work: dict[str, Any], groups: Sequence[Group], on_stage: Callable[[str], None]
    ) -> dict[tuple[int, int], Trained]:
        """Train groups; a `Trained` by candidate and number of the seed."""
        client = self._open(run_dir)
        found: dict[tuple[int, int], Trained] = {}
        futures = [client.submit(_train_part, work, p, pure=False) for p in parts(groups, jax.local_device_count())]
        for done, future in enumerate(self._dask.as_completed(futures)):
            try:
                found |= future.result()
            except self._dask.KilledWorker as error:
                raise UserError(
                    "a program ended several workers, one after the other: see their output, and run the same command "
                    "again to continue"
                ) from error
            on_stage(f"training, {done + 1} of {len(futures)} programs done")
        return found


def parts(groups: Sequence[Group], n_devices: int) -> Iterator[list[Lane]]:
    """The lanes of each program, or of each part of it that fills the devices of one worker.

    Lanes per device, and by that the order of sums, stay.
    """
    for group in groups:
        size = group.width // group.n_devices * n_devices
        yield from (list(group.lanes[k : k + size]) for k in range(0, len(group.lanes), size))


_pool: Pool | None = None


def use(n_workers: int, commit: str) -> None:
    """Have workers train from now on.

    **Raises:** `UserError` where the packages are missing.
    """
    global _pool
    _pool = Pool(n_workers, commit)


def compile_nodes_ahead(simulation: Simulation, specs: Sequence[NodeSpec], learner: Learner) -> None:
    """Begin to compile what `train_nodes_together` and an evaluation will run here, before recordings are made."""
    if _pool is None and simulation.recording is None:
        candidates, seeds = [spec.training for spec in specs], [spec.seeds for spec in specs]
        compile_trainings_ahead(learner, candidates, seeds, simulation.n_observed)
        compile_evaluation_ahead(learner)


def train_nodes_together(
    run_dir: Path,
    experiment: Experiment,
    simulation: Simulation,
    specs: Sequence[NodeSpec],
    learner: Learner,
    recordings: Recordings,
    *,
    saves: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
    **options: Any,
) -> list[list[Trained]]:
    """`train_sweep` of nodes: here, here and in the processes that follow, or by workers.

    **Arguments:** `saves`: with checkpoints; `options` of `train_sweep`, which workers do without.

    Waits until `recordings` are stored.

    **Raises:** `UserError` as `train_sweep` does, and for successive halving by workers.
    """
    candidates, seeds = [spec.training for spec in specs], [spec.seeds for spec in specs]
    if _pool is None:
        if distributed.count() > 1:
            recordings.written()  # the others read them
        announce(run_dir, experiment, simulation, specs, options.get("halving"), saves)
        try:
            return train_sweep(
                learner,
                candidates,
                seeds,
                recordings.train,
                checkpoint_dir=checkpoint_folder(run_dir) if saves else None,
                checkpoint_every=experiment.training.checkpoint_every,
                **options,
            )
        finally:  # a training that is interrupted continues with them
            recordings.written()
    if options.get("halving") is not None:
        raise UserError("sweep.halving compares all trainings at every rung: leave it out, or run without --workers")
    first = recordings.train(min(c.noise_model_level for c in candidates))
    stores_target = learner.learns_stimulus or not computes_target(first)
    sizes = sizes_of(learner, len(first.voltage), stores_target)
    budget = Budget(sizes, learner.config, device_memory(), _pool.n_workers * jax.local_device_count())
    groups = plan(candidates, seeds, sizes.n_frames, budget.limits)
    work = {
        "run": identity(run_dir),
        "experiment": experiment.model_dump(mode="json"),
        "simulation": simulation.model_dump(mode="json"),
        "candidates": [candidate.model_dump(mode="json") for candidate in candidates],
        "saves": saves,
    }
    recordings.written()
    found = _pool.train(run_dir, work, groups, on_stage)
    return [[found[k, s] for s in range(len(own))] for k, own in enumerate(seeds)]


# --- a worker ---


@dataclass
class _Place:
    """Where this worker finds the run."""

    run_dir: Path = Path()


_here = _Place()


def _train_part(work: dict[str, Any], lanes: Sequence[Lane]) -> dict[tuple[int, int], Trained]:
    run_dir = _here.run_dir
    check_shared(run_dir, work["run"])
    experiment = parse_experiment(work["experiment"], "the run")
    simulation = Simulation.model_validate(work["simulation"])
    recordings = Recordings(simulation, run_dir / "recordings", experiment.search.max_disk_gb, reads_only=True)
    trained = train_sweep(
        learner_for(simulation, experiment.model),
        [Training.model_validate(work["candidates"][lane.candidate]) for lane in lanes],
        [[lane.seed] for lane in lanes],
        recordings.train,
        checkpoint_dir=checkpoint_folder(run_dir) if work["saves"] else None,
        checkpoint_every=experiment.training.checkpoint_every,
    )
    return {(lane.candidate, lane.replicate): one for lane, (one,) in zip(lanes, trained, strict=True)}


def work(run_dir: Path, commit: str, report: Callable[[str], None]) -> bool:
    """Train what the run hands out, until it ends. **Returns:** whether it ended by itself, and was not lost.

    **Raises:** `UserError` where there is no run that waits for workers, or it is another version's.
    """
    dask, path, end, _here.run_dir = _dask(), run_dir / FILE_NAME, time.monotonic() + WAIT_S, run_dir
    while True:
        with suppress(OSError):
            found = json.loads(path.read_text(encoding="utf-8"))
            break
        if time.monotonic() > end:
            raise UserError(f"no run in {run_dir} waits for workers: start it with --workers N")
        time.sleep(1)
    for name, mine in _facts(commit).items():
        if mine != (other := found["facts"][name]):
            raise UserError(f"this worker has another {name} than the run ({mine}, not {other}): make them equal")

    async def serve() -> None:
        security = dask.Security(require_encryption=True, **found["security"])
        # Of a killed run the file remains.
        async with dask.Worker(
            found["address"], nthreads=1, security=security, memory_limit=0, dashboard=False, death_timeout=WAIT_S
        ) as worker:
            report(f"training for {run_dir} until it ends")
            await worker.finished()

    try:
        asyncio.run(serve())
    except (TimeoutError, OSError) as error:
        raise UserError(f"the run in {run_dir} does not answer at {found['address']}: start it again") from error
    return not path.exists()
