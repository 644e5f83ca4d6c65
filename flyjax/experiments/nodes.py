"""Nodes made real: record what they need, train them together, judge each, write its folder.

This is where the rooms meet. The search loop, a sweep and a single training all go through
`train_nodes`, so a node's folder is the same whoever asked for it.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from threadpoolctl import threadpool_limits

from flyjax.config import Experiment, Model, Simulation, Training, parse_experiment
from flyjax.data.cache import Recordings
from flyjax.data.recording import Recording, known_circuit
from flyjax.models import Learner, make_learner
from flyjax.recovery import Evaluation, evaluate, extract, normal_equations
from flyjax.recovery.learned_stimulus import as_learned
from flyjax.recovery.metrics import circuit_metrics
from flyjax.report.figures import node
from flyjax.report.figures.learned_stimulus import stimulus_field_figure
from flyjax.training import Halving, Progress, Trained, save_params, train_sweep
from flyjax.training.halving import relative_error, target_spread
from flyjax.training.loggers import Watcher
from flyjax.training.train import held_out_of_field
from flyjax.utils.atomic_io import write_json
from flyjax.utils.errors import UserError, in_one_line
from flyjax.utils.system import cores


@dataclass(frozen=True)
class NodeSpec:
    """One configuration and its seeds."""

    id: int
    training: Training
    seeds: tuple[int, ...]


def node_folder(run_dir: Path, node: int) -> Path:
    """nodes/NNNN of a run."""
    return Path(run_dir) / "nodes" / f"{node:04d}"


def make_run_dir(run_dir: Path, only_look: bool = False) -> None:
    """Make a run directory where absent; `only_look` finds out whether that could work.

    **Raises:** `UserError` where a file is in the way, or the system refuses.
    """
    there = next((p for p in (Path(run_dir), *Path(run_dir).parents) if p.exists()), Path("."))
    why = (
        f"{there} is a file"
        if not there.is_dir()
        else None
        if os.access(there, os.W_OK)
        else f"{there} cannot be written"
    )
    try:
        if why is None and not only_look:
            Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror
    if why is not None:
        raise UserError(f"cannot make the run directory {run_dir}: {why}; choose another --run")


def with_simulation(experiment: Experiment, changes: Mapping[str, Any]) -> Simulation:
    """The simulation of a block. **Raises:** `UserError` where a value is not valid."""
    data = experiment.model_dump(mode="json")
    data["simulation"] |= dict(changes)
    data["search"]["simulation_ranges"] = {}  # ranges bind proposals; the block's values are checked there
    return parse_experiment(data, "simulation").simulation


@lru_cache(maxsize=4)
def _learner(what: str, model: Model) -> Learner:
    return make_learner(known_circuit(Simulation.model_validate_json(what))[0], model)


def check_readable(model: Model) -> None:
    """**Raises:** `UserError` for a model that predicts but from which W, tau and V_rest cannot be read."""
    if model.variant == "B":
        raise UserError(
            "model.variant B predicts, but its messages depend on both neurons and no circuit can be read off them: use variant A "
            "(flyjax.training.train_sweep trains B all the same)"
        )


def learner_for(simulation: Simulation, model: Model) -> Learner:
    """The learner of the circuit that is known, the same object for the same circuit and model.

    Compiled programs are found by it, so stimulus and frame numbers do not count.

    **Raises:** `UserError` for a model from which no circuit can be read, before anything is trained.
    """
    check_readable(model)
    fields = Simulation.model_fields
    shown = (
        "visual_input_type", "test_visual_input_type", "n_frames", "n_test_frames", "data_path", "frame_rate", "initial",
        "measurement_noise_level", "n_recordings", "voltage_dtype", "store_derivative", "delta_t", "clamp_tau", "solver",
        "target",
    )  # fmt: skip
    return _learner(simulation.model_copy(update={k: fields[k].default for k in shown}).model_dump_json(), model)


def pool(per_seed: Sequence[dict]) -> dict:
    """Metrics of a node: each the mean over the seeds that have it, None where none has.

    `reasons` says why a value is None, or that only some seeds have it.
    """
    out: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    names = dict.fromkeys(name for metrics in per_seed for name in metrics if name != "reasons")
    for name in names:
        values = [m.get(name) for m in per_seed]
        if name == "stimulus":  # a mark, the same for all
            out[name] = next(v for v in values if v is not None)
            continue
        known = [v for v in values if v is not None]
        out[name] = float(np.mean(known)) if known else None
        why = [m.get("reasons", {}).get(name) for m in per_seed if m.get("reasons", {}).get(name)]
        if len(known) < len(values):
            reasons[name] = (f"missing in {len(values) - len(known)} of {len(values)} seeds: " if known else "") + (
                why[0] if why else "the training diverged"
            )
    return {**out, "reasons": reasons}


def judge(learner, spec: NodeSpec, trained: Sequence[Trained], recordings: Recordings):
    """(per-seed metrics, evaluation of the best seed by final loss)."""
    train, test = recordings.train(spec.training.noise_model_level), recordings.test
    unknown = learner.learns_stimulus
    mark = {"stimulus": "field"} if unknown else {}
    held_out = held_out_of_field(spec.training, len(train.voltage)) if unknown else None
    per_seed: list[dict] = []
    best: tuple[float, Evaluation] | None = None
    for one in trained:
        cost = {"wall_s": one.wall_s, "frames_per_s": one.frames_per_s, "n_steps": one.n_steps}
        if one.stopped_at is not None:
            cost["stopped_at"] = one.stopped_at  # by successive halving; its metrics are those it had by then
        if one.diverged_at is not None:
            why = f"the training diverged at step {one.diverged_at}"
            reasons = {"connectivity_R2": why, "final_loss": why}
            per_seed.append({**mark, "connectivity_R2": None, "final_loss": None, **cost, "reasons": reasons})
            continue
        result = evaluate(
            learner,
            one.params,
            train,
            test,
            final_loss=one.final_loss,
            final_loss_total=one.final_loss_total,
            held_out=held_out,
        )
        # Losses of other batch sizes and noise levels do not compare; this does, and needs no ground truth.
        error = relative_error(one.final_loss, spec.training, train.connectome.n_neurons, target_spread(train))
        per_seed.append({**result.metrics, "final_error": error, **cost})
        # Figures show the seed with the lowest training loss: a choice that needs no ground truth.
        if best is None or one.final_loss < best[0]:
            best = (one.final_loss, result)
    return per_seed, best and best[1]


def judged(
    learner,
    specs: Sequence[NodeSpec],
    trained: Sequence[Sequence[Trained]],
    recordings: Recordings,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple]:
    """`judge` of every node, in order; several at once, because half of what one takes uses a single core.

    The first alone: it compiles what all use. No more at a time than `recordings` has room for. An interrupt waits
    for those begun, and `say` tells so: a thread in the middle of compiled code cannot be left behind.
    """
    jobs = zip(specs, trained, strict=True)
    n_workers = max(1, min(cores(), len(specs) - 1, recordings.capacity))
    ahead: deque[Future] = deque()
    # One thread of BLAS each: the cores are taken, and sums do not depend on who else is judged.
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as threads:
        try:
            yield judge(learner, *next(jobs), recordings)
            for spec, runs in jobs:
                if len(ahead) == n_workers:
                    yield ahead.popleft().result()
                held = _Held(recordings.train(spec.training.noise_model_level), recordings.test)
                ahead.append(threads.submit(_judge_beside, n_workers, learner, spec, runs, held))
            while ahead:
                yield ahead.popleft().result()
        except BaseException:
            if [job for job in ahead if not job.cancel() and not job.done()]:
                say("stopping when the nodes in judgement are done")
            raise


def _judge_beside(n: int, *what):
    with normal_equations.sharing(n):
        return judge(*what)


@dataclass(frozen=True)
class _Held:
    """The two recordings of one node, for a thread: getting them changes what `Recordings` holds."""

    own: Recording
    test: Recording

    def train(self, level: float) -> Recording:
        return self.own


def write_figures(folder: Path, evaluation: Evaluation, train: Recording, test: Recording) -> None:
    """The four pictures of a node; where the stimulus was unknown, the learned light in the place of a free run."""
    if evaluation.rollout is None:
        stimulus_field_figure(folder / "light.png", evaluation)
    else:
        node.activity_figure(folder / "activity.png", evaluation, test)
    node.recovery_figure(folder / "recovery.png", evaluation, train)
    if evaluation.embedding is not None:  # known_ode has none
        node.embedding_figure(folder / "embedding.png", evaluation, train)
    node.functions_figure(folder / "functions.png", evaluation, train)


def _write_node(run_dir, experiment, simulation, spec, trained, per_seed, evaluation, recordings) -> None:
    folder = node_folder(run_dir, spec.id)
    shutil.rmtree(folder, ignore_errors=True)  # a half-written folder of a killed process
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "node": spec.id,
                "seeds": list(spec.seeds),
                "simulation": simulation.model_dump(mode="json"),
                "model": experiment.model.model_dump(mode="json"),
                "training": spec.training.model_dump(mode="json"),
            },
            sort_keys=False,
        )
    )
    write_json(folder / "metrics.json", {**pool(per_seed), "per_seed": per_seed})
    for one in trained:
        save_params(folder / "params" / f"seed_{one.seed}", one.params)
    np.savez_compressed(folder / "losses.npz", **{f"seed_{t.seed}": t.losses for t in trained})
    if evaluation is not None:
        write_json(folder / "activity.json", evaluation.activity)
        train = recordings.train(spec.training.noise_model_level)
        write_figures(folder / "figures", evaluation, train, recordings.test)


@in_one_line()
def train_nodes(
    experiment: Experiment,
    specs: Sequence[NodeSpec],
    run_dir: Path,
    *,
    simulation: Simulation | None = None,
    recordings: Recordings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
    watcher: Watcher | None = None,
    halving: Halving | None = None,
) -> dict[int, dict]:
    """Train nodes together and write their folders. The same call after a kill goes on.

    `watcher` is told loss and connectivity_R2 along the way; `halving` stops nodes that are behind.

    **Returns:** for every node `metrics` (None if all its seeds diverged), `per_seed`, `reason` and
    `activity`, the line for the log.
    """
    simulation = simulation or experiment.simulation
    run_dir = Path(run_dir)
    if recordings is None:
        recordings = Recordings(simulation, run_dir / "recordings", experiment.search.max_disk_gb)
    say = on_stage or (lambda text: None)
    learner = learner_for(simulation, experiment.model)
    say("simulating")
    levels = sorted({spec.training.noise_model_level for spec in specs})
    for level in levels:
        recordings.train(level)
    recordings.test  # noqa: B018 (made before the training, so that a bad stimulus fails first)
    say("compiling")
    names = {
        (k, s): f"node_{spec.id:04d}/seed_{seed}" for k, spec in enumerate(specs) for s, seed in enumerate(spec.seeds)
    }
    if watcher is not None:
        watcher.start(
            {names[k, s]: spec.training.model_dump() for k, spec in enumerate(specs) for s in range(len(spec.seeds))}
        )

    def read(lane, params) -> dict[str, float]:
        """The published read-out of a network in training."""
        recording = recordings.train(specs[lane.candidate].training.noise_model_level)
        found = circuit_metrics(extract(learner, params, as_learned(learner, params, recording)), recording).as_dict()
        return {} if found["connectivity_R2"] is None else {"connectivity_R2": found["connectivity_R2"]}

    def tell(progress: Progress) -> None:
        for one in progress.lanes if watcher is not None else ():
            if one.values:
                watcher.log(one.step, names[one.lane.candidate, one.lane.replicate], one.values)
        if on_progress is not None:
            on_progress(progress)

    trained = train_sweep(
        learner,
        [spec.training for spec in specs],
        [spec.seeds for spec in specs],
        recordings.train,
        checkpoint_dir=checkpoints(run_dir),
        checkpoint_every=experiment.training.checkpoint_every,
        on_progress=tell,
        watch=read if watcher is not None or on_progress is not None else None,
        halving=halving,
    )
    out: dict[int, dict] = {}
    say("judging")
    for spec, runs, (per_seed, evaluation) in zip(
        specs, trained, judged(learner, specs, trained, recordings, say), strict=True
    ):
        say(f"judging node {spec.id}")
        _write_node(run_dir, experiment, simulation, spec, runs, per_seed, evaluation, recordings)
        metrics = pool(per_seed) if evaluation is not None else None
        reason = "" if evaluation is not None else per_seed[0]["reasons"]["connectivity_R2"]
        out[spec.id] = {
            "metrics": metrics,
            "per_seed": per_seed,
            "reason": reason,
            "activity": evaluation.activity_line if evaluation is not None else reason,
        }
    return out


def checkpoints(run_dir: Path) -> Path:
    """Where the iteration in training keeps its checkpoints."""
    return Path(run_dir) / "checkpoints"


def drop_checkpoints(run_dir: Path) -> None:
    """Once the results are journaled nobody needs them."""
    shutil.rmtree(checkpoints(run_dir), ignore_errors=True)
