"""One training as a pure function: (candidate, key, data) -> trained parameters.

It does not depend on other candidates, files or the time. Everything a candidate may vary is a traced
number; only what shapes the program is static (`Static`).

**Several steps.** With `rollout_steps` R > 1 the learner is followed from the recorded state v_t for R
Euler steps under the recorded luminance, u_0 = v_t, u_{s+1} = u_s + dt f(u_s, I_{t+s}), and the error of step s
is (u_{s+1} - w_{s+1}) / dt against w_{s+1} = v_{t+s} + dt y_{t+s}, the recorded state without the noise of
that step. At s = 0 it is f - y, the one-step error. From s = 1 on, the recording has been
moved by the process noise of the steps between and the learner has not: even the true circuit then
has an error of about noise_model_level sqrt(s) / dt per neuron, a floor that no learning lowers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from flyjax.models import Learner, loss, rollout_loss
from flyjax.models.chunked_map import n_segments
from flyjax.training.data import TARGET_FRAMES, batch_of, with_luminance
from flyjax.training.hparams import RATES, VALIDATION_FRAMES, Static
from flyjax.training.optimizer import make_optimizer, pack, unpack


class TrainState(NamedTuple):
    """Everything that a training carries from step to step."""

    params: dict[str, Array]  # packed: one vector per learning-rate group
    optimizer: Any
    key: UInt32[Array, "2"]  # of the frames; its numbers, which NumPy can hold
    step: Int[Array, ""]
    is_finite: Bool[Array, ""]  # False from the first non-finite loss or gradient on
    selected_params: dict[str, Array]  # packed: the best so far or the average; empty where the last are selected
    selected_loss: Float[Array, ""]  # validation loss of the best so far


def init_state(learner: Learner, static: Static, hparams, key: PRNGKeyArray) -> TrainState:
    """The state before the first step: a pure function of the key."""
    init_key, sample_key = jax.random.split(key)
    params = learner.init(init_key)
    if "units" in params:
        params["units"] = jnp.asarray(hparams["units"])
    params = pack(params)
    optimizer = make_optimizer(hparams, static.schedule)
    selected = {} if static.select == "last" else jax.tree.map(jnp.copy, params)
    sample_key = jax.random.key_data(sample_key)
    return TrainState(
        params, optimizer.init(params), sample_key, jnp.int32(0), jnp.bool_(True), selected, jnp.float32(jnp.inf)
    )


def result_params(state: TrainState) -> dict[str, Array]:
    """The packed parameters that a training results in: the selected ones, by default the last."""
    return state.selected_params if state.selected_params else state.params


def draw_frames(static: Static, hparams, state: TrainState, length: int) -> Int[Array, "length B"]:
    """The frames of the next `length` steps, drawn with replacement by step counter.

    All at once and before the scan: inside it, threefry's small loops took a fifth of a small circuit's step.
    """

    def draw(offset):
        key = jax.random.fold_in(state.key, state.step + offset)
        return jax.random.randint(key, (static.batch_size,), 0, hparams["n_starts"], jnp.int32)

    frames = jax.vmap(draw)(jnp.arange(length))
    if "holdout_stride" in hparams:  # of every k frames the first k - 1 are trained on
        frames = frames + frames // (hparams["holdout_stride"] - 1)
    return frames


def targets_of(
    learner: Learner, static: Static, hparams, data, frames: Int[Array, "length B"]
) -> Float[Array, "length B N"] | None:
    """The derivatives of the frames of many steps, 1/s; None where the recording holds them.

    Before the scan and many frames at once: inside it, a few frames at a time, each step would wait for small kernels.
    """
    if "target" in data or static.rollout_steps > 1:
        return None
    width = max(1, TARGET_FRAMES // static.batch_size)
    padded = jnp.pad(frames, ((0, -len(frames) % width), (0, 0)), mode="edge").reshape(-1, width * static.batch_size)
    found = jax.lax.map(lambda own: batch_of(learner, data, hparams["level"], own)["target"], padded)
    return found.reshape(-1, static.batch_size, found.shape[-1])[: len(frames)]


def train_step(
    learner: Learner,
    static: Static,
    hparams,
    data,
    state: TrainState,
    frames: Int[Array, " B"],
    target: Float[Array, "B N"] | None = None,
) -> tuple[TrainState, Float[Array, " 2"]]:
    """One optimiser step on some frames, and its (data, total) loss; NaN where the step was not taken.

    **Arguments:** `target`: the frames' derivatives, 1/s, where they are known; else they are those of `data`.

    A step is not taken after the last one, nor from the first non-finite loss or gradient on: the
    parameters then stay the last finite ones, and neighbours in a vmap are untouched.
    """
    level, x_norm = hparams["level"], data["x_norm"][hparams["level"]]

    def total(packed):
        params = unpack(learner, packed)
        if static.rollout_steps == 1:
            batch = with_luminance(learner, params, batch_of(learner, data, level, frames, target))
            return loss(learner, params, hparams, batch, x_norm, static.with_curvature)
        # Starts from which all steps lie in one part of the recording.
        starts = jnp.minimum(frames, data["last"][level, frames] - (static.rollout_steps - 1))
        batch = batch_of(
            learner, data, level, (starts[:, None] + jnp.arange(static.rollout_steps)[None, :]).reshape(-1)
        )
        batch = {name: x.reshape(-1, static.rollout_steps, x.shape[-1]) for name, x in batch.items()}
        return rollout_loss(learner, params, hparams, batch, x_norm, data["dt"][level], static.with_curvature)

    (value, data_term), gradient = jax.value_and_grad(total, has_aux=True)(state.params)
    optimizer = make_optimizer(hparams, static.schedule)
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)

    running = state.step < hparams["n_steps"]
    healthy = jnp.isfinite(value) & jnp.isfinite(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
    take = running & state.is_finite & healthy

    def if_taken(new, old):
        return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)

    selected = state.selected_params
    if static.select == "average":
        # Short at first, so that the start is soon forgotten.
        t = state.step.astype(jnp.float32)
        decay = jnp.minimum(hparams["average_decay"], (1.0 + t) / (10.0 + t))
        # Units never change: averaging them would only round.
        average = {g: decay * selected[g] + (1.0 - decay) * params[g] if g in RATES else params[g] for g in params}
        selected = if_taken(average, selected)
    state = TrainState(
        params=if_taken(params, state.params),
        optimizer=if_taken(moments, state.optimizer),
        key=state.key,
        step=state.step + take.astype(jnp.int32),
        is_finite=state.is_finite & (healthy | ~running),
        selected_params=selected,
        selected_loss=state.selected_loss,
    )
    return state, jnp.where(take, jnp.stack([data_term, value]), jnp.nan)


def validation_loss(learner: Learner, static: Static, hparams, data, packed) -> Float[Array, ""]:
    """Root mean square one-step error, 1/s, on frames spread evenly over those held out."""
    n_frames = data["voltage"].shape[1]
    groups = -(-VALIDATION_FRAMES // static.batch_size)
    count = groups * static.batch_size
    position = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
    number = jnp.floor(position * hparams["n_held_out"].astype(jnp.float32)).astype(jnp.int32)
    frames = (number + 1) * hparams["holdout_stride"] - 1 if learner.learns_stimulus else n_frames - 1 - number
    params = unpack(learner, packed)
    errors = jax.lax.map(
        lambda own: learner.squared_error(
            params, **with_luminance(learner, params, batch_of(learner, data, hparams["level"], own))
        ),
        frames.reshape(groups, -1),
    )
    return jnp.sqrt(jnp.sum(errors) / (count * data["voltage"].shape[2]))


def train_chunk(
    learner: Learner, static: Static, length: int, hparams, data, state: TrainState
) -> tuple[TrainState, Float[Array, "length 3"]]:
    """`length` steps in one scan, then validation.

    **Returns:** the state and per step (data, total, validation) losses; the last column is NaN but for the
    last step taken, and there too without validation.
    """
    frames = draw_frames(static, hparams, state, length)

    def body(carry, own):
        return train_step(learner, static, hparams, data, carry, *own)

    before = state.step
    state, losses = jax.lax.scan(body, state, (frames, targets_of(learner, static, hparams, data, frames)))
    at_end = jnp.arange(length) == state.step - before - 1
    value = jnp.float32(jnp.nan)
    if static.validates:
        value = validation_loss(learner, static, hparams, data, state.params)
        if static.select == "best":
            better = jnp.any(at_end) & (value < state.selected_loss)  # false where it is not finite
            selected = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.selected_params)
            state = state._replace(
                selected_params=selected, selected_loss=jnp.where(better, value, state.selected_loss)
            )
    return state, jnp.concatenate([losses, jnp.where(at_end, value, jnp.nan)[:, None]], axis=1)


def train_lanes(learner: Learner, static: Static, length: int, hparams, data, state: TrainState):
    """`train_chunk` of stacked lanes; `data` is shared. **Returns:** stacked states, losses (lanes, length, 3).

    Lanes large enough to be evaluated in segments run one after the other, so that a segment of one is in cache and
    not one of all; a single lane is not batched either. Small ones are batched: fewer, larger kernels.
    """
    n_lanes = state.step.shape[0]

    def lane(hparams, state):
        return train_chunk(learner, static, length, hparams, data, state)

    if n_lanes == 1 or n_segments(learner.connectome.n_neurons * static.batch_size, learner.segment_rows) > 1:
        return jax.lax.map(lambda each: lane(*each), (hparams, state))
    return jax.vmap(lane)(hparams, state)
