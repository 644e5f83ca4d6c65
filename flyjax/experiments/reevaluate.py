"""Evaluate a trained node again from its folder: its parameters, config and recordings."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flyjax.config import Experiment, Search, Simulation, content_hash, parse_experiment, read_yaml_file
from flyjax.data.cache import Recordings
from flyjax.data.recorder import lesioned
from flyjax.experiments.node import learner_for
from flyjax.recovery import Evaluation, closed_form, evaluate
from flyjax.recovery.metrics import Metrics, per_type, spectrum, spectrum_metrics
from flyjax.recovery.model_selection import selection
from flyjax.recovery.rollout import lesion_metrics
from flyjax.report.figures import circuit
from flyjax.report.figures.contents import node_contents
from flyjax.report.figures.drawing import draw_figures
from flyjax.report.tables import markdown_table
from flyjax.search.iteration import circuit_text
from flyjax.training import load_params
from flyjax.training.hparams import held_out_of_field
from flyjax.utils.atomic_io import write_atomic, write_json
from flyjax.utils.errors import UserError
from flyjax.utils.format import csv_table, finite
from flyjax.utils.metric_names import QUANTITIES
from flyjax.utils.run_directory import refuse_links

#: Read-outs by the suffix of their metrics, in the order of the table.
READ_OUTS = {
    "": "published", "_data": "on data", "_refit": "refit", "_refit_corrected": "refit, cor.", "_ceiling": "ceiling",
    "_ceiling_corrected": "ceiling, cor.",
}  # fmt: skip
#: Columns of the table by the ends of the metrics' names.
COLUMNS = {
    "R2": "", "slope": "_slope", "identity": "_identity", "R2 identifiable": "_identifiable",
    "slope identifiable": "_identifiable_slope",
}  # fmt: skip
LEGEND = (
    "read-outs: published formula; planes at training frames; least squares on the learned messages; least squares on "
    "the true relu (cor.: corrected for measurement noise). "
    "identifiable: over the edges and neurons that the closed form can identify"
)
#: Short column heads of the per-type table by the keys of its rows.
TYPE_COLUMNS = {
    "cell_type": "type", "n": "n", "tau_true": "tau*", "tau_learned": "tau", "tau_refit": "tau rf", "V_rest_true": "V*",
    "V_rest_learned": "V", "V_rest_refit": "V rf", "W_R2": "W R2", "W_slope": "slope", "W_R2_refit": "W R2 rf",
    "identifiable": "ident.",
}  # fmt: skip
TYPE_LEGEND = (
    "* true, rf refit, W R2 and slope of incoming weights, ident.: share of incoming edges that are identifiable"
)


def _metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def _score(metrics: Mapping) -> float:
    """connectivity_R2, or where no true weights are known test_R2."""
    value = finite(metrics.get("connectivity_R2", metrics.get("test_R2")))
    return -math.inf if value is None else value


def _nodes(run: Path) -> dict[int, Path]:
    return {int(p.parent.name): p.parent for p in sorted(run.glob("nodes/[0-9]*/metrics.json"))}


def folder_of(where: Path, node: int) -> Path:
    """The folder of a node of a run, by default (0) of the best, or the one given."""
    if (where / "config.yaml").is_file() and (where / "params").is_dir():
        return where
    folders = _nodes(where)
    if not folders:
        raise UserError(f"no trained node in {where}: give a run directory (runs/quickstart) or a node's folder in it")
    if not node:
        node = max(folders, key=lambda k: _score(_metrics(folders[k])))
    if node not in folders:
        raise UserError(f"no node {node} in {where}; there are {', '.join(map(str, folders))}")
    return folders[node]


def experiment_of(folder: Path, config: Mapping) -> Experiment:
    """The experiment that a node's config.yaml describes."""
    what = {
        **{k: config[k] for k in ("simulation", "model", "training")},
        "plugins": config.get("plugins") or {},
        "search": {"ranges": {}, "simulation_ranges": {}},
    }
    return parse_experiment(what, str(folder / "config.yaml"))


def finished_seeds(folder: Path, config: Mapping) -> dict[int, Any]:
    """The stored metrics of the seeds of a node whose trainings did not diverge, the lowest loss first."""
    earlier = zip(config["seeds"], _metrics(folder)["per_seed"], strict=True)
    finished = {seed: m for seed, m in earlier if m.get("final_loss") is not None}
    return dict(sorted(finished.items(), key=lambda item: item[1]["final_loss"]))


def _recordings(folder: Path, simulation: Simulation) -> tuple[Recordings, str]:
    """The recordings of a node from the cache of its run, or without a run from one in its folder, and a note if so."""
    path = folder.resolve()
    if not (path.parent.name == "nodes" and path.name.isdigit()):
        cache = folder / "recordings"
        return Recordings(simulation, cache), f"{folder} is not in a run (nodes/NNNN): its recordings go to {cache}"
    run = path.parent.parent
    limit, config = Search().max_disk_gb, run / "config.yaml"
    if config.exists():  # not every caller of train_nodes writes one
        try:
            limit = Search(max_disk_gb=read_yaml_file(config)["search"]["max_disk_gb"]).max_disk_gb
        except (UserError, KeyError, TypeError):
            raise UserError(
                f"{config} has no valid search.max_disk_gb: repair it, or its recordings might be removed"
            ) from None
    return Recordings(simulation, run / "recordings", limit), ""


def node_selection(where: Path) -> list[dict]:
    """Rows of `selection` for the nodes of each simulation of a run; `among` names the nodes."""
    groups: dict[str, dict[int, dict]] = {}
    for node, folder in _nodes(where).items():
        simulation = read_yaml_file(folder / "config.yaml")["simulation"]
        groups.setdefault(content_hash(simulation), {})[node] = _metrics(folder)
    rows = []
    for found in groups.values():
        first, last, n = min(found), max(found), len(found)
        among = f"{first}-{last}" if n == last - first + 1 else f"{n} nodes from {first}"
        rows += [{"among": among, **row} for row in selection(found)] if n > 1 else []
    return rows


def recovery_table(metrics: Mapping) -> list[dict]:
    """Rows by `COLUMNS`: W, tau and V_rest by every read-out, over all and over the identifiable ones."""
    return [
        {"of": quantity, "read-out": read_out, **{c: metrics.get(name + suffix + end) for c, end in COLUMNS.items()}}
        for name, quantity in QUANTITIES.items()
        for suffix, read_out in READ_OUTS.items()
        if name + suffix in metrics
    ]


def other_metrics(metrics: Mapping) -> list[dict]:
    """Everything that `recovery_table` does not show, each with its reason where it is missing."""
    why = metrics.get("reasons", {})
    shown = tuple(f"{name}{suffix}" for name in QUANTITIES for suffix in READ_OUTS)
    return [
        {"metric": k, "value": v, "note": why.get(k, "")}
        for k, v in metrics.items()
        if k not in ("reasons", "computed_on")
        and not (
            k in shown or (k.startswith(tuple(QUANTITIES)) and k.endswith(("_slope", "_identity", "_identifiable")))
        )
    ]


def type_table(result: Evaluation, train) -> list[dict]:
    """Rows per cell type: true, published and refitted values, and the share of identifiable incoming edges."""
    rows = per_type(train, result.estimate)
    if result.refit is not None:
        for row, refit in zip(rows, per_type(train, result.refit), strict=True):
            row |= {f"{k}_refit": refit[f"{k}_learned"] for k in ("tau", "V_rest")}
            row |= {f"{k}_refit": refit[k] for k in ("W_R2", "W_slope")}
    identifiable, c = closed_form(train).edges, train.connectome
    receiving = c.cell_type[c.receivers]
    for k, row in enumerate(rows):
        mine = receiving == k
        row["identifiable"] = float(identifiable[mine].mean()) if mine.any() else None
    return rows


def draw(folder: Path, result: Evaluation, train, test, console) -> Metrics:
    """Draw all figures of a node; returns the metrics of the spectra in one of them."""
    for line in draw_figures(folder, node_contents(result, train, test)):
        console.log(f"warning: {line}")
    if train.unknown:
        return Metrics()
    c = train.connectome
    true = spectrum(c, train.parameters.weight)
    learned = (
        spectrum(c, np.asarray(result.estimate.weight)),
        spectrum(c, np.asarray(result.refit.weight)) if result.refit is not None else None,
    )
    circuit.spectrum_figure(folder / "spectrum.png", c, true, learned)
    circuit.types_figure(folder / "types.png", result, train)
    circuit.type_functions_figure(folder / "type_functions.png", result, train)
    metrics = spectrum_metrics(true, learned[0])
    if result.refit is not None:
        metrics.update(spectrum_metrics(true, learned[1], "_refit"))
    return metrics


def evaluate_saved_node(where: Path, node: int, console, lesion: float = 0.0) -> None:
    """Print and write the metrics of each seed, and draw the figures of the seed with the lowest training loss.

    Writes evaluation.json, evaluation.md, per_type.csv and figures/ into the node's folder.

    **Arguments:**

    - `where`: a run directory or a node's folder.
    - `node`: the node of a run, 0 for the best.
    - `console`: prints lines and tables.
    - `lesion`: if > 0, the share of synapses that is also cut in fly and network for a free run (`lesion_R2`, ...).

    **Raises:** `UserError` where the node or its parameters are missing or damaged.
    """
    folder = folder_of(where, node)
    refuse_links(folder)
    config, stored = read_yaml_file(folder / "config.yaml"), _metrics(folder)
    experiment = experiment_of(folder, config)
    training, model = experiment.training, experiment.model
    recordings, note = _recordings(folder, experiment.simulation)
    if note:
        console.log(note)
    learner = learner_for(experiment.simulation, model)
    unknown = learner.learns_stimulus
    if lesion and experiment.simulation.recording is not None:
        raise UserError("--lesion needs a circuit that can be simulated, not a recording of one's own: leave it out")
    if lesion and unknown:
        raise UserError("--lesion needs a given stimulus, and this one was learned as a field: leave --lesion out")
    train, test = recordings.train(training.noise_model_level), recordings.test
    title = (
        f"{folder}: {circuit_text(dict(experiment.simulation))}, {train.visual_input_type}, noise "
        f"{training.noise_model_level:g}, width {model.width}, circuit {train.origin['circuit']}"
    )
    text = [f"# {title}\n\n{LEGEND}\n"]

    def show(heading: str, *tables: list[dict]) -> None:
        """Print tables, and note them for evaluation.md."""
        console.log(heading)
        text.append(f"## {heading}\n")
        for rows in filter(None, tables):
            console.table(rows, list(rows[0]))
            text.append(markdown_table(rows, list(rows[0])))

    console.log(f"{title}\n{LEGEND}")
    trained_on = stored.get("computed_on", {}).get("training", train.origin)["circuit"]  # older files have none
    if trained_on != train.origin["circuit"]:
        console.log(
            f"the node was trained on another circuit, {trained_on}: restore the parameters that it was made of"
        )
    earlier = dict(zip(config["seeds"], stored["per_seed"], strict=True))
    finished = finished_seeds(folder, config)
    for seed in [seed for seed in earlier if seed not in finished]:
        console.log(f"seed {seed}: {earlier[seed]['reasons'].get('final_loss', 'no result')}")
    if not finished:
        return
    best = min(finished, key=lambda seed: finished[seed]["final_loss"])  # needs no ground truth
    held_out = held_out_of_field(training, len(train.voltage)) if unknown else None
    cut = lesioned(train, lesion) if lesion else None
    evaluated, types, like = {}, [], learner.init(jax.random.key(0))
    for seed in finished:
        params = load_params(folder / "params" / f"seed_{seed}", like)
        losses: dict[str, Any] = {k: finished[seed].get(k) for k in ("final_loss", "final_loss_total")}
        result = evaluate(learner, params, train, test, **losses, held_out=held_out)
        metrics = Metrics(result.metrics, result.metrics["reasons"])
        if cut is not None:
            metrics.update(lesion_metrics(learner, params, cut)[0])
        if seed == best:
            metrics.update(draw(folder / "figures", result, train, test, console))
            types = type_table(result, train)
        evaluated[seed] = metrics.as_dict()
        show(f"Seed {seed}", recovery_table(evaluated[seed]), other_metrics(evaluated[seed]))
    heads = [{short: row.get(key) for key, short in TYPE_COLUMNS.items()} for row in types]
    show(f"Cell types, seed {best} ({TYPE_LEGEND})", heads)
    seeds = {str(seed): metrics for seed, metrics in evaluated.items()}
    write_json(folder / "evaluation.json", {"seeds": seeds, "figures_of_seed": best})
    write_atomic(folder / "evaluation.md", "\n".join(text))
    write_atomic(folder / "per_type.csv", csv_table(list(types[0]), types))
    if choices := node_selection(where):
        console.log(
            "choosing among the nodes of a block with and without the ground truth (value: connectivity_R2 of the "
            "chosen node; regret: its difference from the best)"
        )
        console.table(choices, list(choices[0]))
    console.log(f"evaluation.md, evaluation.json, per_type.csv in {folder}; figures in {folder / 'figures'}")
