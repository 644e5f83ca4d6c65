"""Evaluation of one trained network: every metric of metrics.json, and the arrays its figures need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from flyjax.data.own_recording import has_types
from flyjax.data.recording import Recording
from flyjax.recovery.activity import activity, activity_line
from flyjax.recovery.closed_form import closed_form
from flyjax.recovery.clusters import all_cluster_metrics
from flyjax.recovery.group import Group
from flyjax.recovery.learned_stimulus import NO_STIMULUS, learned_stimulus_metrics
from flyjax.recovery.linear_readout import LinearReadout
from flyjax.recovery.metrics import (
    N_EVALUATION_FRAMES,
    CircuitEstimate,
    Metrics,
    circuit_metrics,
    evaluation_pairs,
    input_metrics,
    one_step_metrics,
    true_tau,
)
from flyjax.recovery.network_outputs import network_outputs, together
from flyjax.recovery.readout import PublishedReadout
from flyjax.recovery.refit import refit
from flyjax.recovery.rollout import Rollout, rollout_metrics
from flyjax.recovery.samples import spread_frames
from flyjax.utils import registry
from flyjax.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Curves:
    """Learned functions of the central neuron of each cell type over the voltages it visits, mean -+ 2 std."""

    voltage: Float[np.ndarray, "types points"]
    message: Float[np.ndarray, "types points"]  #: g / s_g, to be compared with relu(v)
    update: Float[np.ndarray, "types points"]  #: f(v, a, 0, 0), 1/s
    true_update: Float[np.ndarray, "types points"]  #: (V_rest - v) / tau*, 1/s


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that was recovered from one training."""

    metrics: dict  #: content of metrics.json: numbers or None, 'reasons' for each None, 'computed_on'
    estimate: CircuitEstimate  #: the published read-out
    raw_weight: Float[np.ndarray, " E"]  #: W as trained, before the correction
    embedding: Float[np.ndarray, "N d"] | None
    refit: CircuitEstimate | None  #: the least-squares refit
    rollout: Rollout | None  #: None where the stimulus of the held-out movie is unknown
    curves: Curves
    activity: dict  #: content of activity.json
    activity_line: str  #: the log's Activity: entry
    recording: Recording  #: the training recording with the luminance that the network was given, or has learned
    held_out: Int[np.ndarray, " frames"] | None = None  #: where it was learned, the frames that it was not trained on


def curves(readout: PublishedReadout, recording: Recording) -> Curves:
    """g and f of one neuron per type, beside the true ones."""
    central = recording.connectome.central
    tau, v_rest = true_tau(recording)[central], np.asarray(recording.parameters.v_rest)[central]
    voltage, message, update = readout.curves
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = message / readout.slope_g[central, None]
    return Curves(voltage, scaled, update, (v_rest[:, None] - voltage) / tau[:, None])


def conditions(train_recording: Recording, test_recording: Recording, learns_stimulus: bool) -> dict[str, Any]:
    """The entries of metrics.json that are no numbers: `computed_on`, `stimulus` where it was learned as a field, and
    what is unknown of the `ground_truth` of a recording of one's own.

    **Raises:** `UserError` where the recordings are of different circuits: no metric would mean anything.
    """
    computed_on = {"training": train_recording.origin, "held_out": test_recording.origin}
    circuits = [origin["circuit"] for origin in computed_on.values()]
    if circuits[0] != circuits[1]:
        raise UserError(
            f"the training recording is of circuit {circuits[0]}, the held-out one of {circuits[1]}: record both with "
            "the same connectome and parameters"
        )
    described = {"computed_on": computed_on} | ({"stimulus": "field"} if learns_stimulus else {})
    types = [] if train_recording.is_simulated or has_types(train_recording.connectome) else ["cell types"]
    if missing := [*train_recording.unknown, *types]:
        text = f"unknown of this recording: {', '.join(missing)}; metrics that compare with them are absent"
        described["ground_truth"] = text
    return described


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A trained network with the recordings that it is evaluated on: what metrics and read-outs are computed from.

    What follows from them is computed at first use, and once.
    """

    learner: Any  #: see `evaluate`
    params: Any  #: of the learner
    train_recording: Recording  #: where the functions are probed; it has the ground truth
    test_recording: Recording  #: held-out and noise-free
    recording: Any  #: the training recording with the luminance that the network was given, or has learned
    group: Group  #: the networks that a device evaluates together with it
    k: int  #: its number among them
    seed: int = 0  #: of the mixtures
    with_refit: bool = True
    with_ceiling: bool = True
    held_out: Int[np.ndarray, " frames"] | None = None  #: where the stimulus was learned, frames not trained on
    n_workers: int | None = None  #: threads; by default one per core

    @property
    def learns_stimulus(self) -> bool:
        return self.group.learns_stimulus

    @cached_property
    def readout(self) -> PublishedReadout:
        return self.group.readout(self.k)

    @cached_property
    def linear(self) -> LinearReadout:
        return self.group.linear(self.k)

    @cached_property
    def rollout(self) -> Rollout | None:
        """On the test recording; None where the stimulus was learned."""
        return None if self.learns_stimulus else self.group.rollout(self.k)

    @cached_property
    def estimates(self) -> dict[str, CircuitEstimate]:
        """Every read-out, by the ending of the names of its metrics: '', '_data', '_refit', or '_NAME' of a plugin."""
        found: dict[str, CircuitEstimate] = {}
        for name, read_out in registry.read_out.items():
            estimate = read_out(self)
            found |= estimate if isinstance(estimate, dict) else {f"_{name}": CircuitEstimate(*estimate)}
        return found


def published(e: Evaluated) -> dict[str, CircuitEstimate]:
    """The read-out of the publication."""
    return {"": e.readout.estimate}


def data(e: Evaluated) -> dict[str, CircuitEstimate]:
    """Lines and planes through the learned functions at training frames."""
    return {"_data": e.linear.estimate}


def refitted(e: Evaluated) -> dict[str, CircuitEstimate]:
    """Least squares on the learned messages, and its correction for measurement noise."""
    if not e.with_refit:
        return {}
    equations = e.group.equations(e.k, e.n_workers)
    found = refit(e.learner, e.params, e.recording, e.readout, e.linear, n_workers=e.n_workers, equations=equations)
    corrected = {} if found.corrected is None else {"_refit_corrected": found.corrected}
    return {"_refit": found.estimate, **corrected}


def prediction_metrics(e: Evaluated) -> Metrics:
    """Rollout and one-step errors on the test recording; with an unknown stimulus, on the held-out training frames."""
    grey = e.group.grey(e.k)
    if e.rollout is not None:
        return rollout_metrics(e.rollout, e.test_recording).update(
            one_step_metrics(e.group.held_out(e.k), evaluation_pairs(e.test_recording)[2]),
            input_metrics(grey, e.test_recording),
        )
    assert e.held_out is not None  # `evaluate` checks it
    frames = e.held_out[spread_frames(len(e.held_out), N_EVALUATION_FRAMES)]
    own_pairs = e.recording.pairs(frames)
    return Metrics.missing(("test_frames", "test_R2", "test_pearson", "test_rmse"), NO_STIMULUS).update(
        one_step_metrics(network_outputs(e.learner, together([e.params]), *own_pairs[:2])[0], own_pairs[2]),
        learned_stimulus_metrics(e.recording, e.held_out),
        input_metrics(grey, e.test_recording, "_inverted"),
    )


def recovery_metrics(e: Evaluated) -> Metrics:
    """Every read-out against the ground truth."""
    found = (circuit_metrics(estimate, e.train_recording, suffix) for suffix, estimate in e.estimates.items())
    metrics = Metrics().update(*found)
    metrics.put("update_affine_R2_data", 1.0 - np.median(e.linear.nonlinear_share))
    return metrics


def ceiling_metrics(e: Evaluated) -> Metrics:
    """The closed form of the training recording, and every read-out on what is identifiable."""
    if not e.with_ceiling:
        return Metrics()
    bound = closed_form(e.train_recording, n_workers=e.n_workers)
    identifiable = (
        circuit_metrics(estimate, e.train_recording, f"{suffix}_identifiable", bound.edges, bound.neurons)
        for suffix, estimate in e.estimates.items()
    )
    # Not into the metrics of the closed form, which is computed once per recording.
    return Metrics().update(Metrics(bound.metrics, bound.metrics["reasons"]), *identifiable)


def cluster_metrics(e: Evaluated) -> Metrics:
    """Cell types found from the published read-out and the embedding."""
    refit = e.estimates.get("_refit")
    return all_cluster_metrics(e.readout.estimate, _embedding(e.params), e.train_recording, e.seed, refit)


def _embedding(params) -> Float[np.ndarray, "N d"] | None:
    return np.asarray(params["embedding"][...]) if "embedding" in params else None


def _compute(name: str, e: Evaluated) -> Metrics:
    """One entry of the registry. A plugin's may return a number or several by name; its error is a missing value."""
    compute = registry.metric[name]
    if name not in registry.metric.own:
        return compute(e)
    try:
        value = compute(e)
    except Exception as error:  # hours of training are not lost to it
        return Metrics.missing((name,), f"{type(error).__name__}: {error}")
    metrics = Metrics()
    for key, number in value.items() if isinstance(value, Mapping) else [(name, value)]:
        metrics.put(key, number, "the plugin returned none")
    return metrics


def evaluate(
    learner,
    params,
    train_recording: Recording,
    test_recording: Recording,
    seed: int = 0,
    final_loss: float | None = None,
    final_loss_total: float | None = None,
    with_refit: bool = True,
    with_ceiling: bool = True,
    held_out: Int[np.ndarray, " frames"] | None = None,
    n_workers: int | None = None,
    place: tuple[Group, int] | None = None,
) -> Evaluation:
    """Compute every metric and array of one trained network.

    A second call with other parameters of the same shapes compiles nothing. BLAS and the mixtures use one thread.

    **Arguments:**

    - `learner`: a `flyjax.models.Learner`, or any hashable object with `connectome`, `message`, `update` and
      `derivative`.
    - `train_recording`: where the functions are probed; it has the ground truth.
    - `test_recording`: held-out and noise-free, for rollout, one-step and input metrics.
    - `seed`: of the mixtures.
    - `final_loss`, `final_loss_total`: copied to the metrics.
    - `with_refit`: whether to include the least-squares refit on the learned messages, names ending in `_refit`.
    - `with_ceiling`: whether to include the closed form of the training recording (`_ceiling`; computed once per
      recording, minutes at full scale) and every score over what is identifiable (`_identifiable`). It uses the true
      stimulus, also where the network does not.
    - `held_out`: where the stimulus was learned as a field, the frames of the training recording that it was not
      trained on. Such metrics have `stimulus: field`: read-outs at training frames, refit and one-step errors (on the
      held-out frames) use the field's luminance, there is no rollout on another movie, external_input_R2 is the
      field's, and `external_input_R2_inverted` is that of inverting f on the test recording.
    - `n_workers`: threads of the least-squares problems; by default one per core.
    - `place`: the networks that it is evaluated with, on the same recordings, and its number among them.

    **Raises:** `UserError` if recordings and learner are of different circuits, the test recording is noisy, or a field
    is given without held-out frames.
    """
    c = train_recording.connectome
    if c.n_edges != len(params["W"][...]) or test_recording.connectome.n_neurons != c.n_neurons:
        raise UserError(
            f"the network has {len(params['W'][...])} edges, the recordings are of circuits with {c.n_edges} edges and "
            f"{test_recording.connectome.n_neurons} neurons: evaluate it on recordings of its own extent"
        )
    if test_recording.noise_model_level > 0:
        raise UserError("the test recording is noisy; only a noise-free one is informative: record split='test'")
    group, k = place or (Group(learner, [params], train_recording, test_recording), 0)
    recording, unknown = group.recording, group.learns_stimulus
    described = conditions(train_recording, test_recording, unknown)
    if unknown and held_out is None:
        raise UserError("the stimulus was learned as a field: name the training frames that were held out (held_out)")
    e = Evaluated(
        learner, params, train_recording, test_recording, recording, group, k, seed, with_refit, with_ceiling, held_out,
        n_workers,
    )  # fmt: skip
    # Threads of BLAS would wait for each other longer than they compute.
    with threadpool_limits(1):
        metrics = Metrics().update(*(_compute(name, e) for name in registry.metric))
        summary = activity(train_recording, e.rollout)
    for name, value in (("final_loss", final_loss), ("final_loss_total", final_loss_total)):
        metrics.put(name, value, "the training reported none" if value is None else None)
    return Evaluation(
        metrics=described | metrics.as_dict(),
        estimate=e.readout.estimate,
        raw_weight=np.asarray(params["W"][...]),
        embedding=_embedding(params),
        refit=e.estimates.get("_refit"),
        rollout=e.rollout,
        curves=curves(e.readout, recording),
        activity=summary,
        activity_line=activity_line(summary),
        recording=recording,
        held_out=held_out if unknown else None,
    )
