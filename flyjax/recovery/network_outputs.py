"""The learned functions g and f, and the derivatives of f, at voltages and frames that the read-outs ask for.

One compiled program gives all of them: compilation dominates the evaluation of small networks. What a call does not
need is skipped when it runs.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flyjax.recovery.samples import neuron_stimulus, padded, summed_messages
from flyjax.utils.ahead import compile_ahead, ready

#: Luminance about which f is taken to be affine in the input.
GREY = 0.5
#: Frames of one compiled call at least.
BLOCK = 40
#: Rows (neurons x frames) that the networks evaluate at once: on a CPU they stay in cache.
CPU_ROWS, ACCELERATOR_ROWS = 8192, 1 << 20
#: What a call needs: messages alone; also f; also its derivative.
MESSAGE, UPDATE, DERIVATIVE = range(3)


class Wanted(NamedTuple):
    """What a call of the program is for; numbers, so that all calls share it."""

    depth: int
    connected: bool = True  #: whether f is given the sum of the messages, or 0
    along_message: float = 0.0  #: direction of the derivative of f
    along_input: float = 0.0


class NetworkOutputs(NamedTuple):
    """Values at (frames, N) states; empty where a call does not need them."""

    message: Float[np.ndarray, "frames N"]  #: g(v)
    summed: Float[np.ndarray, "frames N"]  #: sum_j W_ij g_j
    update: Float[np.ndarray, "frames N"]  #: f, 1/s
    derivative: Float[np.ndarray, "frames N"]  #: of f in one direction


@partial(jax.jit, static_argnums=(0, 1))
def _outputs(learner, at_once, params, wanted: Wanted, sending, receiving, stimulus) -> tuple[Array, ...]:
    def evaluate(frames):
        sender, voltage, shown = (x.T for x in frames)
        message = learner.message(params, sender)
        zeros = jnp.zeros_like(message)
        summed = jax.lax.cond(wanted.connected, lambda: summed_messages(learner, params, message), lambda: zeros)

        def f(msg, shown):
            return learner.update(params, voltage, msg, shown)

        def derivative():
            direction = wanted.along_message + zeros, wanted.along_input + zeros
            return jax.jvp(f, (summed, shown), direction)

        branches = [lambda: (zeros, zeros), lambda: (f(summed, shown), zeros), derivative]
        return tuple(x.T for x in (message, summed, *jax.lax.switch(wanted.depth, branches)))

    def cut(x):
        return x.reshape(-1, at_once, x.shape[1])

    values = jax.lax.map(evaluate, (cut(sending), cut(receiving), cut(stimulus)))
    return tuple(value.reshape(-1, value.shape[2]) for value in values)


def _frames_at_once(n_neurons: int) -> tuple[int, int]:
    """Frames that the networks evaluate at once, and those of one call."""
    rows = CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    at_once = max(1, rows // n_neurons)
    return at_once, -(-BLOCK // at_once) * at_once


def compile_outputs_ahead(learner) -> None:
    """Begin to compile the program of this file."""
    n = learner.connectome.n_neurons
    at_once, block = _frames_at_once(n)
    frames = [jax.ShapeDtypeStruct((block, n), jnp.float32)] * 3
    compile_ahead(_outputs, lambda: _outputs.lower(learner, at_once, learner.shapes, Wanted(UPDATE), *frames))


def _evaluate(learner, params, wanted: Wanted, sending, receiving=None, stimulus=None) -> NetworkOutputs:
    """g at the voltages `sending` (frames, N), f at `receiving`, by default the same; any number of frames."""
    n_frames, n = sending.shape
    at_once, block = _frames_at_once(n)
    receiving = sending if receiving is None else receiving
    stimulus = np.broadcast_to(np.float32(0), sending.shape) if stimulus is None else stimulus
    n_values = {MESSAGE: 1, UPDATE: 3, DERIVATIVE: 4}[wanted.depth]
    found = np.empty((n_values, n_frames, n), np.float32)
    program = ready(_outputs)
    for begin in range(0, n_frames, block):
        frames = slice(begin, begin + block)
        shown = (padded(np.asarray(x[frames], np.float32), block) for x in (sending, receiving, stimulus))
        for values, block_values in zip(found, program(learner, at_once, params, wanted, *shown)):
            values[frames] = np.asarray(block_values)[: n_frames - begin]
    return NetworkOutputs(*found, *[found[0][:0]] * (4 - n_values))


def messages(learner, params, voltage: Float[np.ndarray, "frames N"]) -> Float[np.ndarray, "frames N"]:
    """g at any number of frames."""
    return _evaluate(learner, params, Wanted(MESSAGE, connected=False), voltage).message


def unconnected(
    learner, params, sending: Float[np.ndarray, "points N"], receiving: Float[np.ndarray, "points N"]
) -> tuple[Float[np.ndarray, "points N"], Float[np.ndarray, "points N"]]:
    """g at the voltages `sending`, and f(v, a, 0, 0) in 1/s at `receiving`."""
    found = _evaluate(learner, params, Wanted(UPDATE, connected=False), sending, receiving)
    return found.message, found.update


def network_outputs(
    learner, params, voltage: Float[np.ndarray, "frames N"], luminance: Float[np.ndarray, "frames n_col"]
) -> NetworkOutputs:
    """Messages, their sums and f at the input shown, without a derivative."""
    stimulus = neuron_stimulus(learner.connectome, luminance).T
    return _evaluate(learner, params, Wanted(UPDATE), voltage, stimulus=stimulus)


def message_gain(
    learner, params, voltage: Float[np.ndarray, "frames N"], luminance: Float[np.ndarray, "frames n_col"]
) -> Float[np.ndarray, "frames N"]:
    """df/dmsg at frames, 1/s."""
    stimulus = neuron_stimulus(learner.connectome, luminance).T
    return _evaluate(learner, params, Wanted(DERIVATIVE, along_message=1.0), voltage, stimulus=stimulus).derivative


def about_grey(learner, params, voltage: Float[np.ndarray, "frames N"]) -> NetworkOutputs:
    """f where photoreceptors are shown the input 0.5, and df/dI there, both in 1/s."""
    grey = neuron_stimulus(learner.connectome, np.full((1, learner.connectome.n_columns), GREY)).T
    grey = np.broadcast_to(grey, voltage.shape)
    return _evaluate(learner, params, Wanted(DERIVATIVE, along_input=1.0), voltage, stimulus=grey)
