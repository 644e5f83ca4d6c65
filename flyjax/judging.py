"""A trained node judged again from its folder: parameters, config and recordings, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from flyjax import nodes
from flyjax.config import Model, Simulation, Training, parse_experiment, read_yaml
from flyjax.errors import UserError
from flyjax.recovery import evaluate
from flyjax.recovery.lesion import lesion_metrics
from flyjax.training import load_params
from flyjax.variations import lesioned


def _folder(where: Path, node: int) -> Path:
    where = Path(where)
    if (where / "config.yaml").is_file() and (where / "params").is_dir():
        return where
    folders = sorted(p for p in (where / "nodes").glob("[0-9]*") if (p / "metrics.json").is_file())
    if not folders:
        raise UserError(f"no trained node in {where}: give a run directory (runs/quickstart) or a node's folder in it")
    if node:
        wanted = nodes.node_folder(where, node)
        if wanted not in folders:
            raise UserError(f"no node {node} in {where}; there are {', '.join(str(int(p.name)) for p in folders)}")
        return wanted

    def quality(folder: Path) -> float:
        value = json.loads((folder / "metrics.json").read_text()).get("connectivity_R2")
        return -1.0 if value is None else value

    return max(folders, key=quality)


def judge_again(where: Path, node: int, console, lesion: float = 0.0) -> None:
    """Print the metrics of each seed and draw the figures of the first one that did not diverge.

    With `lesion` > 0 also the free run after that share of the synapses is cut in fly and network.

    **Raises:** `UserError` where the node or its parameters are missing or damaged.
    """
    folder = _folder(where, node)
    stated = read_yaml((folder / "config.yaml").read_text())
    free = {"ranges": {}, "simulation_ranges": {}}
    experiment = parse_experiment(
        {k: stated[k] for k in ("simulation", "model", "training")} | {"search": free}, str(folder / "config.yaml")
    )
    simulation: Simulation = experiment.simulation
    training: Training = experiment.training
    model: Model = experiment.model
    recordings = nodes.Recordings(simulation, folder.parent.parent / "recordings")
    learner = nodes.learner_for(simulation, model)
    like = learner.init(jax.random.key(0))
    train, test = recordings.train(training.noise_model_level), recordings.test
    console.say(f"{folder}: extent {simulation.extent}, {train.visual_input_type}, noise {training.noise_model_level:g}, width {model.width}")
    losses = json.loads((folder / "metrics.json").read_text())["per_seed"]
    cut = lesioned(train, lesion) if lesion else None
    drawn = False
    for seed, told in zip(stated["seeds"], losses, strict=True):
        if told.get("final_loss") is None:
            console.say(f"seed {seed}: {told['reasons'].get('connectivity_R2', 'no result')}")
            continue
        params = load_params(folder / "params" / f"seed_{seed}", like)
        result = evaluate(learner, params, train, test, final_loss=told["final_loss"], final_loss_total=told.get("final_loss_total"))
        metrics = {k: v for k, v in result.metrics.items() if k != "reasons"}
        why = dict(result.metrics["reasons"])
        if cut is not None:
            after = lesion_metrics(learner, params, cut)[0]
            metrics, why = {**metrics, **after.values}, {**why, **after.reasons}
        console.say(f"seed {seed}")
        console.table([{"metric": k, "value": v, "note": why.get(k, "")} for k, v in metrics.items()], ["metric", "value", "note"])
        if not drawn:
            console.table(result.per_type, list(result.per_type[0]))
            nodes.write_figures(folder / "figures", result, train, test)
            console.say(f"figures in {folder / 'figures'}")
            drawn = True
