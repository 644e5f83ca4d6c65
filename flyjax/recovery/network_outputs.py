"""The learned functions at frames of a recording, as the read-out at training frames and the predictions need them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flyjax.recovery.samples import neuron_stimulus, padded, summed_messages

#: Luminance about which f is taken to be affine in the input.
GREY = 0.5
#: Frames of one compiled call: training and held-out frames share it.
BLOCK = 40


class NetworkOutputs(NamedTuple):
    """Values at (frames, N) states."""

    message: Float[np.ndarray, "frames N"]  #: g(v)
    summed: Float[np.ndarray, "frames N"]  #: sum_j W_ij g_j
    update: Float[np.ndarray, "frames N"]  #: f at the input shown, 1/s
    update_grey: Float[np.ndarray, "frames N"]  #: f at the input 0.5 of photoreceptors, 1/s
    by_input: Float[np.ndarray, "frames N"]  #: df/dI there, 1/s


@partial(jax.jit, static_argnums=0)
def _outputs(learner, params, voltage, stimulus) -> tuple[Array, ...]:
    grey = jnp.zeros((voltage.shape[1], 1)).at[learner.connectome.inputs].set(GREY)

    def frame(state):  # one at a time stays in cache
        v, shown = state[0][:, None], state[1][:, None]
        message = learner.message(params, v)
        summed = summed_messages(learner, params, message)
        at_grey = jax.jvp(lambda x: learner.update(params, v, summed, x), (grey,), (jnp.ones_like(grey),))
        values = message, summed, learner.update(params, v, summed, shown), *at_grey
        return tuple(value[:, 0] for value in values)

    return jax.lax.map(frame, (voltage, stimulus))


def network_outputs(
    learner, params, voltage: Float[np.ndarray, "frames N"], luminance: Float[np.ndarray, "frames n_col"]
) -> NetworkOutputs:
    """The learned functions at any number of frames."""
    stimulus = neuron_stimulus(learner.connectome, luminance).T
    blocks = [
        _outputs(learner, params, *(padded(x[begin : begin + BLOCK], BLOCK) for x in (voltage, stimulus)))
        for begin in range(0, len(voltage), BLOCK)
    ]
    return NetworkOutputs(*(np.concatenate(parts)[: len(voltage)] for parts in zip(*blocks, strict=True)))
