r"""W, tau and V_rest once more, by least squares on the learned message functions.

Training leaves W, g and f compromises of each other. With the learned messages scaled and pinned,

    g*_j(v) = (g(v, a_j) - o_g(j)) / s_g(j),

s_g and o_g being slope and offset of the line through g over the positive voltages that j visits
(so that g* lies on the identity there: that fixes the constant which W and V_rest otherwise share,
and where the network was trained; pinning g at 0, where many neurons never are, left V_rest at
R2 .60 instead of .99), and the update taken as affine (which the learned f can be asked), each neuron is one small
least-squares problem on [v_i, 1, I_i, g*_j(v_j)] -> dv_i/dt, from which

    tau = clip(-1 / b_v, 0, 1),    V_rest = -b_1 / b_v,    W*_ij = -c_ij / b_v.

No part of the dynamics is assumed that the closed form knows and the network did not learn: the
shape of g is the network's own. Estimates of this kind are always named `_refit`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flyjax.frames import measured
from flyjax.recording import Recording
from flyjax.recovery.equations import Normal, accumulate, prior, solve, target_noise, target_of
from flyjax.recovery.extract import ROWS, Recovered, canonical, stimulus_rows
from flyjax.recovery.measurement import SentNoise, corrected

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
    corrected: Refitted | None = None  #: of measured voltages: without the noise in the regressors


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


def refit(learner, params, recording: Recording, found: Recovered, max_frames: int | None = None) -> Refitted:
    """Least squares per neuron on the learned messages of a training recording.

    Where voltages are measured with noise, its std being known from calibration, `corrected` has the estimates without
    the attenuation (see `measurement`; the learned messages are taken as what they are fitted to, lines above zero).

    Args:
        found: `extract` of the same learner, parameters and recording.
        max_frames: at most so many frames, evenly spread over the recording; by default 4,000, or 20,000 where targets
            are noisy.
    """
    learner, c = canonical(learner), recording.connectome
    offset, slope = np.asarray(found.offset_g), np.asarray(found.slope_g)
    noise, sigma = target_noise(recording), measured(recording.simulation, recording.split)
    blocks = _blocks(len(recording.voltage), max_frames or (MAX_NOISY_FRAMES if noise else MAX_FRAMES))

    def pieces():
        for frames in blocks:
            voltage = np.asarray(recording.voltage[frames])
            sent = (np.asarray(_messages(learner, params, voltage)) - offset) / slope
            seen = stimulus_rows(c, recording.luminance[frames])
            yield sent.T, [(voltage.T,), (seen,)], target_of(recording, frames).T

    if not (np.isfinite(offset).all() and np.isfinite(slope).all() and (slope != 0).all()):
        nothing = np.full(c.n_neurons, np.nan, np.float32)
        lost = Refitted(np.full(c.n_edges, np.nan, np.float32), nothing, nothing, nothing)
        return dataclasses.replace(lost, corrected=lost) if sigma else lost
    normal = accumulate(c, pieces(), n_own=2)
    plain = _solved(normal, c, noise)
    if not sigma:
        return plain
    active = np.mean([np.mean(recording.voltage[frames] > 0, axis=0, dtype=np.float64) for frames in blocks], axis=0)
    clean = corrected(normal, c, sigma, recording.dt, SentNoise(active, sigma**2 * active), leak_sign=1.0)
    # The noise of the targets is out of their squares, and as large as before in every sum.
    return dataclasses.replace(plain, corrected=_solved(clean, c, noise, already_out=True))


def _solved(normal: Normal, c, noise: float, already_out: bool = False) -> Refitted:
    solution = solve(normal, prior(normal, c.receivers, INDEPENDENT_FRAMES, noise, already_out))
    leak = solution.own[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        weight, v_rest = -solution.source / leak[c.receivers], -solution.constant / leak
        tau = np.clip(-1.0 / leak, 0.0, 1.0)
    return Refitted(
        weight.astype(np.float32), tau.astype(np.float32), v_rest.astype(np.float32), solution.residual
    )
