"""Checks of what a simulation is asked to do; values that jax traces are checked by shape alone."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters
from flyjax.utils.errors import UserError

#: Explicit Euler's stability margin for unclamped time constants.
MAX_DT_PER_TAU = 1.5


def is_concrete(*values) -> bool:
    """Whether none of the values is being traced by jax."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_luminance(c: Connectome, luminance) -> Float32[Array, "... T n_col"]:
    """A stimulus as float32.

    **Raises:** `UserError` unless it is (T, n_col) or (B, T, n_col), non-empty, finite and in [0, 1].
    """
    try:
        luminance = jnp.asarray(luminance, jnp.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"luminance is not an array of numbers: {error}") from None
    if luminance.ndim not in (2, 3) or luminance.shape[-1] != c.n_columns:
        raise UserError(
            f"luminance has the shape {luminance.shape}, expected (frames, {c.n_columns}) at extent {c.extent}"
        )
    if 0 in luminance.shape:
        raise UserError("luminance has no frames: an empty stimulus cannot be simulated")
    if is_concrete(luminance):
        low, high = float(luminance.min()), float(luminance.max())
        if not np.isfinite([low, high]).all():
            raise UserError("luminance contains NaN or infinite values: clean the stimulus first")
        if low < 0 or high > 1:
            raise UserError(f"luminance must lie in [0, 1], found {low:.4g} to {high:.4g}: rescale the stimulus")
    return luminance


def check_parameters(c: Connectome, p: Parameters, dt: float, clamp_tau: bool) -> Parameters:
    """Parameters as float32.

    **Raises:** `UserError` for a shape of another circuit, values that are not finite, time constants <= 0,
    a `dt` that is no positive number, or `clamp_tau=False` where dt > 1.5 min(tau).
    """
    p = Parameters(*(jnp.asarray(a, jnp.float32) for a in p))
    for name, array, n in zip(p._fields, p, (c.n_edges, c.n_neurons, c.n_neurons), strict=True):
        if array.shape != (n,):
            raise UserError(
                f"parameter {name} has the shape {array.shape}, expected ({n},): was it made for another extent?"
            )
        if is_concrete(array) and not bool(jnp.isfinite(array).all()):
            raise UserError(f"parameter {name} contains NaN or infinite values")
    if not (np.isfinite(dt) and dt > 0):
        raise UserError(f"dt must be a positive number of seconds, got {dt!r}")
    if is_concrete(p.tau):
        shortest = float(p.tau.min())
        if shortest <= 0:
            raise UserError(f"time constants must be positive, found {shortest:g} s")
        if not clamp_tau and dt > MAX_DT_PER_TAU * shortest:
            raise UserError(
                f"clamp_tau=False with dt={dt:g} s diverges: the smallest time constant is {shortest:g} s; "
                f"use clamp_tau=True or dt <= {MAX_DT_PER_TAU * shortest:.4g}"
            )
    return p
