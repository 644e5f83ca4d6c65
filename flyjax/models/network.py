"""The MLPs of a learner, in one form for each kind of backend.

Both forms compute the same up to rounding. A CPU multiplies rows of signals, embedding and a one with all weights of
the first layer at once, a segment of rows at a time. An accelerator is bound by the memory that its kernels move, so
there

- the embedding is multiplied once per neuron and added by broadcast, so that no row is put together;
- the gradient of the first layer is written out as two products with the gradient of its result, which each reads once:
  one with all inputs of the layer, one with all its weights (`first_layer`);
- regularisers take the messages of the first frame from the data term, although the data term gives the embedding a
  gradient and the regularisers do not (`with_first_again`);
- neurons are padded to a multiple of `NEURONS`. XLA cuts the products over rows in the gradient into equal parts, and
  would pad each of their factors, which are `width` times larger, in a kernel of its own.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flyjax.config import Model

#: Neurons are padded to a multiple of this on an accelerator (twice this for bfloat16), circuits
#: of fewer than `PADDED_FROM` are not.
NEURONS, PADDED_FROM = 512, 4096

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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def first_layer(
    product: Callable,
    dtype: jnp.dtype,
    signals: Float[Array, "k N B"],
    kernel: Float[Array, "k width"],
    embedding: Float[Array, "N d"],
    own: Float[Array, "d N B"] | None,
    embedded: Float[Array, "d width"],
    bias: Float[Array, " width"],
) -> Float[Array, "N B width"]:
    """Signals and embedding of each row by their weights, and the bias.

    **Arguments:** `product`: `jax.lax.dot_general` of two arrays and its dimensions; `dtype`: of the result; `own`:
    zeros to be added to the embedding of each row, which get its gradient instead of the embedding.
    """
    known = product(embedding, embedded, (((1,), (0,)), ((), ()))) + bias[None]
    seen = sum(x[:, :, None] * w for x, w in zip(signals, kernel[:, None, None], strict=True))
    return (known[:, None, :] + seen).astype(dtype)


def _first_layer(product, dtype, signals, kernel, embedding, own, embedded, bias):
    value = first_layer(product, dtype, signals, kernel, embedding, own, embedded, bias)
    return value, (signals, kernel, embedding, own, embedded)


def _first_layer_gradient(product, dtype, known, d):
    signals, kernel, embedding, own, embedded = known
    d = jax.lax.optimization_barrier(d)  # else every use of it would read what it is computed from
    n_signals, ones = len(signals), jnp.ones_like(signals[:1])
    each = jnp.broadcast_to(embedding.T[:, :, None], (embedding.shape[1], *signals.shape[1:]))
    d_weights = product(jnp.concatenate([signals, each, ones]), d, (((1, 2), (0, 1)), ((), ())))
    d_rows = product(jnp.concatenate([kernel, embedded]), d, (((1,), (2,)), ((), ())))
    d_own = d_rows[n_signals:]
    d_embedding = jnp.sum(d_own, axis=2).T if own is None else jnp.zeros_like(embedding)
    d_own = None if own is None else d_own
    return d_rows[:n_signals], d_weights[:n_signals], d_embedding, d_own, d_weights[n_signals:-1], d_weights[-1]


first_layer.defvjp(_first_layer, _first_layer_gradient)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def with_first_again(
    function: Callable, n_free: int, state, signal: Float[Array, "N B"], embedding: Float[Array, "N d"]
) -> Float[Array, "N B+1"]:
    """A network of one signal, and its first frame once more without evaluating it.

    The embedding gets a gradient through the first `n_free` frames, and neither through the others nor through that
    repetition.

    **Arguments:** `function`: of the state, the signal, the embedding and `own` of `first_layer`.
    """
    value = function(state, signal, embedding, None)
    return jnp.concatenate([value, value[:, :1]], axis=1)


def _with_first_again(function, n_free, state, signal, embedding):
    own = jnp.zeros((embedding.shape[1], *signal.shape), signal.dtype)
    value, pullback = jax.vjp(lambda s, x, own: function(s, x, embedding, own), state, signal, own)
    return jnp.concatenate([value, value[:, :1]], axis=1), pullback


def _with_first_again_gradient(function, n_free, pullback, d):
    total = d[:, :-1].at[:, 0].add(d[:, -1])
    d_state, d_signal, d_own = pullback(total)
    # The gradient of a row is its factor in `total` times one that does not depend on it, as a row has one value.
    share = jnp.where(total[:, :1] == 0, 0, d[:, :1] / jnp.where(total[:, :1] == 0, 1, total[:, :1]))
    is_free = jnp.broadcast_to(jnp.arange(total.shape[1]) < n_free, total.shape).astype(d.dtype)
    return d_state, d_signal, jnp.sum(d_own * is_free.at[:, :1].mul(share)[None], axis=2).T


with_first_again.defvjp(_with_first_again, _with_first_again_gradient)


class Network(nnx.Module):
    """An MLP from a few signals and the embedding of a neuron (or of two) to one number per row and frame."""

    def __init__(self, n_signals: int, config: Model, rngs: nnx.Rngs, n_neurons: int = 1):
        n_embedded = n_neurons * config.embedding_size
        width, fan_in = config.width, n_signals + n_embedded
        rounded = config.matmul_precision.startswith("bfloat16")
        self.activation = ACTIVATIONS[config.activation]
        self.kept_dtype = jnp.bfloat16 if config.matmul_precision == "bfloat16_kept" else None
        form = ("cpu" if jax.default_backend() == "cpu" else "accelerator") if config.form == "auto" else config.form
        self.by_neuron = form == "accelerator"
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

    def __call__(
        self,
        signals: tuple[Float[Array, "N B"], ...],
        embedding: Float[Array, "N d"],
        own: Float[Array, "d N B"] | None = None,
    ) -> Float[Array, "N B"]:
        """**Arguments:** `own`: as in `first_layer`; only the form of accelerators takes it."""
        n, b = signals[0].shape
        if self.by_neuron:
            multiple = NEURONS if self.dot_general is jax.lax.dot_general else 2 * NEURONS
            padding = ((0, -n % multiple if n >= PADDED_FROM else 0), (0, 0))
            rows, embedding = jnp.pad(jnp.stack(signals), ((0, 0), *padding)), jnp.pad(embedding, padding)
            own = None if own is None else jnp.pad(own, ((0, 0), *padding))
            weights = self.embedded.kernel[...], self.embedded.bias[...]
            dtype = self.kept_dtype or rows.dtype
            first = first_layer(self._product, dtype, rows, self.signals[...], embedding, own, *weights)
        else:
            first = self._first_by_row(signals, embedding)
        hidden = self._kept(first.reshape(-1, first.shape[-1]))
        for layer in self.hidden:
            hidden = self._kept(layer(hidden))
        return self.readout(hidden).reshape(-1, b)[:n]

    def _product(self, x, w, dimension_numbers):
        return self.dot_general(x, w, dimension_numbers, precision=self.precision)

    def _kept(self, product: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        """The hidden layer of a product, which is kept for the gradient."""
        hidden = self.activation(product.astype(self.kept_dtype or product.dtype))
        return hidden.astype(self.signals[...].dtype)

    def _first_by_row(self, signals, embedding) -> Float[Array, "rows width"]:
        """Signals, embedding and bias in one product: its gradient is one too, without slow sums over rows."""
        n, b = signals[0].shape
        kernel = jnp.concatenate([self.signals[...], self.embedded.kernel[...], self.embedded.bias[...][None]])
        known = jnp.broadcast_to(embedding[:, None, :], (n, b, embedding.shape[1]))
        rows = jnp.concatenate([jnp.stack(signals, axis=-1), known, jnp.ones((n, b, 1))], axis=-1)
        contract_last = (((1,), (0,)), ((), ()))
        return self.dot_general(rows.reshape(n * b, -1), kernel, contract_last, precision=self.precision)


def functional(network: Network):
    """A network as a function of (its parameters, signals, embedding), and the parameters."""
    graphdef, state = nnx.split(network)
    return lambda state, *inputs: nnx.merge(graphdef, state)(*inputs), state
