"""Train nodes together, evaluate each and write its folder.

The search, a sweep and a single training all use `train_nodes`, so that the folders of their nodes are the same.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyjax.config import Experiment, Simulation, dump_yaml
from flyjax.data.cache import Recordings
from flyjax.data.recording import Recording
from flyjax.experiments.node import NodeSpec, evaluate_nodes, learner_for, pool_metrics
from flyjax.experiments.workers import compile_nodes_ahead, train_nodes_together
from flyjax.recovery import Evaluation, closed_form, extract
from flyjax.recovery.learned_stimulus import with_learned_stimulus
from flyjax.recovery.metrics import circuit_metrics
from flyjax.recovery.readout import N_POINTS, N_WATCHED_POINTS
from flyjax.report.figures.contents import node_contents
from flyjax.report.figures.drawing import Drawing
from flyjax.training import Halving, Progress, Trained, save_params
from flyjax.training.loggers import MetricLogger
from flyjax.utils.atomic_io import write_atomic, write_json
from flyjax.utils.errors import as_user_errors
from flyjax.utils.run_directory import node_folder, own


def write_circuit(path: Path, evaluation: Evaluation, train: Recording) -> None:
    """Write what was read off a recording of one's own: the circuit, and which of it can be identified."""
    c, bound = train.connectome, closed_form(train)
    arrays: dict[str, np.ndarray] = {
        "id": np.array(c.ids), "pre": c.senders, "post": c.receivers,
        "identifiable_edges": bound.edges, "identifiable_neurons": bound.neurons,
    }  # fmt: skip
    estimates = {"": evaluation.estimate, "_refit": evaluation.refit, "_closed_form": bound.estimate}
    for suffix, estimate in estimates.items():
        if estimate is not None:
            arrays |= {f"{name}{suffix}": getattr(estimate, name) for name in ("weight", "tau", "v_rest")}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _write_node(
    folder: Path, config: Mapping[str, Any], metrics: Mapping[str, Any], trained: Sequence[Trained]
) -> None:
    for name in ("params", "figures"):  # of a process that was killed while it wrote
        shutil.rmtree(own(folder) / name, ignore_errors=True)
    write_atomic(folder / "config.yaml", dump_yaml(config))
    write_json(folder / "metrics.json", metrics)
    for one in trained:
        save_params(folder / "params" / f"seed_{one.seed}", one.params)
    losses: dict[str, Any] = {f"seed_{t.seed}": t.losses for t in trained}
    np.savez_compressed(folder / "losses.npz", **losses)


@as_user_errors()
def train_nodes(
    experiment: Experiment,
    specs: Sequence[NodeSpec],
    run_dir: Path,
    *,
    simulation: Simulation | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    logger: MetricLogger | None = None,
    halving: Halving | None = None,
    drawing: Drawing | None = None,
) -> dict[int, dict[str, Any]]:
    """Train nodes together and write their folders; after an interruption the same call continues.

    **Arguments:**

    - `experiment`: gives the model and the defaults of what follows.
    - `specs`: the nodes.
    - `run_dir`: holds nodes/, recordings/ and checkpoints/.
    - `simulation`: what is recorded, by default the experiment's.
    - `on_progress`, `on_stage`: called after every segment of training, and with the name of each stage.
    - `logger`: receives loss and connectivity_R2 during training.
    - `halving`: stops the worst nodes early.
    - `drawing`: of the figures, which may go on after the return; by default they are drawn here.

    **Returns:** for every node `metrics` (None if all its seeds diverged), `per_seed`, `reason` and `activity`, the
    line for the log.
    """
    simulation, run_dir = simulation or experiment.simulation, Path(run_dir)
    drawing = drawing or Drawing(run_dir, n_processes=0)
    for spec in specs:  # before anything is trained
        own(node_folder(run_dir, spec.id), make=False)
    recordings = Recordings(simulation, run_dir / "recordings", experiment.search.max_disk_gb, beside=True)
    learner = learner_for(simulation, experiment.model)
    on_stage("simulating")
    compile_nodes_ahead(simulation, specs, learner)
    for level in sorted({spec.training.noise_model_level for spec in specs}):
        recordings.train(level)
    _ = recordings.test  # a stimulus that is missing is an error before the training
    on_stage("compiling")
    run_names = {
        (k, s): f"node_{spec.id:04d}/seed_{seed}" for k, spec in enumerate(specs) for s, seed in enumerate(spec.seeds)
    }
    if logger is not None:
        logger.start({name: specs[k].training.model_dump() for (k, _), name in run_names.items()})

    def read_out(lane, params, is_trained: bool) -> dict[str, float]:
        """connectivity_R2 of a network in training; what may be a lane's last reading, as it is evaluated."""
        n_points = N_POINTS if is_trained or halving is not None else N_WATCHED_POINTS
        recording = recordings.train(specs[lane.candidate].training.noise_model_level)
        recording_seen = with_learned_stimulus(learner, params, recording)
        readout = extract(learner, params, recording_seen, n_points)
        value = circuit_metrics(readout.estimate, recording).values.get("connectivity_R2")
        return {} if value is None else {"connectivity_R2": value}

    def report(progress: Progress) -> None:
        for one in progress.lanes:
            if one.values and logger is not None:
                logger.log(one.step, run_names[one.lane.candidate, one.lane.replicate], one.values)
        if on_progress is not None:
            on_progress(progress)

    trained = train_nodes_together(
        run_dir,
        experiment,
        simulation,
        specs,
        learner,
        recordings,
        on_stage=on_stage,
        on_progress=report,
        monitor=read_out if logger is not None or on_progress is not None else None,
        halving=halving,
    )
    on_stage("evaluating")
    out: dict[int, dict[str, Any]] = {}
    evaluated = evaluate_nodes(learner, specs, trained, recordings, on_stage)
    for spec, runs, (per_seed, evaluation) in zip(specs, trained, evaluated, strict=True):
        on_stage(f"drawing node {spec.id}")
        folder, metrics = node_folder(run_dir, spec.id), pool_metrics(per_seed)
        config = {
            "node": spec.id,
            "seeds": list(spec.seeds),
            "simulation": simulation.model_dump(mode="json"),
            "model": experiment.model.model_dump(mode="json"),
            **({"plugins": experiment.plugins} if experiment.plugins else {}),
            "training": spec.training.model_dump(mode="json"),
        }
        _write_node(folder, config, {**metrics, "per_seed": per_seed}, runs)
        out[spec.id] = {"metrics": metrics, "per_seed": per_seed, "reason": ""}
        if evaluation is None:
            reason = per_seed[0]["reasons"]["final_loss"]
            out[spec.id] |= {"metrics": None, "reason": reason, "activity": reason}
        else:
            out[spec.id]["activity"] = evaluation.activity_line
            write_json(folder / "activity.json", evaluation.activity)
            train = recordings.train(spec.training.noise_model_level)
            if not train.is_simulated:
                write_circuit(folder / "circuit.npz", evaluation, train)
            drawing.add(spec.id, node_contents(evaluation, train, recordings.test))
        if len(out) < len(specs):
            on_stage(f"evaluating, {len(out)} of {len(specs)} done")
    return out
