r"""W, tau and V_rest once more, by least squares on the learned message functions.

Training leaves W, g and f compromises of each other. With the learned messages scaled and pinned,

    g*_j(v) = (g(v, a_j) - o_g(j)) / s_g(j),

s_g and o_g being slope and offset of the line through g over the positive voltages that j visits
(so that g* lies on the identity there: that fixes the constant which W and V_rest otherwise share,
and where the network was trained; pinning g at 0, where many neurons never are, left V_rest at
R2 .60 instead of .99), each neuron is one small least-squares problem on [v_i, 1, I_i, g*_j(v_j)] -> dv_i/dt,
from which

    tau = clip(-1 / b_v, 0, 1),    V_rest = -b_1 / b_v,    W*_ij = -c_ij / b_v.

Of the network only g is used, and of g only its shape: the learned W and f are not asked. That the update is affine
- a leak, an additive input, messages that add up - is assumed here, as the closed form assumes it, not learned; only
the shape of relu is not. So a network that predicts badly may be refitted well, as long as its messages are usable:
read one_step_R2 beside these estimates. Their names always end in `_refit`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.recovery.errors_in_variables import Table, corrected, laid, sent_noise, table_range, window_of
from flyjax.recovery.linear_readout import message_lines
from flyjax.recovery.normal_equations import accumulate, prior, solve, target_noise
from flyjax.recovery.readout import ROWS, Recovered, canonical, probe, stimulus_rows

#: Training frames used, evenly spread in blocks; the problems have some 30 unknowns, 210 at most.
MAX_FRAMES = 4000
#: The same where targets are noisy: what more frames average out.
MAX_NOISY_FRAMES = 20_000
PIECE = 500
#: What the first fit leaves unexplained is mostly the error of the learned messages, the same in every
#: similar frame: it is weighed against the prior as if this many frames were independent.
INDEPENDENT_FRAMES = 20


@dataclass(frozen=True, eq=False)
class Refitted:
    """The circuit of the least-squares problem on learned messages."""

    weight: Float[np.ndarray, " E"]
    tau: Float[np.ndarray, " N"]  #: s
    v_rest: Float[np.ndarray, " N"]
    residual: Float[np.ndarray, " N"]  #: root mean square of the unexplained dv/dt, 1/s
    corrected: Refitted | None = None  #: of measured voltages: without the bias that their noise brings


@partial(jax.jit, static_argnums=0)
def _messages(learner, params, voltage):
    """(T, N) voltages -> (T, N) messages, in pieces that stay in cache."""
    n_frames, n = voltage.shape
    per_piece = max(1, min(n_frames, ROWS // n))
    n_pieces = -(-n_frames // per_piece)
    padded = jnp.pad(voltage, ((0, n_pieces * per_piece - n_frames), (0, 0))).reshape(n_pieces, per_piece, n)
    return jax.lax.map(lambda v: learner.message(params, v.T).T, padded).reshape(-1, n)[:n_frames]


def _blocks(n_frames: int, max_frames: int) -> list[slice]:
    """Blocks of PIECE frames, evenly spread, the first and the last frame among them; all frames if they are few."""
    length = min(PIECE, n_frames)
    wanted = max(1, min(-(-n_frames // length), max_frames // length))
    starts = np.linspace(0, n_frames - length, wanted).round().astype(int)
    return [slice(start, start + length) for start in starts]


def _scale(learner, params, recording: Recording, found: Recovered) -> tuple[np.ndarray, np.ndarray]:
    """Offset and slope of g*.

    The published read-out gives a source that is rarely above zero the slope 1, whatever the scale of its messages;
    its synapses can be told all the same, and are measured in that slope.
    """
    offset, slope, data = np.array(found.offset_g), np.array(found.slope_g), probe(recording)
    rare = np.asarray(data.mean) + np.asarray(data.std) <= 0
    if rare.any():
        tilt, at_zero = message_lines(learner, params, recording)
        heard = rare & (tilt != 0)
        offset[heard], slope[heard] = at_zero[heard], tilt[heard]
    return offset, slope


def refit(learner, params, recording: Recording, found: Recovered, max_frames: int | None = None) -> Refitted:
    """Least squares per neuron on the learned messages of a training recording.

    Where voltages are measured with noise, its std being known from calibration, `corrected` has the estimates in the
    integral form and without the attenuation (see `measurement`).

    Args:
        found: `extract` of the same learner, parameters and recording.
        max_frames: at most so many frames, evenly spread over the recording; by default 4,000, or 20,000 where targets
            are noisy.
    """
    learner, c = canonical(learner), recording.connectome
    offset, slope = _scale(learner, params, recording, found)
    noise, sigma = target_noise(recording), measurement_noise_std(recording.simulation, recording.split)
    blocks = _blocks(len(recording.voltage), max_frames or (MAX_NOISY_FRAMES if noise else MAX_FRAMES))

    def messages(voltage):
        return (np.asarray(_messages(learner, params, voltage)) - offset) / slope

    def pieces(message):
        for frames in blocks:
            voltage = np.asarray(recording.voltage[frames])
            seen = stimulus_rows(c, recording.luminance[frames])
            yield message(voltage).T, [(voltage.T,), (seen,)], recording.pairs(frames)[2].T

    if not (np.isfinite(offset).all() and np.isfinite(slope).all() and (slope != 0).all()):
        nothing = np.full(c.n_neurons, np.nan, np.float32)
        lost = Refitted(np.full(c.n_edges, np.nan, np.float32), nothing, nothing, nothing)
        return dataclasses.replace(lost, corrected=lost) if sigma else lost
    normal = accumulate(c, pieces(messages), n_own=2)
    plain = _circuit(solve(normal, prior(normal, c.receivers, INDEPENDENT_FRAMES, noise)), c)
    if not sigma:
        return plain
    voltage = np.concatenate([recording.voltage[frames] for frames in blocks])
    points = table_range(voltage, sigma)
    table = Table(
        points, messages(np.repeat(points[:, None].astype(np.float32), c.n_neurons, axis=1)).T.astype(np.float64)
    )
    table = table.unbent(sigma)
    decay = window_of(recording.simulation, recording.split)
    normal = accumulate(c, laid(pieces(table), decay, joined=False), n_own=2)
    sent = sent_noise(table, voltage, sigma)
    clean, ridge = corrected(normal, c, sigma, recording.dt, sent, leak_sign=1.0, decay=decay)
    return dataclasses.replace(plain, corrected=_circuit(solve(clean, ridge), c, slowest=1.0))


def _circuit(solution, c, slowest: float = np.inf) -> Refitted:
    """W, tau and V_rest; a leak slower than that of `slowest` (s), or none, counts as that."""
    leak = solution.own[:, 0] if np.isinf(slowest) else np.minimum(solution.own[:, 0], -1.0 / slowest)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight, v_rest = -solution.source / leak[c.receivers], -solution.constant / leak
        tau = np.clip(-1.0 / leak, 0.0, 1.0)
    return Refitted(weight.astype(np.float32), tau.astype(np.float32), v_rest.astype(np.float32), solution.residual)
