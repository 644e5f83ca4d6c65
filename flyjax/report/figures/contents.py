"""What the figures of a node show: arrays and texts from its evaluation, cut down to what is drawn."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flyjax.data.recording import Recording
from flyjax.recovery import Evaluation, compare
from flyjax.recovery.metrics import MAX_WEIGHT_ERROR, true_tau
from flyjax.report.figures.node import Embedding, Functions, Recovery, StimulusField
from flyjax.report.figures.style import type_order
from flyjax.report.figures.traces import Activity
from flyjax.report.tables import format_score

#: Frames of activity.png, and traces at most; a recording of one's own may have more types.
N_FRAMES, MAX_TRACES = 200, 66
#: Frames and columns of the traces of a learned stimulus.
FIELD_FRAMES, FIELD_COLUMNS = 250, 4
#: Points of its scatter plot at most.
FIELD_POINTS = 6000


def node_contents(evaluation: Evaluation, train: Recording, test: Recording) -> dict[str, NamedTuple]:
    """What every figure of a node shows, by the name of its file."""
    found: dict[str, NamedTuple] = {"functions": functions(evaluation, train)}
    if evaluation.rollout is None:  # the stimulus was learned
        found["light"] = stimulus_field(evaluation)
    else:
        found["activity"] = activity(evaluation, test)
    if not train.unknown:
        found["recovery"] = recovery(evaluation, train)
    if evaluation.embedding is not None:  # known_ode has none
        found["embedding"] = embedding(evaluation, train)
    return found


def _fit_text(true: np.ndarray, learned: np.ndarray, note: str = "") -> str:
    fit = compare(true, learned)
    text = f"R² {fit.R2:.3f}, slope {fit.slope:.2f}" if fit.R2 is not None else (fit.reason or "")
    return ", ".join(filter(None, (text, note)))


def recovery(evaluation: Evaluation, train: Recording) -> Recovery:
    """Learned and true parameters; weights that the score leaves out are NaN."""
    c, p, found = train.connectome, train.parameters, evaluation.estimate
    true, tau, v_rest = np.asarray(p.weight), true_tau(train), np.asarray(p.v_rest)
    weight, raw = np.asarray(found.weight), evaluation.raw_weight
    learned_tau, learned_v_rest = np.asarray(found.tau), np.asarray(found.v_rest)
    far = np.isfinite(weight) & ~(np.abs(weight.astype(np.float64) - true) <= MAX_WEIGHT_ERROR)
    fits = (
        _fit_text(true[~far], weight[~far], f"{far.sum()} left out" if far.any() else ""),
        _fit_text(true, raw),
        _fit_text(tau, learned_tau),
        _fit_text(v_rest, learned_v_rest),
    )
    weight = np.where(far, np.float32("nan"), weight)
    return Recovery(c.cell_types, c.cell_type, true, weight, raw, tau, learned_tau, v_rest, learned_v_rest, fits)


def embedding(evaluation: Evaluation, train: Recording) -> Embedding:
    """The embedding, which the evaluation has to have, and how well clusters in it are the cell types."""
    scores = {
        "clusters, 100": "cluster_accuracy",
        "clusters, 65": "cluster_accuracy_65",
        "embedding only": "cluster_accuracy_embedding",
        "ARI": "ARI",
    }
    lines = tuple(f"{name}  {format_score(evaluation.metrics.get(key))}" for name, key in scores.items())
    return Embedding(train.connectome.cell_types, train.connectome.cell_type, np.asarray(evaluation.embedding), lines)


def functions(evaluation: Evaluation, train: Recording) -> Functions:
    """The functions of the central neuron of each type."""
    c, curves = train.connectome, evaluation.curves
    names = tuple(c.cell_types[t] for t in c.cell_type[c.central])
    return Functions(names, curves.voltage, curves.message, curves.update, curves.true_update)


def activity(evaluation: Evaluation, test: Recording) -> Activity:
    """The first held-out frames as recorded, and in the free rollout, which the evaluation has to have."""
    c, run, metrics = test.connectome, evaluation.rollout, evaluation.metrics
    assert run is not None, "the held-out stimulus is not known"
    order = type_order(c.cell_types)
    order = order[np.unique(np.linspace(0, len(order) - 1, MAX_TRACES).round().astype(int))]
    frames = slice(min(N_FRAMES, len(run.voltage)))
    true, learned = (np.asarray(x.voltage[frames][:, c.central[order]], np.float64) for x in (test, run))
    r2, r = metrics.get("test_R2"), metrics.get("test_pearson")
    if r2 is not None and r is not None:
        scale = max(float(np.ptp(true, axis=0).max()), 1e-3)
        score = f"rollout R² {r2:.3f}, mean r {r:.3f}; a row is {scale:.2g} high"
    else:
        score = metrics["reasons"].get("test_R2", "no rollout")
    seconds = np.arange(frames.stop) * test.simulation.delta_t
    names = tuple(c.cell_types[t] for t in order)
    return Activity(names, seconds, true, learned, np.asarray(test.luminance[frames]), score)


def rescaled(
    learned: Float[np.ndarray, "T n_col"], true: Float[np.ndarray, "T n_col"], frames: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "T n_col"]:
    """The learned luminance in units of the true one: a gain and an offset by least squares over `frames`."""
    gain, offset = np.polyfit(learned[frames].ravel().astype(np.float64), true[frames].ravel().astype(np.float64), 1)
    return gain * learned + offset


def columns_shown(columns: Int[np.ndarray, "n_col 2"], n: int = FIELD_COLUMNS) -> Int[np.ndarray, " n"]:
    """Indices of the central column and of others, spread evenly from near to far."""
    u, v = np.asarray(columns, np.int64).T
    order = np.lexsort((v, u, np.maximum.reduce([abs(u), abs(v), abs(u + v)])))
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


def stimulus_field(evaluation: Evaluation) -> StimulusField:
    """The luminance that was learned, with the gain and the offset that fit best over the training frames."""
    recording: Any = evaluation.recording  # with the stimulus as learned, and the true recording as its source
    held_out, true = np.asarray(evaluation.held_out), np.asarray(recording.source.luminance)
    learned = rescaled(recording.luminance, true, np.setdiff1d(np.arange(len(true)), held_out))
    shown, columns = slice(min(FIELD_FRAMES, len(true))), columns_shown(recording.connectome.columns)
    sample = np.unique(np.linspace(0, true[held_out].size - 1, FIELD_POINTS).round().astype(int))
    score = ""
    if (r2 := evaluation.metrics["external_input_R2"]) is not None:
        score = f"R² {r2:.3f} (training frames {evaluation.metrics['external_input_R2_training']:.3f})"
    return StimulusField(
        recording.connectome.columns[columns],
        np.arange(shown.stop) * recording.dt,
        true[shown, columns],
        learned[shown, columns],
        held_out[held_out < shown.stop],
        true[held_out].ravel()[sample],
        learned[held_out].ravel()[sample],
        score,
    )
