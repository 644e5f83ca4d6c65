"""Which message sum to use, and the layout of the state that goes with it.

Message sums per second of one CPU core at extent 8 (see experiments/results/simulate.md):
segment 800, gather 1,600, csr 4,800 (8 states) to 10,900 (32), window 5,100, unrolled 6,000
(1 state) to 15,900 (4 to 8). Segment and gather are differentiable; the first three work for
any weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.simulation import hex_convolution, message_sum
from flyjax.utils.errors import UserError, nearest

KERNELS = ("segment", "gather", "csr", "window", "unrolled")
#: States that the unrolled sum advances at once, at most: more fall out of the cache.
LANES = 8
#: States from which the sparse product beats the segment sum.
CSR_LANES = 8
#: Neuron updates (steps x sequences x neurons) from which a longer compilation pays: 2 s over the
#: segment sum; 5 to 10 s for unrolling with a few sequences, and with one.
_SHORT, _LONG_BATCH, _LONG = 3e7, 5e8, 2e9


@dataclass(frozen=True)
class Kernel:
    """A message sum by name and its layout; hashable, so that it can be a static argument.

    Outside, states are (..., N, B) with the B independent sequences last. Most kernels keep that
    inside; `window` and `unrolled` have one grid per cell type, (..., n_types, L, B).
    """

    name: str
    c: Connectome

    @property
    def _on_grid(self) -> bool:
        return self.name in ("window", "unrolled")

    def plan(self):
        """Index arrays to pass into the compiled function (as constants they would slow compilation)."""
        if self.name == "gather":
            return message_sum.buckets(self.c)
        return () if self._on_grid else message_sum.edges(self.c)

    def pack(self, plan, weight: Float32[Array, " E"]):
        """Weights in the kernel's order; once per rollout."""
        if self.name == "gather":
            return message_sum.pack(plan, weight)
        return hex_convolution.key_weights(hex_convolution.grid(self.c), weight) if self._on_grid else weight

    def sum(self, plan, packed, rate):
        """sum over edges into i of w_ij rate_j, in the kernel's layout."""
        match self.name:
            case "segment":
                return message_sum.segment_sum(plan, packed, rate)
            case "gather":
                return message_sum.gather_sum(plan, packed, rate)
            case "csr":
                return message_sum.csr_sum(plan, packed, rate)
            case "window":
                return hex_convolution.window_sum(hex_convolution.grid(self.c), packed, rate)
            case "unrolled":
                return hex_convolution.unrolled_sum(hex_convolution.grid(self.c), packed, rate)

    def enter(self, x: Float32[Array, "... N B"]):
        """Into the kernel's layout."""
        return hex_convolution.to_grid(hex_convolution.grid(self.c), x) if self._on_grid else x

    def leave(self, state) -> Float32[Array, "... N B"]:
        """Out of the kernel's layout."""
        return hex_convolution.from_grid(hex_convolution.grid(self.c), state) if self._on_grid else state

    def light(self, luminance: Float32[Array, "T n_col B"]):
        """Luminance in the kernel's layout, still one value per column; for all frames at once."""
        dark = jnp.zeros((*luminance.shape[:-2], 1, luminance.shape[-1]), luminance.dtype)
        padded = jnp.concatenate([luminance, dark], axis=-2)
        return padded[..., hex_convolution.grid(self.c).column, :] if self._on_grid else padded

    def shine(self, light):
        """One frame's light as the neurons' external input."""
        if self._on_grid:
            return hex_convolution.grid(self.c).is_input[:, None, None] * light[None]
        slot = np.full(self.c.n_neurons, self.c.n_columns, np.int32)
        slot[self.c.inputs] = self.c.input_column
        return light[slot]


def concrete(*values) -> bool:
    """Whether none of the values is being traced by jax."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def choose(c: Connectome, weight, traced: bool, n_steps: int, n_lanes: int, name: str = "auto") -> Kernel:
    """The fastest kernel for this circuit and this much work, or the one asked for.

    **Raises:** `UserError` for an unknown name, or a kernel that cannot do what is asked.
    """
    if name not in ("auto", *KERNELS):
        raise UserError(f"no kernel {name!r}.{nearest(name, KERNELS)} Known: auto, {', '.join(KERNELS)}.")
    if name != "auto":
        if name not in ("segment", "gather") and traced:
            raise UserError(f"kernel {name!r} is not differentiable and runs outside jit only: use 'segment' or 'auto'")
        if name in ("window", "unrolled") and not hex_convolution.applies(c, weight):
            raise UserError(f"kernel {name!r} needs weights that repeat over the lattice: use 'gather' or 'auto'")
        if name == "window" and n_lanes > 1:
            raise UserError("kernel 'window' advances one sequence: use 'unrolled' or 'auto' for a batch")
        return Kernel(name, c)
    if jax.default_backend() != "cpu":
        return Kernel("gather", c)  # no atomic additions: the same bits in every run
    if traced:
        return Kernel("segment", c)
    updates = n_steps * n_lanes * c.n_neurons
    if updates > (_LONG if n_lanes < 4 else _LONG_BATCH) and hex_convolution.applies(c, weight):
        return Kernel("unrolled", c)
    if n_lanes >= CSR_LANES:
        return Kernel("csr", c)
    if updates < _SHORT:
        return Kernel("segment", c)
    return Kernel("window" if n_lanes == 1 and hex_convolution.applies(c, weight) else "gather", c)
