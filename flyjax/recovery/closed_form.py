r"""The ceiling: what the closed form recovers from a recording, given the form of the equations and all its synapses.

With messages relu(v_j) known, tau dv/dt = -v + V_rest + sum_j W_ij relu(v_j) + I is linear in
(1/tau, V_rest/tau, W/tau), so every neuron is one small least-squares problem without noise in its
target. Where the equations are the true ones and the voltages exact, no method does better; where
synapses are not told, or voltages are noisy, it is no bound (a learned message may make up for what
is missing, and least squares is not the best use of noisy data), only the same problem without a learner.

What exact voltages do not tell the closed form, they tell nobody: synapses of sources that never rise above zero, autapses
of neurons that are always above it (one and the same signal as their leak, which then takes tau,
V_rest and all incoming weights along), and inputs that move together.

Whether something can be told is read from the recording and this problem alone, before any learner
runs, by one threshold: a regressor counts where at least THRESHOLD of it (root mean square, in
units of the voltage) is left after all others of the same neuron are regressed out.

Where voltages are measured with noise or targets are differenced, what can be told is still judged on the states
behind the measurement; the closed form itself is given the noisy data, as a learner is, and stands twice:
`_ceiling`, attenuated by the noise in its regressors, and `_ceiling_corrected`, in the integral form and without
that bias (see `measurement`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.recovery.errors_in_variables import corrected, laid, unbent, unbent_noise, window_of
from flyjax.recovery.metrics import Metrics, circuit_metrics
from flyjax.recovery.normal_equations import RIDGE, accumulate, prior, solve, target_noise
from flyjax.recovery.readout import per_recording, stimulus_rows

THRESHOLD = 3e-4
#: Frames per piece: the pieces of the largest networks take some 0.5 GB.
PIECE = 1000


@dataclass(frozen=True, eq=False)
class Ceiling:
    """The closed form, and what can be identified."""

    weight: Float[np.ndarray, " E"]
    tau: Float[np.ndarray, " N"]  #: s
    v_rest: Float[np.ndarray, " N"]
    edges: Bool[np.ndarray, " E"]  #: weights that can be told
    neurons: Bool[np.ndarray, " N"]  #: neurons whose tau and V_rest can be told
    source_alone: Float[np.ndarray, " E"]  #: what each source says alone
    leak_alone: Float[np.ndarray, " N"]
    constant_alone: Float[np.ndarray, " N"]
    residual: Float[np.ndarray, " N"]  #: root mean square of the unexplained dv/dt, 1/s
    metrics: dict

    def __repr__(self) -> str:
        m = self.metrics
        return (
            f"Ceiling(W R2 {m['connectivity_R2_ceiling']}, identifiable: {m['identifiable_edges']:.1%} of edges, "
            f"{m['identifiable_neurons']:.1%} of neurons)"
        )


def _pieces(recording: Recording, clean: bool = False, sigma: float = 0.0):
    """Pieces for `accumulate`: of the states behind a measurement, or of what was measured, unbent for noise `sigma`."""
    for begin in range(0, len(recording.voltage), PIECE):
        frames = slice(begin, begin + PIECE)
        voltage = np.asarray(recording.voltage[frames])
        if clean and (noise := recording.measurement(frames)[0]) is not None:
            voltage = voltage - noise
        seen = stimulus_rows(recording.connectome, recording.luminance[frames])
        yield unbent(voltage, sigma).T, [(-voltage.T, seen)], recording.pairs(frames)[2].T


def _circuit(solution, connectome, slowest: float | None = None) -> dict:
    """W, tau and V_rest; a leak that is not one makes them NaN, or is that of `slowest` (s)."""
    rate = solution.own[:, 0]  # 1 / tau
    rate = rate if slowest is None else np.maximum(rate, 1.0 / slowest)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = np.where(rate > 0, 1.0 / rate, np.nan)
        v_rest, weight = solution.constant * tau, solution.source * tau[connectome.receivers]
    tau = np.clip(tau, 0.0, 1.0)
    return dict(weight=weight.astype(np.float32), tau=tau.astype(np.float32), v_rest=v_rest.astype(np.float32))


@per_recording
def closed_form(recording: Recording) -> Ceiling:
    """Least squares per neuron on a whole recording, streamed over frames; computed once per recording.

    Unidentified weights are 0 where nothing speaks for another value (see `equations.solve`).
    """
    c, noise = recording.connectome, target_noise(recording)
    sigma = measurement_noise_std(recording.simulation, recording.split)
    normal = accumulate(c, _pieces(recording), n_own=1)
    # Noise in the targets is averaged over all frames; what a weight then cannot be told from it counts as 0.
    solution = solve(normal, prior(normal, c.receivers, normal.n_frames, noise) if noise else RIDGE)
    judged = (
        solve(accumulate(c, _pieces(recording, clean=True), n_own=1)) if sigma else solve(normal) if noise else solution
    )
    leak = judged.own_alone[:, 0]
    masks = dict(
        neurons=(leak >= THRESHOLD) & (judged.constant_alone >= THRESHOLD),
        edges=(judged.source_alone >= THRESHOLD) & (leak >= THRESHOLD)[c.receivers],
    )
    result = _circuit(solution, c) | masks
    metrics = _metrics(recording, **result)
    if sigma:
        decay = window_of(recording.simulation, recording.split)
        normal = accumulate(c, laid(_pieces(recording, sigma=sigma), decay), n_own=1)
        sent = unbent_noise(recording.voltage, sigma)
        clean, ridge = corrected(normal, c, sigma, recording.dt, sent, leak_sign=-1.0, decay=decay)
        found = _Found(**_circuit(solve(clean, ridge), c, slowest=1.0))
        metrics.update(circuit_metrics(found, recording, "_ceiling_corrected"))
        metrics.update(
            circuit_metrics(found, recording, "_ceiling_corrected_identifiable", masks["edges"], masks["neurons"])
        )
    return Ceiling(
        **result,
        source_alone=judged.source_alone,
        leak_alone=leak,
        constant_alone=judged.constant_alone,
        residual=solution.residual,
        metrics=metrics.as_dict(),
    )


def _metrics(recording: Recording, weight, tau, v_rest, edges, neurons) -> Metrics:
    found = _Found(weight, tau, v_rest)
    metrics = circuit_metrics(found, recording, "_ceiling")
    metrics.update(circuit_metrics(found, recording, "_ceiling_identifiable", edges, neurons))
    true = np.asarray(recording.parameters.weight, np.float64)
    spread = (true - true.mean()) ** 2
    metrics.put("identifiable_edges", edges.mean())
    metrics.put("identifiable_neurons", neurons.mean())
    metrics.put("identifiable_weight_variance", spread[edges].sum() / spread.sum() if spread.sum() else None)
    return metrics


@dataclass(frozen=True, eq=False)
class _Found:
    weight: np.ndarray
    tau: np.ndarray
    v_rest: np.ndarray


def identifiable_metrics(found, recording: Recording, suffix: str = "") -> Metrics:
    """connectivity_R2, tau_R2 and V_rest_R2 over what the closed form can tell (`_identifiable`)."""
    ceiling = closed_form(recording)
    return circuit_metrics(found, recording, f"{suffix}_identifiable", ceiling.edges, ceiling.neurons)
