"""The learned functions g and f, and the derivatives of f, at voltages and frames that the read-outs ask for.

One compiled program gives all of them: compilation dominates the evaluation of small networks. What a call does not
need is skipped when it runs. Networks of equal shapes are evaluated together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

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


class Networks(NamedTuple):
    """Trained networks of equal shapes. Beyond `n` the last one is repeated, so that 5 to 8 share a program."""

    params: Any  #: with an axis of networks in front, whose length is a power of two
    n: int

    @property
    def weight(self) -> Float[np.ndarray, "n E"]:
        """W as trained."""
        return np.asarray(self.params["W"][...])[: self.n]


def together(networks: Sequence[Any]) -> Networks:
    """The parameters of several networks as one tree."""
    n = len(networks)
    repeated = [*networks, *[networks[-1]] * ((1 << (n - 1).bit_length()) - n)]
    # By NumPy, which compiles nothing.
    return Networks(jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *repeated), n)


def over_networks(function: Callable, params, *arguments, axes: tuple[int | None, ...]) -> Any:
    """`function(params, *arguments)` for each network; a single one without an axis, which compiles a quarter faster.

    **Arguments:** `axes`: 0 for arguments that each network has of its own, else None.
    """
    if len(params["W"][...]) > 1:
        return jax.vmap(function, (0, *axes))(params, *arguments)
    own = [x if axis is None else x[0] for x, axis in zip(arguments, axes, strict=True)]
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], params), *own))


class NetworkOutputs(NamedTuple):
    """Values at (frames, N) states; empty where a call does not need them."""

    message: Float[np.ndarray, "frames N"]  #: g(v)
    summed: Float[np.ndarray, "frames N"]  #: sum_j W_ij g_j
    update: Float[np.ndarray, "frames N"]  #: f, 1/s
    derivative: Float[np.ndarray, "frames N"]  #: of f in one direction


@partial(jax.jit, static_argnums=(0, 1))
def _outputs(learner, at_once, params, wanted: Wanted, sending, receiving, stimulus) -> tuple[Array, ...]:
    """Each (networks, frames, N)."""

    def evaluate(params, sender, voltage, shown):
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

    def all_networks(frames):
        return over_networks(evaluate, params, *(x.T for x in frames), axes=(None, None, None))

    def cut(x):
        return x.reshape(-1, at_once, x.shape[1])

    values = jax.lax.map(all_networks, (cut(sending), cut(receiving), cut(stimulus)))
    return tuple(x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[3]) for x in values)


def _frames_at_once(n_rows: int) -> tuple[int, int]:
    """Frames that networks with so many neurons in all evaluate at once, and those of one call."""
    rows = CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    at_once = max(1, rows // n_rows)
    return at_once, -(-BLOCK // at_once) * at_once


def shapes_alone(learner) -> Any:
    """The shapes of `together` of a single network."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), learner.shapes)


def compile_outputs_ahead(learner) -> None:
    """Begin to compile the program of this file, for one network at a time."""
    n = learner.connectome.n_neurons
    at_once, block = _frames_at_once(n)
    frames = [jax.ShapeDtypeStruct((block, n), jnp.float32)] * 3
    compile_ahead(_outputs, lambda: _outputs.lower(learner, at_once, shapes_alone(learner), Wanted(UPDATE), *frames))


def _evaluate(
    learner, networks: Networks, wanted: Wanted, sending, receiving=None, stimulus=None
) -> list[NetworkOutputs]:
    """g at the voltages `sending` (frames, N), f at `receiving`, by default the same; any number of frames."""
    n_frames, n = sending.shape
    at_once, block = _frames_at_once(n * len(networks.params["W"][...]))
    receiving = sending if receiving is None else receiving
    stimulus = np.broadcast_to(np.float32(0), sending.shape) if stimulus is None else stimulus
    n_values = {MESSAGE: 1, UPDATE: 3, DERIVATIVE: 4}[wanted.depth]
    found = np.empty((n_values, networks.n, n_frames, n), np.float32)
    program = ready(_outputs)
    for begin in range(0, n_frames, block):
        frames = slice(begin, begin + block)
        shown = (padded(np.asarray(x[frames], np.float32), block) for x in (sending, receiving, stimulus))
        for values, block_values in zip(found, program(learner, at_once, networks.params, wanted, *shown)):
            values[:, frames] = np.asarray(block_values)[: networks.n, : n_frames - begin]
    empty = [found[0][0, :0]] * (4 - n_values)
    return [NetworkOutputs(*found[:, k], *empty) for k in range(networks.n)]


def messages(learner, networks: Networks, voltage: Float[np.ndarray, "frames N"]) -> list[NetworkOutputs]:
    """g at any number of frames."""
    return _evaluate(learner, networks, Wanted(MESSAGE, connected=False), voltage)


def unconnected(
    learner, networks: Networks, sending: Float[np.ndarray, "points N"], receiving: Float[np.ndarray, "points N"]
) -> list[NetworkOutputs]:
    """g at the voltages `sending`, and f(v, a, 0, 0) in 1/s at `receiving`."""
    return _evaluate(learner, networks, Wanted(UPDATE, connected=False), sending, receiving)


def network_outputs(
    learner, networks: Networks, voltage: Float[np.ndarray, "frames N"], luminance: Float[np.ndarray, "frames n_col"]
) -> list[NetworkOutputs]:
    """Messages, their sums and f at the input shown, without a derivative."""
    stimulus = neuron_stimulus(learner.connectome, luminance).T
    return _evaluate(learner, networks, Wanted(UPDATE), voltage, stimulus=stimulus)


def message_gain(
    learner, networks: Networks, voltage: Float[np.ndarray, "frames N"], luminance: Float[np.ndarray, "frames n_col"]
) -> list[NetworkOutputs]:
    """df/dmsg at frames, 1/s."""
    stimulus = neuron_stimulus(learner.connectome, luminance).T
    return _evaluate(learner, networks, Wanted(DERIVATIVE, along_message=1.0), voltage, stimulus=stimulus)


def about_grey(learner, networks: Networks, voltage: Float[np.ndarray, "frames N"]) -> list[NetworkOutputs]:
    """f where photoreceptors are shown the input 0.5, and df/dI there, both in 1/s."""
    grey = neuron_stimulus(learner.connectome, np.full((1, learner.connectome.n_columns), GREY)).T
    grey = np.broadcast_to(grey, voltage.shape)
    return _evaluate(learner, networks, Wanted(DERIVATIVE, along_input=1.0), voltage, stimulus=grey)
