r"""Free rollout of a trained network on a held-out, noise-free recording.

From the true state before frame 0, v <- v + delta_t f(v, luminance), with its own predictions as states. Row t of a
rollout is the state before frame t, as in a recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float

from flyjax.data.recorder import Lesioned, lesioned
from flyjax.data.recording import Recording
from flyjax.recovery.metrics import Metrics, explained
from flyjax.recovery.network_outputs import Networks, over_networks, shapes_alone, together
from flyjax.recovery.samples import moments, padded
from flyjax.utils.ahead import compile_ahead, ready

#: Frames of one compiled call; a shorter rest is padded, so that any length uses one program.
CHUNK = 250
#: A rollout has diverged where a voltage exceeds the true range by this factor.
DIVERGED = 100.0
#: test_pearson leaves out neurons whose true trace moves less than this.
MIN_TRACE_STD = 1e-3


@dataclass(frozen=True, eq=False)
class Rollout:
    """A free rollout of a network."""

    voltage: Float[np.ndarray, "T N"]  #: row 0 is the true state; rows from `divergence_frame` on are NaN
    divergence_frame: int | None  #: first frame whose state exceeds the range, None where none does


@partial(jax.jit, static_argnums=0)
def _advance(learner, params, start, luminance, dt):
    """(frames, networks, N) from a state per network."""

    def derivative(params, voltage, luminance):
        return learner.derivative(params, voltage[None], luminance[None])[0]

    def frame(voltage, luminance):
        after = voltage + dt * over_networks(derivative, params, voltage, luminance, axes=(0, None))
        return after, after

    return jax.lax.scan(frame, start, luminance)[1]


def compile_rollout_ahead(learner) -> None:
    """Begin to compile the program of a rollout, of one network at a time."""
    c = learner.connectome
    states = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, c.n_neurons), (CHUNK, c.n_columns), ())]
    compile_ahead(_advance, lambda: _advance.lower(learner, shapes_alone(learner), *states))


def rollout(learner, params, recording: Recording) -> Rollout:
    """Roll the network out over all frames of a recording, from the first state of each of its parts."""
    return rollouts(learner, together([params]), recording)[0]


def rollouts(learner, networks: Networks, recording: Recording) -> list[Rollout]:
    """`rollout` of several networks, side by side."""
    true, luminance = recording.voltage, np.asarray(recording.luminance, np.float32)
    limit = DIVERGED * max(float(np.abs(true).max()), 1.0)
    voltage = [np.empty(true.shape, np.float32) for _ in range(networks.n)]
    diverged: list[int | None] = [None] * networks.n
    size, dt = len(networks.params["W"][...]), np.float32(recording.simulation.delta_t)
    advance = ready(_advance)
    for part in recording.spans:
        for one in voltage:
            one[part.start] = true[part.start]
        for begin in range(part.start, part.stop - 1, CHUNK):
            if None not in diverged:
                break
            frames = luminance[begin : min(begin + CHUNK, part.stop - 1)]
            start = padded(np.stack([one[begin] for one in voltage]), size)
            states = np.asarray(advance(learner, networks.params, start, padded(frames, CHUNK), dt))[: len(frames)]
            for k, one in enumerate(voltage):
                one[begin + 1 : begin + 1 + len(frames)] = states[:, k]
                outside = ~(np.abs(states[:, k]).max(axis=1) <= limit)  # True for NaN too
                if diverged[k] is None and outside.any():
                    diverged[k] = begin + 1 + int(np.argmax(outside))
    for one, frame in zip(voltage, diverged, strict=True):
        one[len(one) if frame is None else frame :] = np.nan
    return [Rollout(*one) for one in zip(voltage, diverged, strict=True)]


def correlations(
    true: Float[np.ndarray, "T N"], predicted: Float[np.ndarray, "T N"], chunk: int = 1024
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Pearson correlation per neuron and the std of the true traces, in float64; NaN where either is constant."""
    (mean_a, std_a, *_), (mean_b, std_b, *_) = moments(true), moments(predicted)
    covariance = np.zeros(true.shape[1])
    for begin in range(0, len(true), chunk):
        a, b = true[begin : begin + chunk] - mean_a, predicted[begin : begin + chunk] - mean_b
        covariance += np.einsum("tn,tn->n", a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / len(true) / (std_a * std_b), std_a


def rollout_metrics(run: Rollout, recording: Recording) -> Metrics:
    """test_R2, test_pearson, test_rmse with their numbers of frames and neurons.

    test_R2 = 1 - SSE/SST pooled over frames and neurons (SST about the grand mean); test_pearson is the mean over
    neurons whose true trace has std > 1e-3 (None where a predicted trace is constant there: it has no correlation).
    First frames, where the states agree, are left out. For a diverged rollout all are None, with its frame.
    """
    metrics = Metrics()
    free = np.setdiff1d(np.arange(len(run.voltage)), [span.start for span in recording.spans])
    true, predicted = recording.voltage[free], run.voltage[free]
    metrics.put("test_frames", len(true))
    if run.divergence_frame is not None:
        metrics.put("test_divergence_frame", run.divergence_frame)
        reason = f"the rollout diverged at frame {run.divergence_frame}"
        return metrics.update(Metrics.missing(("test_R2", "test_pearson", "test_rmse"), reason))
    metrics.put("test_divergence_frame", None, "the rollout stayed finite")
    metrics.put("test_R2", *explained(true, predicted))
    metrics.put("test_rmse", float(np.sqrt(np.mean(np.square(predicted - true), dtype=np.float64))))
    r, std = correlations(true, predicted)
    r = r[std > MIN_TRACE_STD]
    metrics.put("test_pearson_neurons", len(r))
    constant = f"{np.isnan(r).sum()} of {len(r)} predicted traces are constant"
    metrics.put(
        "test_pearson",
        *((r.mean(), constant) if len(r) else (None, f"no true trace has a std above {MIN_TRACE_STD:g}")),
    )
    return metrics


def lesion_metrics(
    learner, params, recording: Recording | Lesioned, fraction: float = 0.5, seed: int = 0
) -> tuple[Metrics, Rollout]:
    """`rollout_metrics` under a lesion, with `lesion_` for `test_` in their names, and the rollout.

    **Arguments:**

    - `learner`, `params`: as in `evaluate`.
    - `recording`: a recording of the intact fly, or a lesion to use for several networks.
    - `fraction`, `seed`: of a lesion made here.
    """
    cut = recording if isinstance(recording, Lesioned) else lesioned(recording, fraction, seed)
    weight = params["W"][...] * cut.intact.astype("float32")
    run = rollout(learner, {**params, "W": weight}, cut.recording)
    found = rollout_metrics(run, cut.recording)
    renamed = Metrics(
        {name.replace("test_", "lesion_"): value for name, value in found.values.items()},
        {name.replace("test_", "lesion_"): reason for name, reason in found.reasons.items()},
    )
    renamed.put("lesion_edges", (~cut.intact).mean())
    return renamed, run
