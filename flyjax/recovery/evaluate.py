"""One trained network, judged: every metric of metrics.json and the arrays its figures need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flyjax.data.recording import Recording
from flyjax.recovery.activity import activity, activity_line
from flyjax.recovery.closed_form import closed_form, identifiable_metrics
from flyjax.recovery.clusters import all_cluster_metrics
from flyjax.recovery.learned_stimulus import NO_LIGHT, as_learned, learns_stimulus, light_metrics
from flyjax.recovery.linear_readout import OnData, on_data
from flyjax.recovery.metrics import Metrics, circuit_metrics, input_metrics, one_step_metrics, per_type, true_tau
from flyjax.recovery.readout import MIN_STD, Probe, Recovered, canonical, extract, probe
from flyjax.recovery.refit import Refitted, refit
from flyjax.recovery.rollout import Rollout, rollout, rollout_metrics
from flyjax.utils.errors import UserError

N_CURVE_POINTS = 61


@dataclass(frozen=True, eq=False)
class Curves:
    """Learned functions of one neuron per cell type over the voltages it visits, mean -+ 2 std."""

    voltage: Float[np.ndarray, "types points"]
    message: Float[np.ndarray, "types points"]  #: g / s_g, to be compared with relu(v)
    update: Float[np.ndarray, "types points"]  #: f(v, a, 0, 0), 1/s
    true_update: Float[np.ndarray, "types points"]  #: (V_rest - v) / tau*, 1/s


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was recovered. `metrics` is metrics.json: numbers or None, and 'reasons' for each None."""

    metrics: dict
    found: Recovered
    raw_weight: Float[np.ndarray, " E"]  #: W as trained, before the correction
    embedding: Float[np.ndarray, "N d"] | None
    on_data: OnData  #: the read-out at training frames
    refitted: Refitted | None
    rollout: Rollout | None  #: None where the light of the held-out movie is unknown
    curves: Curves
    activity: dict  #: activity.json
    activity_line: str  #: the log's Activity: entry
    per_type: list[dict]
    seen: Recording  #: the training recording with the light that the network was given, or has learned
    held_out: Int[np.ndarray, " frames"] | None = None  #: where it was learned, the frames that it was not trained on


def representatives(connectome) -> np.ndarray:
    """One neuron per cell type: that of the central column."""
    return connectome.central


@partial(jax.jit, static_argnums=0)
def _curves(learner, params, data: Probe):
    std = jnp.maximum(data.std, MIN_STD)[:, None]
    voltage = data.mean[:, None] + std * jnp.linspace(-2.0, 2.0, N_CURVE_POINTS)[None, :]

    def at(v):
        v = v[:, None]
        return learner.message(params, v)[:, 0], learner.update(params, v, jnp.zeros_like(v), jnp.zeros_like(v))[:, 0]

    message, update = jax.lax.map(at, voltage.T)
    shown = representatives(learner.connectome)
    return voltage[shown], message.T[shown], update.T[shown]


def curves(learner, params, found: Recovered, recording: Recording) -> Curves:
    """g and f of one neuron per type, beside the truth."""
    voltage, message, update = map(np.asarray, _curves(canonical(learner), params, probe(recording)))
    shown = representatives(recording.connectome)
    tau, v_rest = true_tau(recording)[shown], np.asarray(recording.parameters.v_rest)[shown]
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = message / found.slope_g[shown, None]
    return Curves(voltage, scaled, update, (v_rest[:, None] - voltage) / tau[:, None])


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
) -> Evaluation:
    """Every metric and array of one trained network.

    A second call with other parameters of the same shapes compiles nothing.

    Args:
        learner: a `flyjax.models.Learner`, or anything with `connectome`, `message`, `update` and
            `derivative`.
        train_recording: where the functions are probed; it holds the truth.
        test_recording: held-out and noise-free, for rollout, one-step and input metrics.
        seed: of the mixtures.
        final_loss, final_loss_total: passed through to the metrics.
        with_refit: also the least-squares refit on the learned messages, names ending in `_refit`.
        with_ceiling: also the closed form of the training recording (`_ceiling`; computed once per
            recording, minutes at full scale) and every score over what it can tell (`_identifiable`). It
            knows the light, also where the network does not.
        held_out: where the stimulus was learned as a field, the frames of the training recording that it was
            not trained on. Such metrics have `stimulus: field`: read-outs at training frames, refit and one-step
            errors (on the frames held out) take the field's light, a free run on another movie is not available,
            external_input_R2 is the field's and `external_input_R2_inverted` that of inverting f on the test recording.

    **Raises:** `UserError` if recordings and learner are of different circuits, the test
    recording is noisy, or a field comes without frames held out.
    """
    c = train_recording.connectome
    if c.n_edges != len(params["W"][...]) or test_recording.connectome.n_neurons != c.n_neurons:
        raise UserError(
            f"the network has {len(params['W'][...])} edges, the recordings are of circuits with {c.n_edges} edges and "
            f"{test_recording.connectome.n_neurons} neurons: evaluate it on recordings of its own extent"
        )
    if test_recording.noise_model_level > 0:
        raise UserError("the test recording is noisy; only a noise-free one is informative: record split='test'")
    unknown = learns_stimulus(learner)
    if unknown and held_out is None:
        raise UserError("the stimulus was learned as a field: say which training frames were held out (held_out)")
    seen = as_learned(learner, params, train_recording)
    found = extract(learner, params, seen)
    embedding = np.asarray(params["embedding"][...]) if "embedding" in params else None
    run = None if unknown else rollout(learner, params, test_recording)

    metrics = Metrics()
    if run is None:
        for name in ("test_frames", "test_R2", "test_pearson", "test_rmse"):
            metrics.put(name, None, NO_LIGHT)
        metrics.update(one_step_metrics(learner, params, seen, held_out))
        metrics.update(light_metrics(seen, held_out))
    else:
        metrics.update(rollout_metrics(run, test_recording))
        metrics.update(one_step_metrics(learner, params, test_recording))
    metrics.update(circuit_metrics(found, train_recording))
    at_frames = on_data(learner, params, seen)
    metrics.update(circuit_metrics(at_frames, train_recording, "_data"))
    metrics.put("update_affine_R2_data", 1.0 - np.median(at_frames.bend))
    refitted = refit(learner, params, seen, found) if with_refit else None
    if refitted is not None:
        metrics.update(circuit_metrics(refitted, train_recording, "_refit"))
        if refitted.corrected is not None:
            metrics.update(circuit_metrics(refitted.corrected, train_recording, "_refit_corrected"))
    if with_ceiling:
        ceiling = dict(closed_form(train_recording).metrics)
        metrics.update(Metrics(reasons=ceiling.pop("reasons"), values=ceiling))
        metrics.update(identifiable_metrics(found, train_recording))
        metrics.update(identifiable_metrics(at_frames, train_recording, "_data"))
        if refitted is not None:
            metrics.update(identifiable_metrics(refitted, train_recording, "_refit"))
            if refitted.corrected is not None:
                metrics.update(identifiable_metrics(refitted.corrected, train_recording, "_refit_corrected"))
    metrics.update(input_metrics(learner, params, test_recording, "_inverted" if unknown else ""))
    metrics.update(all_cluster_metrics(found, embedding, train_recording, seed, refitted))
    for name, value in (("final_loss", final_loss), ("final_loss_total", final_loss_total)):
        metrics.put(name, value, "the training reported none" if value is None else None)
    summary = activity(train_recording, run)
    return Evaluation(
        metrics=({"stimulus": "field"} if unknown else {}) | metrics.as_dict(),
        found=found,
        raw_weight=np.asarray(params["W"][...]),
        embedding=embedding,
        on_data=at_frames,
        refitted=refitted,
        rollout=run,
        curves=curves(learner, params, found, seen),
        activity=summary,
        activity_line=activity_line(summary),
        per_type=per_type(train_recording, found),
        seen=seen,
        held_out=held_out if unknown else None,
    )
