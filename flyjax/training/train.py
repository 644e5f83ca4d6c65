"""One training as a pure function: (candidate, key, data) -> trained parameters.

Nothing here knows of other candidates, files or clocks. Everything a candidate may vary is a traced
number; only the batch size and the schedule are static, because they shape the program.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from flyjax.config import Training
from flyjax.model import Learner, loss
from flyjax.model.losses import COEFFICIENTS
from flyjax.model.pieces import n_pieces
from flyjax.recording import Recording

RATES = {
    "W": "learning_rate_W_start",
    "networks": "learning_rate_start",
    "embedding": "learning_rate_embedding_start",
}


class Static(NamedTuple):
    """What shapes the compiled program: one compilation per distinct value."""

    batch_size: int
    schedule: str


class TrainState(NamedTuple):
    """Everything that a training carries from step to step."""

    params: dict[str, Array]  # packed: one vector per learning-rate group
    optimizer: Any
    key: PRNGKeyArray
    step: Int[Array, ""]
    alive: Bool[Array, ""]  # False from the first non-finite loss or gradient on


def n_steps(training: Training, n_frames: int) -> int:
    """Optimiser steps: n_frames * data_augmentation_loop / batch_size * 0.2, as the predecessor."""
    return max(1, round(n_frames * training.data_augmentation_loop / training.batch_size * 0.2))


def static_of(training: Training) -> Static:
    """The static signature of a candidate."""
    return Static(training.batch_size, training.schedule)


def numbers_of(training: Training, n_frames: int, level: int) -> dict[str, np.ndarray]:
    """The traced numbers of a candidate; `level` is its recording's index in `stack_recordings`."""
    numbers = {name: np.float32(getattr(training, name)) for name in (*RATES.values(), *COEFFICIENTS)}
    return numbers | {
        "warmup_fraction": np.float32(training.warmup_fraction),
        "n_steps": np.int32(n_steps(training, n_frames)),
        "level": np.int32(level),
    }


def stack_recordings(recordings: list[Recording]) -> dict[str, Array]:
    """Training data on the device, one leading index per noise level.

    Returns `voltage` and `target` (L, T, N), `luminance` (L, T, n_col), `x_norm` (L,): 1.5 std(v).
    """
    return {
        "voltage": jnp.stack([jnp.asarray(r.voltage) for r in recordings]),
        "target": jnp.stack([jnp.asarray(r.derivative) for r in recordings]),
        "luminance": jnp.stack([jnp.asarray(r.luminance) for r in recordings]),
        "x_norm": jnp.asarray([1.5 * float(np.std(r.voltage, dtype=np.float64)) for r in recordings], jnp.float32),
    }


def pack(params) -> dict[str, Array]:
    """Parameters as one vector per learning-rate group.

    The optimiser then runs three kernels and not three per matrix, which on small circuits is most of a step.
    """
    vectors = {"W": params["W"], "embedding": params["embedding"].reshape(-1)}
    networks = {k: v for k, v in params.items() if k not in vectors}
    return vectors | {"networks": jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(networks)])}


def unpack(learner: Learner, packed) -> dict:
    """The parameters that `pack` packed."""
    like = jax.eval_shape(learner.init, jax.random.key(0))
    networks = {k: v for k, v in like.items() if k not in ("W", "embedding")}
    leaves, tree = jax.tree.flatten(networks)
    # The gradient of one split is one concatenation; that of many slices is as many padded sums.
    pieces = jax.lax.split(packed["networks"], [leaf.size for leaf in leaves])
    pieces = [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    return {
        "W": packed["W"],
        "embedding": packed["embedding"].reshape(like["embedding"].shape),
        **jax.tree.unflatten(tree, pieces),
    }


def make_optimizer(numbers, schedule: str) -> optax.GradientTransformation:
    """Adam on packed parameters with one learning rate per group; the rates may be traced.

    `warmup_cosine` is a unit schedule times the rate, because optax' own refuses a traced peak.
    """

    def unit(count):
        progress = count.astype(jnp.float32) / numbers["n_steps"].astype(jnp.float32)
        warm = jnp.minimum(1.0, (progress + 1e-6) / (numbers["warmup_fraction"] + 1e-6))
        return warm * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(progress, 1.0)))

    def rate(name):
        constant = numbers[name]
        return constant if schedule == "constant" else lambda count: constant * unit(count)

    inner = optax.multi_transform(
        {group: optax.adam(rate(name)) for group, name in RATES.items()}, {group: group for group in RATES}
    )

    def update(updates, state, params=None):
        # Adam's bias correction raises a float to the integer count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def init_state(learner: Learner, static: Static, numbers, key: PRNGKeyArray) -> TrainState:
    """The state before the first step: a pure function of the key."""
    init_key, sample_key = jax.random.split(key)
    params = pack(learner.init(init_key))
    optimizer = make_optimizer(numbers, static.schedule)
    return TrainState(params, optimizer.init(params), sample_key, jnp.int32(0), jnp.bool_(True))


def draw_frames(static: Static, n_frames: int, state: TrainState, length: int) -> Int[Array, "length B"]:
    """The frames of the next `length` steps, drawn with replacement by step counter.

    All at once and before the scan: inside it, threefry's small loops took a fifth of a small circuit's step.
    """

    def draw(offset):
        key = jax.random.fold_in(state.key, state.step + offset)
        return jax.random.randint(key, (static.batch_size,), 0, n_frames)

    return jax.vmap(draw)(jnp.arange(length))


def train_step(
    learner: Learner, static: Static, numbers, data, state: TrainState, frames: Int[Array, " B"]
) -> tuple[TrainState, Float[Array, " 2"]]:
    """One optimiser step on some frames, and its (data, total) loss; NaN where the step was not taken.

    A step is not taken after the last one, nor from the first non-finite loss or gradient on: the
    parameters then stay the last finite ones, and neighbours in a vmap are untouched.
    """
    batch = {name: data[name][numbers["level"], frames] for name in ("voltage", "target", "luminance")}
    x_norm = data["x_norm"][numbers["level"]]
    (total, data_term), gradient = jax.value_and_grad(
        lambda packed: loss(learner, unpack(learner, packed), numbers, batch, x_norm), has_aux=True
    )(state.params)
    optimizer = make_optimizer(numbers, static.schedule)
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)

    running = state.step < numbers["n_steps"]
    healthy = jnp.isfinite(total) & jnp.isfinite(optax.global_norm(gradient))
    take = running & state.alive & healthy

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)

    state = TrainState(
        params=keep(params, state.params),
        optimizer=keep(moments, state.optimizer),
        key=state.key,
        step=state.step + take.astype(jnp.int32),
        alive=state.alive & (healthy | ~running),
    )
    return state, jnp.where(take, jnp.stack([data_term, total]), jnp.nan)


def train_chunk(
    learner: Learner, static: Static, length: int, numbers, data, state: TrainState
) -> tuple[TrainState, Float[Array, "length 2"]]:
    """`length` steps in one scan."""

    frames = draw_frames(static, data["voltage"].shape[1], state, length)

    def body(carry, frames):
        return train_step(learner, static, numbers, data, carry, frames)

    return jax.lax.scan(body, state, frames)


def train_lanes(learner: Learner, static: Static, length: int, numbers, data, state: TrainState):
    """`train_chunk` of stacked lanes; `data` is shared. **Returns:** stacked states, losses (lanes, length, 2).

    Lanes large enough to be worked on in pieces take turns, so that a piece of one is in cache and not
    one of all; a single lane is not batched either. Small ones are batched: fewer, larger kernels.
    """
    n_lanes = state.step.shape[0]

    def lane(numbers, state):
        return train_chunk(learner, static, length, numbers, data, state)

    if n_lanes == 1 or n_pieces(learner.connectome.n_neurons * static.batch_size) > 1:
        return jax.lax.map(lambda each: lane(*each), (numbers, state))
    return jax.vmap(lane)(numbers, state)
