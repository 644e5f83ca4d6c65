r"""Variable projection: W by least squares on the messages learned so far (Golub & Pereyra, 1973).

Given the message function g, finding W is a linear least-squares problem. It is badly conditioned: the messages into a
neuron are nearly collinear with each other, with its leak and with a constant. Gradient descent resolves what
distinguishes them last, and V_rest, which makes up for the mean error of W, suffers most. So n times between 20 and
60 % of a training W is set to the solution of one small problem per neuron on the training recording,

    dv_i/dt ~ sum_j C_ij g_j(v_j) + b_i v_i + c_i I_i + k_i,      W_ij = C_ij / d_i,

with d_i the mean of df/dmsg at frames spread over the recording: the scale at which the update network takes its
messages. From the first projection on W has no learning rate; g, f and the embedding are trained with W fixed.

C has the prior that unidentifiable weights are 0 (`normal_equations.prior`). b, c and k are not used: f stays free.
As in the refit, f is assumed to be affine in the summed messages.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flyjax.data.recording import Recording
from flyjax.models import Learner
from flyjax.models.gnn import neuron_stimulus
from flyjax.models.normal_equations import INDEPENDENT_FRAMES, accumulate, prior, solve, spread_blocks, target_noise

#: Training frames used, evenly spread in blocks.
N_FRAMES = 4000
#: Frames at which df/dmsg is taken.
N_GAIN_FRAMES = 8
#: A gain is taken to be at least this share of the median one: W of a neuron that hardly takes messages stays finite.
MIN_GAIN = 0.1


@partial(jax.jit, static_argnums=0)
def _regressors(
    learner: Learner, params, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]
) -> tuple[Float[Array, "N B"], ...]:
    """Messages, voltages and inputs."""
    at_once = max(1, learner.segment_rows // learner.connectome.n_neurons)  # hidden layers of a block are gigabytes
    message = jax.lax.map(lambda v: learner.message(params, v[:, None])[:, 0], voltage, batch_size=at_once)
    return message.T, voltage.T, neuron_stimulus(learner.connectome, luminance)


@partial(jax.jit, static_argnums=0)
def _gain(
    learner: Learner, params, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]
) -> Float[Array, " N"]:
    """Mean df/dmsg, 1/s."""
    graph = learner.graph(voltage, luminance)
    summed = learner.bind(params).message_sum(graph)

    def f(msg):
        return learner.update(params, voltage.T, msg, graph.nodes["stimulus"])

    return jnp.mean(jax.jvp(f, (summed,), (jnp.ones_like(summed),))[1], axis=1)


def projected_weights(learner: Learner, params, recording: Recording, n_frames: int) -> Float[np.ndarray, " E"]:
    """W by least squares on the messages of `params`; that of `params` where it, or a message, is not finite.

    **Arguments:**

    - `params`: of one lane, by name.
    - `n_frames`: the first so many frames of the training recording are used, as held-out ones follow.
    """
    c = learner.connectome

    def chunks():
        for frames in spread_blocks(n_frames, N_FRAMES):
            voltage, luminance, derivative = recording.pairs(frames)
            yield *_regressors(learner, params, jnp.asarray(voltage), jnp.asarray(luminance)), derivative.T

    normal = accumulate(c, chunks(), n_own=2)
    if not all(np.isfinite(m).all() for m in normal.moments):  # of which there are no eigenvectors
        return np.asarray(params["W"])
    source = solve(normal, prior(normal, c.receivers, INDEPENDENT_FRAMES, target_noise(recording))).source
    frames = np.linspace(0, n_frames - 1, N_GAIN_FRAMES + 2).round().astype(int)[1:-1]
    gain = np.asarray(_gain(learner, params, *map(jnp.asarray, recording.pairs(frames)[:2])), np.float64)
    typical = np.median(gain)  # negative where messages are, too
    gain = np.sign(typical) * np.maximum(np.sign(typical) * gain, MIN_GAIN * abs(typical))
    with np.errstate(all="ignore"):
        weight = (source / gain[c.receivers]).astype(np.float32)
    return np.where(np.isfinite(weight), weight, np.asarray(params["W"]))
