r"""Least-squares refit of W, tau and V_rest on the learned message functions.

After training, W, g and f compensate for each other's errors. With the learned messages normalised to

    g*_j(v) = (g(v, a_j) - o_g(j)) / s_g(j),

where s_g and o_g are slope and offset of the line through g over the positive voltages that j visits, each neuron is
one small least-squares problem on [v_i, 1, I_i, g*_j(v_j)] -> dv_i/dt with coefficients b_v, b_1, b_I and c_ij, from
which

    tau = clip(-1 / b_v, 0, 1),    V_rest = -b_1 / b_v,    W*_ij = -c_ij / b_v.

The normalisation puts g* on the identity where the network was trained, which fixes the constant that W and V_rest
otherwise share (with g*(0) = 0 instead, where many neurons never are, V_rest has R2 .60 instead of .99).

Of the network only the shape of g is used, not the learned W and f. That the update is affine (a leak, an additive
input, messages that add up) is assumed, as in the closed form; only the shape of relu is not. A network that predicts
badly may therefore be refitted well, as long as its messages are usable: compare one_step_R2. Metrics of these
estimates end in `_refit`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.recovery.least_squares.errors_in_variables import (
    FunctionTable,
    corrected_estimate,
    message_noise,
    table_points,
)
from flyjax.recovery.least_squares.normal_equations import accumulate, prior, solve, target_noise
from flyjax.recovery.linear_readout import LinearReadout
from flyjax.recovery.metrics import CircuitEstimate
from flyjax.recovery.network_outputs import messages
from flyjax.recovery.readout import PublishedReadout, probe
from flyjax.recovery.samples import neuron_stimulus

#: Training frames used, evenly spread in blocks; the problems have some 30 unknowns, 210 at most.
MAX_FRAMES = 4000
#: The same where targets are noisy: more frames average the noise.
MAX_NOISY_FRAMES = 20_000
#: Frames of a block.
BLOCK = 500
#: The residual of the first fit is mostly the error of the learned messages, the same in every similar frame: the prior
#: counts it as if this many frames were independent.
INDEPENDENT_FRAMES = 20


class Refit(NamedTuple):
    """The circuit of the least-squares problem on learned messages."""

    estimate: CircuitEstimate
    corrected: CircuitEstimate | None = None  #: of noisy measurements: without the bias that the noise causes


def _blocks(n_frames: int, max_frames: int) -> list[slice]:
    """Evenly spread blocks of frames, the first and the last frame among them; all frames if they are few."""
    length = min(BLOCK, n_frames)
    n_blocks = max(1, min(-(-n_frames // length), max_frames // length))
    starts = np.linspace(0, n_frames - length, n_blocks).round().astype(int)
    return [slice(start, start + length) for start in starts]


def refit(
    learner,
    params,
    recording: Recording,
    readout: PublishedReadout,
    linear: LinearReadout,
    max_frames: int | None = None,
    n_workers: int | None = None,
) -> Refit:
    """Least squares per neuron on the learned messages of a training recording.

    For voltages measured with noise of known standard deviation, `corrected` is the estimate in the integral form and
    without the attenuation (see `errors_in_variables`).

    **Arguments:**

    - `readout`, `linear`: `extract` and `linear_readout` of the same learner, parameters and recording.
    - `max_frames`: at most so many frames, evenly spread over the recording; by default 4,000, or 20,000 where targets
      are noisy.
    - `n_workers`: threads; by default one per core.
    """
    c, data = recording.connectome, probe(recording)
    # The published read-out gives a source that is rarely above zero the slope 1, whatever the scale of its messages.
    # Its synapses can be identifiable all the same, so the line at positive training frames is used.
    rare = (data.mean + data.std <= 0) & (linear.slope_g != 0)
    offset = np.where(rare, linear.offset_g, readout.offset_g).astype(np.float32)
    slope = np.where(rare, linear.slope_g, readout.slope_g).astype(np.float32)
    noise, sigma = target_noise(recording), measurement_noise_std(recording.simulation, recording.split)
    blocks = _blocks(len(recording.voltage), max_frames or (MAX_NOISY_FRAMES if noise else MAX_FRAMES))

    def normalised(voltage):
        return (messages(learner, params, voltage) - offset) / slope

    def chunks(message):
        for frames in blocks:
            voltage, luminance, derivative = recording.pairs(frames)
            voltage = np.asarray(voltage)
            yield message(voltage).T, voltage.T, neuron_stimulus(c, luminance), derivative.T

    if not (np.isfinite(offset).all() and np.isfinite(slope).all() and (slope != 0).all()):
        missing = CircuitEstimate.missing(c)
        return Refit(missing, missing if sigma else None)
    normal = accumulate(c, chunks(normalised), n_own=2, n_workers=n_workers)
    ridge = prior(normal, c.receivers, INDEPENDENT_FRAMES, noise)
    solution = solve(normal, ridge)
    estimate = CircuitEstimate.from_coefficients(-solution.own[:, 0], solution.source, solution.constant, c.receivers)
    if not sigma:
        return Refit(estimate)
    voltage = np.concatenate([recording.voltage[frames] for frames in blocks])
    points = table_points(voltage, sigma)
    at_points = normalised(np.repeat(points[:, None].astype(np.float32), c.n_neurons, axis=1))
    table = FunctionTable(points, at_points.T.astype(np.float64)).debiased(sigma)
    noise_of_messages = message_noise(table, voltage, sigma)
    corrected = corrected_estimate(
        recording, chunks(table), 2, noise_of_messages, leak_sign=1.0, continuous=False, n_workers=n_workers
    )
    return Refit(estimate, corrected)
