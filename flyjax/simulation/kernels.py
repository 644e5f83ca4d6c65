"""The message sums to choose from, and the layout of the state that goes with each.

Message sums per second of one CPU core at extent 8 (`scripts/benchmark.py simulate` measures whole steps):
segment 800, gather 1,600, csr 4,800 (8 states) to 10,900 (32), window 5,100, unrolled 6,000 (1 state) to 15,900
(4 to 8). Segment and gather are differentiable; the first three work for any weights.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.simulation import hex_convolution, message_sum
from flyjax.utils.errors import UserError, nearest

KERNELS = ("segment", "gather", "csr", "window", "unrolled")
#: States that the unrolled sum advances at once, at most: more do not fit into a core's cache.
UNROLLED_STATES = 8
#: Neuron updates (steps x sequences x neurons) from which a longer compilation pays: 1 s over the segment sum;
#: 5 to 10 s for unrolling with a few sequences, and with one.
_SHORT, _LONG_BATCH, _LONG = 1e7, 5e8, 2e9


@dataclass(frozen=True)
class Kernel:
    """A message sum by name and its layout; hashable, so that it can be a static argument.

    Outside, states are (..., N, B) with the B independent states last. Most kernels keep that inside; `window` and
    `unrolled` have one grid per cell type, (..., n_types, L, B), see `flyjax.simulation.hex_convolution`.
    """

    name: str
    c: Connectome

    @property
    def _grid(self) -> hex_convolution.Grid | None:
        return hex_convolution.make_grid(self.c) if self.name in ("window", "unrolled") else None

    def plan(self) -> tuple:
        """Index arrays to pass into the compiled function (as constants they would slow compilation)."""
        if self._grid:
            return ()
        return message_sum.buckets(self.c) if self.name == "gather" else message_sum.edges(self.c)

    def pack_weights(self, plan, weight: Float32[Array, " E"]):
        """Weights in the kernel's order; once per rollout."""
        if self._grid:
            return hex_convolution.key_weights(self._grid, weight)
        return message_sum.pack_weights(plan, weight) if self.name == "gather" else weight

    def sum(self, plan, weight, rate: Float32[Array, "N B"]) -> Float32[Array, "N B"]:
        """sum_j w_ij rate_j, of packed weights and rates in the kernel's layout."""
        if self._grid:
            return getattr(hex_convolution, f"{self.name}_sum")(self._grid, weight, rate)
        return getattr(message_sum, f"{self.name}_sum")(plan, weight, rate)

    def to_layout(self, x: Float32[Array, "... N B"]) -> jax.Array:
        """Into the kernel's layout."""
        return hex_convolution.to_grid(self._grid, x) if self._grid else x

    def from_layout(self, x: jax.Array) -> Float32[Array, "... N B"]:
        """Out of the kernel's layout."""
        return hex_convolution.from_grid(self._grid, x) if self._grid else x

    def pack_stimulus(self, luminance: Float32[Array, "... n_col B"]) -> jax.Array:
        """Luminance in the kernel's layout, still one value per column; for all frames at once."""
        dark = jnp.zeros((*luminance.shape[:-2], 1, luminance.shape[-1]), luminance.dtype)
        padded = jnp.concatenate([luminance, dark], axis=-2)
        return padded[..., self._grid.column_of_cell, :] if self._grid else padded

    def inject_input(self, stimulus: jax.Array) -> jax.Array:
        """One frame of `pack_stimulus` as the external input of every neuron, 0 but for R1..R8."""
        if self._grid:
            return jnp.asarray(self._grid.is_input)[:, None, None] * stimulus[None]
        slot = np.full(self.c.n_neurons, self.c.n_columns, np.int32)
        slot[self.c.inputs] = self.c.input_column
        return stimulus[slot]


def choose(c: Connectome, weight, traced: bool, n_steps: int, n_states: int, name: str = "auto") -> Kernel:
    """The fastest kernel for this circuit and this much work, or the one asked for.

    **Arguments:**

    - `weight`: (E,), read only where it is not `traced`.
    - `n_states`: independent sequences at once.

    **Raises:** `UserError` for an unknown name, or a kernel that cannot do what is asked.
    """
    if name not in ("auto", *KERNELS):
        raise UserError(f"no kernel {name!r}.{nearest(name, KERNELS)} Known: auto, {', '.join(KERNELS)}.")
    if name != "auto":
        if name not in ("segment", "gather") and traced:
            raise UserError(f"kernel {name!r} is not differentiable and runs outside jit only: use 'segment' or 'auto'")
        if name in ("window", "unrolled") and not hex_convolution.is_applicable(c, weight):
            raise UserError(f"kernel {name!r} needs weights that repeat over the lattice: use 'gather' or 'auto'")
        if name == "window" and n_states > 1:
            raise UserError("kernel 'window' advances one sequence: use 'unrolled' or 'auto' for a batch")
        return Kernel(name, c)
    if jax.default_backend() != "cpu":
        return Kernel("gather", c)  # no atomic additions: the same bits in every run
    if traced:
        return Kernel("segment", c)
    updates = n_steps * n_states * c.n_neurons
    long = updates > (_LONG if n_states < 4 else _LONG_BATCH)
    if long and n_states <= UNROLLED_STATES and hex_convolution.is_applicable(c, weight):
        return Kernel("unrolled", c)
    if n_states >= message_sum.CSR_STATES:
        return Kernel("csr", c)
    if updates < _SHORT:
        return Kernel("segment", c)
    return Kernel("window" if n_states == 1 and hex_convolution.is_applicable(c, weight) else "gather", c)
