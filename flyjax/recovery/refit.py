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

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.models.normal_equations import (
    INDEPENDENT_FRAMES,
    NormalEquations,
    accumulate_all,
    prior,
    solve,
    spread_blocks,
    target_noise,
)
from flyjax.recovery.errors_in_variables import (
    FunctionTable,
    corrected_estimate,
    message_noise,
    table_points,
)
from flyjax.recovery.linear_readout import LinearReadout
from flyjax.recovery.metrics import CircuitEstimate
from flyjax.recovery.network_outputs import Networks, messages, together
from flyjax.recovery.readout import PublishedReadout, probe
from flyjax.recovery.samples import neuron_stimulus

#: Training frames used, evenly spread in blocks; the problems have some 30 unknowns, 210 at most.
MAX_FRAMES = 4000
#: The same where targets are noisy: more frames average the noise.
MAX_NOISY_FRAMES = 20_000


class Refit(NamedTuple):
    """The circuit of the least-squares problem on learned messages."""

    estimate: CircuitEstimate
    corrected: CircuitEstimate | None = None  #: of noisy measurements: without the bias that the noise causes


class RefitEquations(NamedTuple):
    """The least-squares problems of a network; None where its messages are not finite."""

    normal: NormalEquations | None
    offset: np.ndarray  #: o_g of each neuron
    slope: np.ndarray  #: s_g
    blocks: list[slice]  #: the frames


def refit_equations(
    learner,
    networks: Networks,
    recording: Recording,
    readouts: Sequence[PublishedReadout],
    linears: Sequence[LinearReadout],
    max_frames: int | None = None,
    n_workers: int | None = None,
) -> list[RefitEquations]:
    """What `refit` solves, of several networks in one pass over the recording; arguments as there."""
    data, c = probe(recording), recording.connectome
    frames = max_frames or (MAX_NOISY_FRAMES if target_noise(recording) else MAX_FRAMES)
    blocks, lines = spread_blocks(len(recording.voltage), frames), []
    for readout, linear in zip(readouts, linears, strict=True):
        # The published read-out gives a source that is rarely above zero the slope 1, whatever the scale of its
        # messages. Its synapses can be identifiable all the same, so the line at positive training frames is used.
        rare = (data.mean + data.std <= 0) & (linear.slope_g != 0)
        offset = np.where(rare, linear.offset_g, readout.offset_g).astype(np.float32)
        lines.append((offset, np.where(rare, linear.slope_g, readout.slope_g).astype(np.float32)))
    usable = [k for k, (o, s) in enumerate(lines) if np.isfinite(o).all() and np.isfinite(s).all() and (s != 0).all()]

    def chunks():
        for block in blocks:
            voltage, luminance, derivative = recording.pairs(block)
            found = messages(learner, networks, voltage)
            with jax.enable_x64(True):  # once for all networks
                own = jax.device_put((voltage.T, neuron_stimulus(c, luminance), derivative.T))
            yield [(((found[k].message - lines[k][0]) / lines[k][1]).T, *own) for k in usable]

    normal = dict(zip(usable, accumulate_all(c, chunks(), 2, len(usable), n_workers) if usable else [], strict=True))
    return [RefitEquations(normal.get(k), *line, blocks) for k, line in enumerate(lines)]


def refit(
    learner,
    params,
    recording: Recording,
    readout: PublishedReadout,
    linear: LinearReadout,
    max_frames: int | None = None,
    n_workers: int | None = None,
    equations: RefitEquations | None = None,
) -> Refit:
    """Least squares per neuron on the learned messages of a training recording.

    For voltages measured with noise of known standard deviation, `corrected` is the estimate in the integral form and
    without the attenuation (see `errors_in_variables`).

    **Arguments:**

    - `readout`, `linear`: `extract` and `linear_readout` of the same learner, parameters and recording.
    - `max_frames`: at most so many frames, evenly spread over the recording; by default 4,000, or 20,000 where targets
      are noisy.
    - `n_workers`: threads; by default one per core.
    - `equations`: `refit_equations` of the same, where they are known.
    """
    c, networks = recording.connectome, together([params])
    if equations is None:
        equations = refit_equations(learner, networks, recording, [readout], [linear], max_frames, n_workers)[0]
    normal, offset, slope, blocks = equations
    sigma = measurement_noise_std(recording.simulation, recording.split)
    if normal is None:
        missing = CircuitEstimate.missing(c)
        return Refit(missing, missing if sigma else None)
    ridge = prior(normal, c.receivers, INDEPENDENT_FRAMES, target_noise(recording))
    solution = solve(normal, ridge)
    estimate = CircuitEstimate.from_coefficients(-solution.own[:, 0], solution.source, solution.constant, c.receivers)
    if not sigma:
        return Refit(estimate)
    voltage = np.concatenate([recording.voltage[frames] for frames in blocks])
    points = table_points(voltage, sigma)
    at_points = messages(learner, networks, np.repeat(points[:, None].astype(np.float32), c.n_neurons, axis=1))
    normalised = (at_points[0].message - offset) / slope
    table = FunctionTable(points, normalised.T.astype(np.float64)).debiased(sigma)
    noise_of_messages = message_noise(table, voltage, sigma)

    def chunks():
        for block in blocks:
            voltage, luminance, derivative = recording.pairs(block)
            yield table(voltage).T, voltage.T, neuron_stimulus(c, luminance), derivative.T

    corrected = corrected_estimate(
        recording, chunks(), 2, noise_of_messages, leak_sign=1.0, continuous=False, n_workers=n_workers
    )
    return Refit(estimate, corrected)
