"""A random ground truth for a study: active, stable and identifiable.

With the published parameters 5 % of the neurons never rise above zero and some autapses cannot be distinguished from
the leak, so that no method can recover them. Here every cell type is biased to cross zero.
"""

from numbers import Integral

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_matrix

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters, TypeParameters, expand
from flyjax.simulation import simulate
from flyjax.utils.errors import UserError

STRENGTH_SIGMA = 0.5  #: of log synapse strength, per type pair
IN_NORM = 0.7  #: L2 norm of a neuron's in-weights, root mean square over its type
TAU_RANGE = (0.0205, 0.3)  #: s, log-uniform; above 20 ms, so that dt = 0.02 s clamps nothing
MAX_EXCITATORY_RADIUS = 0.9
MEAN_PER_STD = 0.3  #: target of the calibration
TOLERANCE = 1e-2  #: of the calibration, in standard deviations
N_SIMULATIONS = 25  #: at most; 5 to 20 are used
_FRAMES, _SETTLE, _DT = 300, 50, 0.02
#: Frames of a compiled call: as many as a second of grey before a recording, which then shares the program.
_CHUNK = 50


def calibration_stimulus(c: Connectome, n_frames: int = _FRAMES, dt: float = _DT) -> Float32[np.ndarray, "T n_col"]:
    """Drifting 1/f plane waves whose direction, speed and contrast change every 0.5 s; in [0, 1].

    Deterministic, with about the mean and contrast of a moving natural scene. `dt` in s.
    """
    rng = np.random.default_rng(20)
    # Positions on the regular hexagonal lattice.
    x = c.columns[:, 0] + c.columns[:, 1] / 2
    y = c.columns[:, 1] * np.sqrt(3) / 2
    per_segment = round(0.5 / dt)
    n_waves = 24
    segments = []
    for _ in range(-(-n_frames // per_segment)):
        period = np.exp(rng.uniform(np.log(2.5), np.log(40), n_waves))  # columns
        angle, phase = rng.uniform(0, 2 * np.pi, (2, n_waves))
        kx, ky = 2 * np.pi / period * np.array([np.cos(angle), np.sin(angle)])
        heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(2, 20)  # columns / s
        t = np.arange(per_segment) * dt
        shift = speed * t[:, None] * (kx * np.cos(heading) + ky * np.sin(heading))
        waves = np.cos(np.outer(x, kx) + np.outer(y, ky) + phase - shift[:, None, :]) @ np.sqrt(period)
        contrast = np.exp(rng.uniform(np.log(0.1), np.log(0.35)))
        segments.append(rng.uniform(0.35, 0.65) + contrast * waves / np.sqrt(period.sum() / 2))
    return np.clip(np.concatenate(segments)[:n_frames], 0, 1).astype(np.float32)


def excitatory_radius(c: Connectome, syn_strength) -> float:
    """Spectral radius of the excitatory weights alone (power iteration).

    Below 1 the circuit is bounded for any stimulus, time constants and dt <= tau*: the state stays below that of the
    linear, purely excitatory circuit, which is stable; and with bounded rates inhibition is bounded too.
    """
    excitatory = c.sign > 0
    weight = (c.n_syn * syn_strength[c.edge_pair])[excitatory]
    ends = c.receivers[excitatory], c.senders[excitatory]
    matrix = csr_matrix((weight, ends), (c.n_neurons, c.n_neurons))
    state, radius = np.ones(c.n_neurons), 0.0
    for _ in range(100):
        state = matrix @ state
        radius = float(np.linalg.norm(state))
        if radius == 0:
            break
        state /= radius
    return radius


def _type_sum(c: Connectome, per_edge) -> np.ndarray:
    """(n_types, n_types) sums over a target type's in-edges per source type, mean over its neurons."""
    total = np.zeros((c.n_types, c.n_types))
    np.add.at(total, (c.cell_type[c.receivers], c.cell_type[c.senders]), per_edge)
    return total / np.bincount(c.cell_type, minlength=c.n_types)[:, None]


def _balance(c: Connectome, strength: np.ndarray) -> np.ndarray:
    """Rescale the voltage of every type but R1..R8 such that its in-weights have the norm `IN_NORM`.

    Multiplying a type's in-weights by d and its out-weights by 1/d is a change of its unit of voltage, which leaves the
    spectral radius. The d solve a linear system in 1/d^2; it has one positive solution because no norm exceeds
    `IN_NORM` before. R1..R8 keep theirs, since the luminance enters unscaled.
    """
    square = _type_sum(c, (c.n_syn * strength[c.edge_pair]) ** 2)
    free = ~np.isin(c.cell_types, c.input_types) & (square.sum(axis=1) > 0)
    inner, outer = square[np.ix_(free, free)], square[np.ix_(free, ~free)].sum(axis=1)
    tiny = 1e-6  # d = 1 for types that no other type reaches (extent 0 has some)
    inverse_square = np.linalg.solve((IN_NORM**2 + tiny) * np.eye(free.sum()) - inner, outer + tiny)
    unit = np.ones(c.n_types)
    unit[free] = inverse_square**-0.5
    return strength * unit[c.pairs[:, 1]] / unit[c.pairs[:, 0]]


def sample_type_parameters(c: Connectome, seed: int) -> TypeParameters:
    """Random synapse strengths and time constants (s); biases are 0. The raw draws do not depend on the extent."""
    rng = np.random.default_rng(seed)
    strength = np.exp(rng.normal(0, STRENGTH_SIGMA, len(c.pairs)))
    low, high = np.log(TAU_RANGE)
    tau = np.exp(rng.uniform(low, high, c.n_types)).astype(np.float32)
    n_edges = np.bincount(c.edge_pair, minlength=len(c.pairs))
    mean_n_syn = np.bincount(c.edge_pair, c.n_syn, len(c.pairs)) / np.maximum(n_edges, 1)
    strength /= np.where(mean_n_syn > 0, mean_n_syn, 1)
    norm = np.sqrt(_type_sum(c, (c.n_syn * strength[c.edge_pair]) ** 2).sum(axis=1))
    strength *= IN_NORM / np.where(norm > 0, norm, 1)[c.pairs[:, 1]]
    radius = excitatory_radius(c, strength)
    if radius > MAX_EXCITATORY_RADIUS:
        strength[c.pair_sign > 0] *= MAX_EXCITATORY_RADIUS / radius
    return TypeParameters(np.zeros(c.n_types, np.float32), tau, _balance(c, strength).astype(np.float32))


def calibrate(c: Connectome, types: TypeParameters, n_simulations: int = N_SIMULATIONS) -> TypeParameters:
    """Biases such that each type's mean voltage is `MEAN_PER_STD` of its standard deviation.

    Newton steps on the types' means: raising the mean of type j by d raises its mean rate by about P(V_j > 0) d, which
    reaches every target through the types' mean coupling A, so that the biases move by (I - A P) times the residual.
    """
    stimulus = calibration_stimulus(c)
    size = np.bincount(c.cell_type, minlength=c.n_types)

    def per_type(values):
        return np.bincount(c.cell_type, values, c.n_types) / size

    coupling = _type_sum(c, c.sign.astype(np.float64) * c.n_syn * types.syn_strength[c.edge_pair])

    bias = types.bias.astype(np.float64)
    for _ in range(n_simulations):
        p = expand(c, bias.astype(np.float32), types.tau, types.syn_strength)
        v = np.asarray(simulate(c, p, stimulus, _DT, initial="rest", chunk=_CHUNK))[_SETTLE:]
        mean = per_type(v.mean(axis=0, dtype=np.float64))
        square = per_type((v * v).mean(axis=0, dtype=np.float64))
        std = np.sqrt(np.maximum(square - mean**2, 0))
        active = per_type((v > 0).mean(axis=0))
        residual = MEAN_PER_STD * std - mean
        if (np.abs(residual) <= TOLERANCE * std).all():
            break
        bias += residual - coupling @ (active * residual)
    return types._replace(bias=bias.astype(np.float32))


def sample_parameters(c: Connectome, seed: int = 0) -> Parameters:
    """A random ground truth with the connectome's signs and synapse counts.

    Per type pair: synapse strength lognormal (sigma 0.5) over the pair's mean synapse count, the in-weights of every
    target type scaled to an L2 norm of 0.7 (R1..R8 receive less), excitation scaled down until its spectral radius is
    0.9, so that no stimulus and no dt makes the circuit diverge. Per type: tau log-uniform in 20.5-300 ms, V_rest
    calibrated by short simulations until the mean voltage is 0.3 of its standard deviation, so that neurons cross zero.
    Deterministic for (extent, seed).

    **Raises:** `UserError` if the seed is not an integer >= 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise UserError(f"seed must be an integer >= 0, got {seed!r}")
    types = calibrate(c, sample_type_parameters(c, int(seed)))
    return expand(c, types.bias, types.tau, types.syn_strength)
