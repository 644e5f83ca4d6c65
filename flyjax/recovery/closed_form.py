r"""The closed form: the circuit by least squares on a recording, and what is identifiable.

With messages relu(v_j) known, tau dv/dt = -v + V_rest + sum_j W_ij relu(v_j) + I is linear in (1/tau, V_rest/tau,
W/tau), so each neuron is one small least-squares problem without noise in its target. For true equations, exact
voltages and all synapses known, no method does better: the closed form is an upper bound. With unknown synapses or
noisy voltages it is no bound, only the same problem without a learned network.

Not identifiable from exact voltages by any method are synapses of sources that never rise above zero, autapses of
neurons that are always above zero (collinear with the leak, so that tau, V_rest and all incoming weights are not
identifiable either), and inputs that are collinear with each other.

Identifiability depends on the recording alone, not on a learner: a regressor is identifiable where its unique standard
deviation (root mean square of its residual after regression on all other regressors of the same neuron, in units of
the voltage) is at least THRESHOLD.

With measurement noise or finite-difference targets, identifiability is that of the states behind the measurement. The
closed form itself is given the noisy data, as a learner is, and has two estimates: `_ceiling`, attenuated by the noise
in its regressors, and `_ceiling_corrected`, in the integral form and without that bias (see `errors_in_variables`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from flyjax.data import on_device
from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.models.normal_equations import (
    RIDGE,
    Solution,
    accumulate,
    prior,
    solve,
    target_noise,
)
from flyjax.recovery.errors_in_variables import corrected_estimate, debiased_relu, relu_noise
from flyjax.recovery.metrics import Array, CircuitEstimate, circuit_metrics
from flyjax.recovery.samples import per_recording

#: Least unique standard deviation of an identifiable regressor, in units of the voltage.
THRESHOLD = 3e-4
#: Frames per chunk: those of the largest networks take some 0.5 GB.
CHUNK = 1000


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """The least-squares estimate of a recording, what is identifiable, and its metrics.

    A weight is 0 where nothing in the data supports another value. `weight`, `tau` and `v_rest` are those of
    `estimate`.
    """

    estimate: CircuitEstimate
    edges: Bool[np.ndarray, " E"]  #: identifiable weights
    neurons: Bool[np.ndarray, " N"]  #: neurons with identifiable tau and V_rest
    regressors: Solution  #: the fit that identifiability is taken from
    metrics: dict

    @property
    def weight(self) -> Float[Array, " E"]:
        return self.estimate.weight

    @property
    def tau(self) -> Float[Array, " N"]:
        return self.estimate.tau

    @property
    def v_rest(self) -> Float[Array, " N"]:
        return self.estimate.v_rest

    def __repr__(self) -> str:
        m, r2 = self.metrics, self.metrics.get("connectivity_R2_ceiling")
        return (
            f"ClosedForm(W R2 {r2}, identifiable: {m['identifiable_edges']:.1%} of edges, "
            f"{m['identifiable_neurons']:.1%} of neurons)"
        )


def _chunks(
    recording: Recording, of_states: bool = False, sigma: float = 0.0
) -> Iterator[Sequence[np.ndarray | jax.Array]]:
    """Chunks for `accumulate`, of the measured voltages or the states; relu is debiased for noise `sigma`."""
    n_frames = len(recording.voltage)
    length = -(-n_frames // -(-n_frames // CHUNK))  # of equal chunks, so that all run one program
    for begin in range(0, n_frames, length):
        frames = slice(begin, begin + length)
        voltage, luminance, derivative = on_device.pairs(recording, frames)
        if of_states and (noise := recording.measurement(frames)[0]) is not None:
            voltage = voltage - noise
        with jax.enable_x64(True):
            message, *columns = _columns(recording.connectome, voltage, luminance, derivative)
        yield debiased_relu(voltage, sigma).T if sigma else message, *columns


@partial(jax.jit, static_argnums=0)
def _columns(connectome, voltage, luminance, derivative) -> tuple[jax.Array, jax.Array, jax.Array]:
    """relu(v), the input less v, and the target, each (N, frames)."""
    column = np.full(connectome.n_neurons, connectome.n_columns)
    column[connectome.inputs] = connectome.input_column
    stimulus = jnp.pad(luminance, ((0, 0), (0, 1)))[:, column]
    # In float64: the leak and an autapse differ by little.
    drive = stimulus.astype(jnp.float64) - voltage.astype(jnp.float64)
    return jnp.maximum(voltage, 0).T, drive.T, derivative.T


def _identifiable(solution: Solution, receivers) -> tuple[np.ndarray, np.ndarray]:
    """Masks of edges and neurons."""
    leak = solution.own_unique_std[:, 0] >= THRESHOLD
    edges = (solution.source_unique_std >= THRESHOLD) & leak[receivers]
    return edges, leak & (solution.constant_unique_std >= THRESHOLD)


@per_recording
def closed_form(recording: Recording, *, n_workers: int | None = None) -> ClosedForm:
    """Least squares per neuron on all frames of a recording, streamed; computed once per recording.

    **Arguments:**

    - `recording`: voltages, luminance and derivatives; its true parameters are used for the metrics only.
    - `n_workers`: threads; by default one per core.
    """
    c, noise = recording.connectome, target_noise(recording)
    sigma = measurement_noise_std(recording.simulation, recording.split)
    normal = accumulate(c, _chunks(recording), n_own=1, n_workers=n_workers)
    # Noise in the targets is averaged over all frames; weights below its remainder shrink to 0.
    ridge = prior(normal, c.receivers, normal.n_frames, noise) if noise else RIDGE
    solution = regressors = solve(normal, ridge)
    if noise:
        states = accumulate(c, _chunks(recording, of_states=True), n_own=1, n_workers=n_workers) if sigma else normal
        regressors = solve(states)
    edges, neurons = _identifiable(regressors, c.receivers)
    rate = np.where(solution.own[:, 0] > 0, solution.own[:, 0], np.nan)
    estimate = CircuitEstimate.from_coefficients(rate, solution.source, solution.constant, c.receivers)
    metrics = circuit_metrics(estimate, recording, "_ceiling").update(
        circuit_metrics(estimate, recording, "_ceiling_identifiable", edges, neurons)
    )
    metrics.put("identifiable_edges", edges.mean())
    metrics.put("identifiable_neurons", neurons.mean())
    if "weight" not in recording.unknown:
        true = np.asarray(recording.parameters.weight, np.float64)
        spread = (true - true.mean()) ** 2
        metrics.put("identifiable_weight_variance", spread[edges].sum() / spread.sum() if spread.sum() else None)
    if sigma:
        noise_of_messages, chunks = relu_noise(recording.voltage, sigma), _chunks(recording, sigma=sigma)
        corrected = corrected_estimate(recording, chunks, 1, noise_of_messages, leak_sign=-1.0, n_workers=n_workers)
        metrics.update(
            circuit_metrics(corrected, recording, "_ceiling_corrected"),
            circuit_metrics(corrected, recording, "_ceiling_corrected_identifiable", edges, neurons),
        )
    return ClosedForm(estimate, edges, neurons, regressors, metrics.as_dict())
