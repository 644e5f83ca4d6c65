"""A learner with the true functions, for which every metric must be perfect."""

import jax
import jax.numpy as jnp
import numpy as np

from flyjax.recovery.metrics import true_tau


class TrueLearner:
    """g = relu and f = (-v + V_rest + msg + I) / tau*, with options that change one property each.

    `offset` is added to g and compensated in f, so that the dynamics stay the same. `scale` (N,) multiplies g and
    divides W. `drift` times v is added to f.
    """

    def __init__(self, connectome, offset=0.0, scale=None, drift=0.0):
        self.connectome, self.offset, self.drift = connectome, offset, drift
        self.scale = np.ones(connectome.n_neurons, np.float32) if scale is None else scale

    def params(self, recording):
        p, c = recording.parameters, self.connectome
        weight = np.asarray(p.weight) / self.scale[c.senders]
        # A constant in g reaches neuron i as offset * sum_j W_ij, which V_rest compensates.
        summed = np.bincount(c.receivers, weight, c.n_neurons).astype(np.float32)
        return {
            "W": jnp.asarray(weight),
            "tau": jnp.asarray(true_tau(recording)),
            "v_rest": jnp.asarray(np.asarray(p.v_rest) - np.float32(self.offset) * summed),
        }

    def message(self, params, voltage):
        return jax.nn.relu(voltage) * self.scale[:, None] + self.offset

    def update(self, params, voltage, msg, stimulus):
        total = msg + stimulus - voltage + params["v_rest"][:, None]
        return total / params["tau"][:, None] + self.drift * voltage

    def derivative(self, params, voltage, luminance):
        c, v = self.connectome, voltage.T
        sent = params["W"][:, None] * self.message(params, v)[c.senders]
        msg = jax.ops.segment_sum(sent, c.receivers, c.n_neurons)
        stimulus = jnp.zeros_like(v).at[c.inputs].set(luminance.T[c.input_column])
        return self.update(params, v, msg, stimulus).T
