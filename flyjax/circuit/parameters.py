"""What is true: weight per edge, time constant and resting potential per neuron."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.errors import UserError


class Parameters(NamedTuple):
    """Parameters of the ODE, float32."""

    weight: Float32[Array, " E"]  #: signed, per edge in the connectome's order
    tau: Float32[Array, " N"]  #: s
    v_rest: Float32[Array, " N"]


def expand(
    c: Connectome,
    bias: Float32[Array, " n_types"],
    tau: Float32[Array, " n_types"],
    syn_strength: Float32[Array, " P"],
    log_n_syn: Float32[Array, " K"] | None = None,
) -> Parameters:
    """Per neuron and edge from what flyvis shares per type, type pair and offset. Differentiable.

    w = sign * n_syn * syn_strength in that order of float32 products, as flyvis multiplies.

    Args:
        bias: resting potential per cell type.
        tau: time constant per cell type, s.
        syn_strength: per row of `c.pairs`.
        log_n_syn: natural log of the synapse count per row of `c.keys`; by default the
            connectome's own counts.
    """
    bias, tau, syn_strength = (jnp.asarray(a, jnp.float32) for a in (bias, tau, syn_strength))
    for name, array, n in (("bias", bias, c.n_types), ("tau", tau, c.n_types), ("syn_strength", syn_strength, len(c.pairs))):
        if array.shape != (n,):
            raise UserError(f"{name} has the shape {array.shape}, expected ({n},)")
    n_syn = c.key_n_syn if log_n_syn is None else jnp.exp(jnp.asarray(log_n_syn, jnp.float32))
    # Multiplied per key first: 2,355 products, then one gather.
    per_key = (c.pair_sign[c.key_pair] * n_syn) * syn_strength[c.key_pair]
    return Parameters(weight=per_key[c.offset_key], tau=tau[c.cell_type], v_rest=bias[c.cell_type])
