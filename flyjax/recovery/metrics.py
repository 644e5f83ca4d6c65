r"""Scores of an estimated circuit and of its predictions, by the names of metrics.json.

R2 is the squared Pearson correlation of true and learned values (free slope and intercept), as in the published
tables; `_slope` and `_identity` (R2 to the identity line) are given beside it. A value that is not finite is None with
a reason, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse as sp
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackNoConvergence, eigs
from scipy.stats import linregress

from flyjax.circuit import Parameters
from flyjax.data.recording import Recording
from flyjax.recovery.network_outputs import GREY, NetworkOutputs
from flyjax.recovery.samples import per_recording, spread_frames
from flyjax.utils.errors import UserError

#: W pairs further apart than this are dropped before the comparison (and counted).
MAX_WEIGHT_ERROR = 5.0
#: Errors beyond which connectome-gnn leaves neurons out of its R2 to the identity line: tau in s, V_rest.
OUTLIERS = {"tau_R2": 0.1, "V_rest_R2": 0.2}
#: Held-out frames on which one-step and input metrics are computed, evenly spread.
N_EVALUATION_FRAMES = 200
#: Up to so many neurons all eigenvalues are computed, beyond it the N_EIGENVALUES by magnitude.
ALL_EIGENVALUES_UP_TO = 600
N_EIGENVALUES = 100
#: NumPy arrays; JAX arrays within compiled code.
Array = np.ndarray | jax.Array


class CircuitEstimate(NamedTuple):
    """Estimated parameters of a circuit, in the connectome's order of edges and neurons; NaN where there is none.

    `flyjax.circuit.Parameters` has the same fields, so true parameters can stand wherever an estimate is expected.
    """

    weight: Float[Array, " E"]  #: synaptic weight
    tau: Float[Array, " N"]  #: time constant, s
    v_rest: Float[Array, " N"]  #: resting potential

    @classmethod
    def from_coefficients(cls, rate, source, constant, receivers) -> CircuitEstimate:
        """The circuit of dv_i/dt = -rate_i v_i + sum_j source_ij relu(v_j) + constant_i + input.

        **Arguments:**

        - `rate`: (N,) leak rate 1/tau, 1/s. Time constants are clipped to [0, 1] s.
        - `source`: (E,) coefficient of each edge's source, 1/s.
        - `constant`: (N,) coefficient V_rest / tau, 1/s.
        - `receivers`: (E,) receiving neuron of each edge.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            weight, tau, v_rest = source / rate[receivers], np.clip(1.0 / rate, 0.0, 1.0), constant / rate
        return cls(weight.astype(np.float32), tau.astype(np.float32), v_rest.astype(np.float32))

    @classmethod
    def missing(cls, connectome) -> CircuitEstimate:
        """All values NaN, for a network whose functions are not finite."""
        neurons = np.full(connectome.n_neurons, np.nan, np.float32)
        return cls(np.full(connectome.n_edges, np.nan, np.float32), neurons, neurons)


@dataclass
class Metrics:
    """Values by name, and why a value is None."""

    values: dict[str, float | int | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value, reason: str | None = None) -> None:
        """Store a number; a missing or non-finite one becomes None with a reason."""
        if value is not None and not np.isfinite(value):
            value, reason = None, reason or f"the value is {value}"
        if value is None:
            self.reasons[name] = reason or "not computed"
        elif not isinstance(value, int):
            value = value.item() if isinstance(value, np.integer) else float(value)
        self.values[name] = value

    def update(self, *others: Metrics) -> Metrics:
        """Add all values and reasons of other objects; returns itself."""
        for other in others:
            self.values.update(other.values)
            self.reasons.update(other.reasons)
        return self

    @classmethod
    def missing(cls, names: Iterable[str], reason: str) -> Metrics:
        """None under every name, all for one reason."""
        return cls(dict.fromkeys(names), dict.fromkeys(names, reason))

    def as_dict(self) -> dict:
        """Content of metrics.json: the values and, under 'reasons', one line per None."""
        return {**self.values, "reasons": dict(self.reasons)}


class Fit(NamedTuple):
    """Learned against true values. All None, with a reason, where they cannot be compared."""

    R2: float | None
    slope: float | None  #: of learned on true: below 1 where the learned values are attenuated
    identity: float | None  #: 1 - SSE/SST without a free slope and intercept
    n: int
    reason: str | None = None


def compare(true, learned) -> Fit:
    """Squared Pearson correlation, regression slope and R2 to the identity line, in float64."""
    true, learned = (np.asarray(a, np.float64).ravel() for a in (true, learned))
    n = len(true)
    if n != len(learned):
        raise UserError(f"{len(learned)} learned values cannot be compared with {n} true ones")
    if bad := int(np.sum(~np.isfinite(true)) + np.sum(~np.isfinite(learned))):
        return Fit(None, None, None, n, f"{bad} of {n} values are not finite")
    if n < 2:
        return Fit(None, None, None, n, f"{n} values are too few to compare")
    # A constant array has a rounding remainder, never an exact 0.
    if true.std() <= 1e-12 * np.abs(true).max():
        return Fit(None, None, None, n, "the true values are constant")
    if learned.std() <= 1e-12 * np.abs(learned).max():
        return Fit(None, 0.0, None, n, "the learned values are constant")
    line = linregress(true, learned)
    return Fit(float(line.rvalue**2), float(line.slope), explained(true, learned)[0], n)


def put_fit(metrics: Metrics, name: str, true, learned, max_error: float | None = None) -> Fit:
    """`name`, `name`_slope and `name`_identity; with `max_error`, `name`_dropped pairs are left out."""
    true, learned = np.asarray(true), np.asarray(learned)
    if max_error is not None:
        with np.errstate(invalid="ignore"):
            far = np.abs(learned - true) > max_error  # False for NaN, which `compare` reports
        true, learned = true[~far], learned[~far]
        metrics.put(f"{name}_dropped", int(far.sum()))
    fit = compare(true, learned)
    metrics.put(name, fit.R2, fit.reason)
    metrics.put(f"{name}_slope", fit.slope, fit.reason)
    metrics.put(f"{name}_identity", fit.identity, fit.reason)
    return fit


def put_without_outliers(metrics: Metrics, name: str, true, learned, max_error: float) -> None:
    """`name`_inliers, R2 to the identity line of all that is at most `max_error` off, and `name`_outliers, the rest."""
    true, learned = np.asarray(true), np.asarray(learned)
    near = np.abs(learned - true) <= max_error  # False for NaN
    metrics.put(f"{name}_outliers", 1 - near.mean())
    metrics.put(f"{name}_inliers", *(explained(true[near], learned[near]) if near.any() else (None, "none is left")))


def explained(true, predicted) -> tuple[float | None, str | None]:
    """1 - SSE/SST pooled over all entries (SST about their grand mean), or None and a reason."""
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if bad := int(np.sum(~np.isfinite(predicted))):
        return None, f"{bad} of {predicted.size} predictions are not finite"
    total = np.sum((true - true.mean()) ** 2)
    if total == 0:
        return None, "the true values are constant"
    return float(1.0 - np.sum((predicted - true) ** 2) / total), None


@per_recording
def true_tau(recording: Recording) -> Float[np.ndarray, " N"]:
    """Time constants tau* of the simulation in s: max(tau, delta_t) where it clamps, else tau."""
    tau = np.asarray(recording.parameters.tau)
    simulation = recording.simulation
    return np.maximum(tau, np.float32(simulation.delta_t)) if simulation.clamp_tau else tau


def circuit_metrics(
    estimate: CircuitEstimate | Parameters, recording: Recording, suffix: str = "", edges=None, neurons=None
) -> Metrics:
    """connectivity_R2, tau_R2 and V_rest_R2 with slope and identity, names ending in `suffix`.

    Over all neurons also tau_R2 and V_rest_R2 as connectome-gnn defines them, `put_without_outliers`. Nothing is
    compared with what is unknown of a recording of one's own.

    **Arguments:**

    - `suffix`: "_refit", "_identifiable", ...
    - `edges`, `neurons`: boolean masks of what is compared; by default everything.
    """
    true, metrics = recording.parameters, Metrics()
    edges = slice(None) if edges is None else edges
    if "weight" not in recording.unknown:
        put_fit(
            metrics,
            f"connectivity_R2{suffix}",
            np.asarray(true.weight)[edges],
            estimate.weight[edges],
            MAX_WEIGHT_ERROR,
        )
    pairs = {"tau": (true_tau(recording), estimate.tau), "v_rest": (np.asarray(true.v_rest), estimate.v_rest)}
    for quantity, (expected, found) in pairs.items():
        if quantity in recording.unknown:
            continue
        name = {"tau": "tau_R2", "v_rest": "V_rest_R2"}[quantity]
        compared = slice(None) if neurons is None else neurons
        put_fit(metrics, f"{name}{suffix}", expected[compared], found[compared])
        if neurons is None:
            put_without_outliers(metrics, f"{name}{suffix}", expected, found, OUTLIERS[name])
    return metrics


@per_recording
def evaluation_pairs(recording: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(voltage, luminance, derivative) at frames evenly spread over a recording."""
    return recording.pairs(spread_frames(len(recording.voltage), N_EVALUATION_FRAMES))


def input_metrics(grey: NetworkOutputs, recording: Recording, suffix: str = "") -> Metrics:
    """external_input_R2: the luminance that explains dv/dt at the input neurons, against the true one.

    f(v_i, a_i, msg_i, I) = dv_i/dt is solved for I by one Newton step from 0.5, which is exact for an f that is affine
    in I, from the outputs `about_grey` at the recording's `evaluation_pairs`. Squared Pearson correlation over frames
    and input neurons. Where the stimulus was learned as a field, that name is the field's
    (`learned_stimulus_metrics`), and this one ends in `_inverted`.
    """
    c = recording.connectome
    _, luminance, derivative = evaluation_pairs(recording)
    with np.errstate(divide="ignore", invalid="ignore"):
        solved = GREY + ((derivative - grey.update) / grey.derivative)[:, c.inputs]
    metrics = Metrics()
    put_fit(metrics, f"external_input_R2{suffix}", luminance[:, c.input_column], solved)
    metrics.put(f"external_input_frames{suffix}", len(luminance))
    return metrics


def one_step_metrics(found: NetworkOutputs, derivative: Float[Array, "T N"]) -> Metrics:
    """one_step_R2 = 1 - SSE/SST of dv/dt at true states of held-out frames, pooled over neurons."""
    metrics = Metrics()
    metrics.put("one_step_R2", *explained(derivative, found.update))
    metrics.put("one_step_frames", len(derivative))
    return metrics


def per_type(recording: Recording, estimate: CircuitEstimate) -> list[dict]:
    """One row per cell type: its neurons, true and learned tau and V_rest, R2 and slope of its incoming weights.

    Values that cannot be computed (one edge, constant weights) are None.
    """
    c, true = recording.connectome, recording.parameters
    weight, receiving = np.asarray(true.weight), c.cell_type[c.receivers]
    quantities = (
        ("tau", true_tau(recording), estimate.tau),
        ("V_rest", np.asarray(true.v_rest), estimate.v_rest),
    )
    rows = []
    for k, name in enumerate(c.cell_types):
        mine, edges = c.cell_type == k, receiving == k
        row = {"cell_type": name, "n": int(mine.sum()), "n_edges": int(edges.sum())}
        for label, a, b in quantities:
            row |= {
                f"{label}_true": _finite(a[mine].mean()),
                f"{label}_learned": _finite(b[mine].mean()),
                f"{label}_std": _finite(b[mine].std()),
                f"{label}_rmse": _rmse(a[mine], b[mine]),
            }
        weights = weight[edges], estimate.weight[edges]
        fit = compare(*weights)
        rows.append({**row, "W_R2": fit.R2, "W_slope": fit.slope, "W_rmse": _rmse(*weights) if edges.any() else None})
    return rows


def _finite(x) -> float | None:
    return float(x) if np.isfinite(x) else None


def _rmse(true, learned) -> float | None:
    return _finite(np.sqrt(np.mean((learned - true) ** 2)))


def spectrum(connectome, weight: Float[np.ndarray, " E"]) -> Complex[np.ndarray, " k"] | None:
    """Eigenvalues by falling magnitude; None where weights are not finite or the iteration did not converge.

    All of them up to 600 neurons, the 100 largest beyond (implicitly restarted Arnoldi, ARPACK), which may count an
    exactly repeated one, such as equal autapses, only once.
    """
    weight, n = np.asarray(weight, np.float64), connectome.n_neurons
    if not np.isfinite(weight).all():
        return None
    matrix = sp.csr_matrix((weight, (connectome.receivers, connectome.senders)), shape=(n, n))
    if n <= ALL_EIGENVALUES_UP_TO:
        values = np.linalg.eigvals(matrix.toarray())
    else:
        # Fixed, so that equal weights give equal digits; random, because a start with the symmetries of the lattice
        # would miss all other modes.
        start = np.random.default_rng(0).normal(size=n)
        try:
            values = eigs(matrix, k=N_EIGENVALUES, v0=start, tol=1e-8, return_eigenvectors=False)
        except ArpackNoConvergence:
            return None
    return values[np.lexsort((-values.imag, -values.real, -np.abs(values).round(9)))]


def spectrum_metrics(true, learned, suffix: str = "") -> Metrics:
    """Spectral radii, and spectrum_R2 of the sorted magnitudes; names of learned values end in `suffix`."""
    metrics, why = Metrics(), "the weights are not finite, or the eigenvalues did not converge"
    metrics.put("spectral_radius_true", None if true is None else abs(true[0]), why)
    metrics.put(f"spectral_radius{suffix}", None if learned is None else abs(learned[0]), why)
    if true is None or learned is None:
        metrics.put(f"spectrum_R2{suffix}", None, why)
    else:
        k = min(len(true), len(learned), N_EIGENVALUES)  # without the many near zero, which would dominate
        put_fit(metrics, f"spectrum_R2{suffix}", np.abs(true[:k]), np.abs(learned[:k]))
    return metrics
