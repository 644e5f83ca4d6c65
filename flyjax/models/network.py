"""The small multilayer perceptron that all neurons share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flyjax.config import Model

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
}


def bfloat16_product(x, w, dimension_numbers, **options) -> Float[Array, "..."]:
    """`jax.lax.dot_general` of factors rounded to bfloat16, summed in float32."""
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, w, dimension_numbers, preferred_element_type=jnp.float32)


class Network(nnx.Module):
    """An MLP from a few signals and the embedding of a neuron (or of two) to one number per row and frame."""

    def __init__(self, n_signals: int, config: Model, rngs: nnx.Rngs, n_neurons: int = 1):
        n_embedded = n_neurons * config.embedding_size
        width, fan_in = config.width, n_signals + n_embedded
        rounded = config.matmul_precision == "bfloat16"
        self.activation = ACTIVATIONS[config.activation]
        self.precision = None if rounded else config.matmul_precision
        self.dot_general = bfloat16_product if rounded else jax.lax.dot_general

        # Unit-variance (LeCun) starts: with a third of that variance, torch's default, two seeds of three
        # stayed on the first plateau for 2,000 steps at extent 1.
        def kernel(fan):
            return lambda key, shape, dtype: fan**-0.5 * jax.random.truncated_normal(key, -2, 2, shape, dtype) / 0.88

        def linear(n_in, n_out, fan):
            return nnx.Linear(
                n_in,
                n_out,
                kernel_init=kernel(fan),
                precision=self.precision,
                dot_general=self.dot_general,
                rngs=rngs,
            )

        self.signals = nnx.Param(kernel(fan_in)(rngs.params(), (n_signals, width), jnp.float32))
        self.embedded = linear(n_embedded, width, fan_in)
        self.hidden = nnx.List([linear(width, width, width) for _ in range(config.n_layers - 2)])
        self.readout = linear(width, 1, width)

    def __call__(self, signals: tuple[Float[Array, "N B"], ...], embedding: Float[Array, "N d"]) -> Float[Array, "N B"]:
        n, b = signals[0].shape
        # Signals, embedding and bias in one product: its gradient is then one product too, and no slow sums over rows.
        kernel = jnp.concatenate([self.signals[...], self.embedded.kernel[...], self.embedded.bias[...][None]])
        known = jnp.broadcast_to(embedding[:, None, :], (n, b, embedding.shape[1]))
        rows = jnp.concatenate([jnp.stack(signals, axis=-1), known, jnp.ones((n, b, 1))], axis=-1)
        contract_last = (((1,), (0,)), ((), ()))
        product = self.dot_general(rows.reshape(n * b, -1), kernel, contract_last, precision=self.precision)
        hidden = self.activation(product)
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        return self.readout(hidden).reshape(n, b)


def functional(network: Network):
    """A network as a function of (its parameters, signals, embedding), and the parameters."""
    graphdef, state = nnx.split(network)
    return lambda state, signals, embedding: nnx.merge(graphdef, state)(signals, embedding), state
