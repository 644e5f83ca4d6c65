"""One training as a pure function: (candidate, key, data) -> trained parameters.

Nothing here knows of other candidates, files or clocks. Everything a candidate may vary is a traced
number; only what shapes the program is static (`Static`).

**Validation.** The last `validation_fraction` of the recording is not trained on, nor are up to
`GAP` frames before it: frames next to each other are near copies. At the end of every chunk the
one-step error on `VALIDATION_FRAMES` frames spread evenly over it is measured.

**Unknown stimulus.** Where the learner has a field for it (`model.stimulus: field`), batches carry frame
numbers and no luminance, which is not even on the device. A field over time cannot know frames after
the end of its movie, so those held out are then every k-th of the recording, k = 1 / `validation_fraction`:
their voltages and targets enter no loss.

**Several steps.** With `rollout_steps` R > 1 the learner is followed from the recorded state v_t for R
Euler steps under the recorded light, u_0 = v_t, u_{s+1} = u_s + dt f(u_s, I_{t+s}), and the error of step s
is (u_{s+1} - w_{s+1}) / dt against w_{s+1} = v_{t+s} + dt y_{t+s}, the recorded state before the noise of
that step came in. At s = 0 it is f - y, the one-step error. From s = 1 on, the recording has been
moved by the process noise of the steps between and the learner has not: even the true circuit then
misses by about noise_model_level sqrt(s) / dt per neuron, a floor that no learning lowers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from flyjax.config import Training, field_problem
from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std, uses_finite_differences
from flyjax.models import Learner, loss, rollout_loss
from flyjax.models.chunked_map import n_pieces
from flyjax.models.learner import group_of
from flyjax.models.losses import BENDS, COEFFICIENTS, FIELD_COEFFICIENTS
from flyjax.simulation.kernels import Kernel
from flyjax.simulation.vector_field import VectorFieldArgs, vector_field, vector_field_args
from flyjax.utils.errors import UserError

#: Frames at most between those trained on and those held out, and held-out frames that are evaluated.
GAP, VALIDATION_FRAMES = 50, 32
#: Derivatives of a recording larger than this are computed in the step, not kept on the device.
TARGET_BYTES = 1e9

RATES = {
    "W": "learning_rate_W_start",
    "networks": "learning_rate_start",
    "embedding": "learning_rate_embedding_start",
    "field": "learning_rate_field_start",  # only where the stimulus is unknown
}
#: Parameters are packed by these; units are given and never change.
GROUPS = (*RATES, "units")


class Static(NamedTuple):
    """What shapes the compiled program: one compilation per distinct value."""

    batch_size: int
    schedule: str
    select: str = "last"
    validates: bool = False
    rollout_steps: int = 1
    bends: bool = False


class TrainState(NamedTuple):
    """Everything that a training carries from step to step."""

    params: dict[str, Array]  # packed: one vector per learning-rate group
    optimizer: Any
    key: PRNGKeyArray
    step: Int[Array, ""]
    alive: Bool[Array, ""]  # False from the first non-finite loss or gradient on
    kept: dict[str, Array]  # as params: the best so far or the average; empty where the last are kept
    kept_loss: Float[Array, ""]  # validation loss of the best so far


def n_steps(training: Training, n_frames: int) -> int:
    """Optimiser steps: n_frames * data_augmentation_loop / batch_size * 0.2, as the predecessor."""
    return max(1, round(n_frames * training.data_augmentation_loop / training.batch_size * 0.2))


def static_of(training: Training) -> Static:
    """The static signature of a candidate."""
    return Static(
        training.batch_size,
        training.schedule,
        training.select,
        training.validation_fraction > 0,
        training.rollout_steps,
        any(getattr(training, name) > 0 for name in BENDS),
    )


def held_every(training: Training) -> int:
    """k, where every k-th frame is held out of the training of a field: k - 1, 2 k - 1, …"""
    return round(1 / training.validation_fraction)


def held_out_of_field(training: Training, n_frames: int) -> np.ndarray:
    """The frames on which a field was not trained."""
    every = held_every(training)
    return np.arange(every - 1, n_frames, every)


def check_field(learner: Learner, candidates: Sequence[Training], n_frames: int) -> None:
    """**Raises:** `UserError` where a candidate cannot be trained with an unknown stimulus."""
    for problem in (field_problem(learner.config, training, n_frames) for training in candidates):
        if problem:
            raise UserError(problem)


def validation_frames(training: Training, n_frames: int, field: bool = False) -> tuple[int, int]:
    """(number of frames to train on, number of frames held out: at the end, with a field every k-th).

    **Raises:** `UserError` where too few are left of either.
    """
    if field:
        held = len(held_out_of_field(training, n_frames))
        return n_frames - held, held
    held = int(n_frames * training.validation_fraction)
    used = n_frames - held - min(GAP, held // 4)
    if used < training.rollout_steps or (training.validation_fraction and not held):
        raise UserError(
            f"validation_fraction={training.validation_fraction} and rollout_steps={training.rollout_steps} leave {used} frames to train on "
            f"and {held} to validate on, of {n_frames}: lower them or record more frames"
        )
    return used, held


def numbers_of(
    training: Training, n_frames: int, level: int, units: tuple[float, float] = (1.0, 1.0), field: bool = False
) -> dict[str, np.ndarray]:
    """The traced numbers of a candidate.

    **Arguments:** `level`: its recording's index in `stack_recordings`; `units`: `units_of` that recording;
    `field`: whether the stimulus is unknown.
    """
    rates = [name for group, name in RATES.items() if field or group != "field"]
    names = (*rates, *COEFFICIENTS, *(FIELD_COEFFICIENTS if field else ()))
    numbers = {name: np.float32(getattr(training, name)) for name in names}
    used, held = validation_frames(training, n_frames, field)
    if field:
        numbers["held_every"] = np.int32(held_every(training))
    return numbers | {
        "warmup_fraction": np.float32(training.warmup_fraction),
        "average_decay": np.float32(training.average_decay),
        "n_starts": np.int32(used - training.rollout_steps + 1),
        "n_held": np.int32(held),
        "n_steps": np.int32(n_steps(training, n_frames)),
        "units": np.asarray(units, np.float32),
        "level": np.int32(level),
    }


def units_of(recording: Recording, n_frames: int = 1000) -> tuple[float, float]:
    """Standard deviation of all voltages and of all derivatives (1/s), over frames spread evenly."""
    frames = np.unique(np.linspace(0, len(recording.voltage) - 1, n_frames).round().astype(int))
    voltage, _, derivative = recording.pairs(frames)
    return tuple(max(float(np.std(x, dtype=np.float64)), 1e-6) for x in (voltage, derivative))


def computes_target(recording) -> bool:
    """Whether the derivatives of the drawn frames are computed in each step instead of kept on the device.

    They cost a message sum (1 to 2 % of a step at extent 8), and kept as much memory as the voltages; with
    measurement noise, and differenced, they depend on the noise that was drawn and are kept.
    """
    exact = hasattr(recording, "ground_truth") and not measurement_noise_std(recording.simulation, recording.split)
    exact = exact and not uses_finite_differences(recording.simulation, recording.split)
    return exact and recording.voltage.size * 4 > TARGET_BYTES


def check_rollouts(candidates: Sequence[Training], recording) -> None:
    """**Raises:** `UserError` where a part of the recording is shorter than a rollout."""
    steps = max(c.rollout_steps for c in candidates)
    shortest = min(s.stop - s.start for s in getattr(recording, "spans", (slice(0, len(recording.voltage)),)))
    if steps > shortest:
        raise UserError(
            f"rollout_steps={steps}, but a part of the recording has {shortest} frames: lower rollout_steps or n_recordings"
        )


def stack_recordings(recordings: list[Recording], field: bool = False) -> dict[str, Any]:
    """Training data on the device, one leading index per noise level; no luminance where a `field` is learned for it.

    Returns `voltage` (L, T, N), `luminance` (L, T, n_col), `x_norm` (L,): 1.5 std(v), and either `target`
    (L, T, N) or, where `computes_target`, `circuit`: the arrays they are computed from. Real recordings also
    have `dt` (L,) in s and `last` (L, T), the last frame of each frame's part.
    """
    data: dict[str, Any] = {
        "voltage": jnp.stack([jnp.asarray(r.voltage) for r in recordings]),
        **({} if field else {"luminance": jnp.stack([jnp.asarray(r.luminance) for r in recordings])}),
        "x_norm": jnp.asarray([1.5 * float(np.std(r.voltage, dtype=np.float64)) for r in recordings], jnp.float32),
    }
    if not field and all(map(computes_target, recordings)):
        data["circuit"] = jax.tree.map(lambda *x: jnp.stack(x), *map(_vector_field_args, recordings))
    else:
        data["target"] = jnp.stack([jnp.asarray(r.derivative) for r in recordings])
    if all(hasattr(r, "spans") for r in recordings):
        data["dt"] = jnp.asarray([r.dt for r in recordings], jnp.float32)
        data["last"] = jnp.asarray(
            [np.concatenate([np.full(s.stop - s.start, s.stop - 1) for s in r.spans]) for r in recordings], jnp.int32
        )
    return data


def _vector_field_args(recording: Recording) -> VectorFieldArgs:
    connectome, parameters = recording.ground_truth
    kernel = Kernel("segment", connectome)
    return vector_field_args(kernel, kernel.plan(), parameters, recording.dt, recording.simulation.clamp_tau)


def _target(
    connectome, circuit: VectorFieldArgs, dt, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]
) -> Float[Array, "B N"]:
    """The exact right-hand side, 1/s, as `flyjax.simulation.derivative` with the circuit as arrays."""
    kernel = Kernel("segment", connectome)
    return (vector_field(kernel, circuit, voltage.T, kernel.pack_stimulus(luminance.T)) / dt).T


def batch_of(learner: Learner, data, level, frames: Int[Array, " B"]) -> dict[str, Array]:
    """Voltage, luminance and target of some frames of a recording; their numbers in the place of an unknown luminance."""
    if learner.learns_stimulus:
        return {"voltage": data["voltage"][level, frames], "frame": frames, "target": data["target"][level, frames]}
    batch = {name: data[name][level, frames] for name in ("voltage", "luminance")}
    if "target" in data:
        return batch | {"target": data["target"][level, frames]}
    circuit = jax.tree.map(lambda x: x[level], data["circuit"])
    return batch | {"target": _target(learner.connectome, circuit, data["dt"][level], **batch)}


def lit(learner: Learner, params, batch) -> dict[str, Array]:
    """A batch as the loss takes it: with the luminance that it carries, or that the learned field says."""
    if not learner.learns_stimulus:
        return batch
    light = learner.luminance(params, batch["frame"])
    return {"voltage": batch["voltage"], "luminance": light, "target": batch["target"]}


def pack(params) -> dict[str, Array]:
    """Parameters as one vector per learning-rate group.

    The optimiser then runs three kernels and not three per matrix, which on small circuits is most of a step.
    """
    leaves: dict[str, list] = {group: [] for group in GROUPS}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaves[group_of(path)].append(leaf.reshape(-1))
    return {group: jnp.concatenate(own) for group, own in leaves.items() if own}  # orbax refuses arrays of no size


def unpack(learner: Learner, packed) -> dict:
    """The parameters that `pack` packed."""
    like = jax.eval_shape(learner.init, jax.random.key(0))
    with_path, tree = jax.tree_util.tree_flatten_with_path(like)
    groups = [group_of(path) for path, _ in with_path]
    # The gradient of one split is one concatenation; that of many slices is as many padded sums.
    pieces = {}
    for group in GROUPS:
        sizes = [leaf.size for g, (_, leaf) in zip(groups, with_path, strict=True) if g == group]
        pieces[group] = iter(jax.lax.split(packed[group], sizes) if sizes else ())
    return jax.tree.unflatten(
        tree, [next(pieces[g]).reshape(leaf.shape) for g, (_, leaf) in zip(groups, with_path, strict=True)]
    )


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
        {group: optax.adam(rate(name)) for group, name in RATES.items() if name in numbers}
        | {"units": optax.set_to_zero()},
        lambda packed: {group: group for group in packed},
    )

    def update(updates, state, params=None):
        # Adam's bias correction raises a float to the integer count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def init_state(learner: Learner, static: Static, numbers, key: PRNGKeyArray) -> TrainState:
    """The state before the first step: a pure function of the key."""
    init_key, sample_key = jax.random.split(key)
    params = learner.init(init_key)
    if "units" in params:
        params["units"] = jnp.asarray(numbers["units"])
    params = pack(params)
    optimizer = make_optimizer(numbers, static.schedule)
    kept = {} if static.select == "last" else jax.tree.map(jnp.copy, params)
    return TrainState(
        params, optimizer.init(params), sample_key, jnp.int32(0), jnp.bool_(True), kept, jnp.float32(jnp.inf)
    )


def selected(state: TrainState) -> dict[str, Array]:
    """The packed parameters that a training is about: kept ones, or the last where none are kept (yet)."""
    return state.kept if state.kept else state.params


def draw_frames(
    static: Static, n_frames: int | Int[Array, ""], state: TrainState, length: int
) -> Int[Array, "length B"]:
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
    level, x_norm = numbers["level"], data["x_norm"][numbers["level"]]

    def total(packed):
        params = unpack(learner, packed)
        if static.rollout_steps == 1:
            batch = lit(learner, params, batch_of(learner, data, level, frames))
            return loss(learner, params, numbers, batch, x_norm, static.bends)
        # Starts from which all steps lie in one part of the recording.
        starts = jnp.minimum(frames, data["last"][level, frames] - (static.rollout_steps - 1))
        batch = batch_of(
            learner, data, level, (starts[:, None] + jnp.arange(static.rollout_steps)[None, :]).reshape(-1)
        )
        batch = {name: x.reshape(-1, static.rollout_steps, x.shape[-1]) for name, x in batch.items()}
        return rollout_loss(learner, params, numbers, batch, x_norm, data["dt"][level], static.bends)

    (value, data_term), gradient = jax.value_and_grad(total, has_aux=True)(state.params)
    optimizer = make_optimizer(numbers, static.schedule)
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)

    running = state.step < numbers["n_steps"]
    healthy = jnp.isfinite(value) & jnp.isfinite(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
    take = running & state.alive & healthy

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)

    kept = state.kept
    if static.select == "average":
        # Short at first, so that the start is soon forgotten.
        t = state.step.astype(jnp.float32)
        decay = jnp.minimum(numbers["average_decay"], (1.0 + t) / (10.0 + t))
        # Units are given: averaging them would only round.
        average = {g: decay * kept[g] + (1.0 - decay) * params[g] if g in RATES else params[g] for g in params}
        kept = keep(average, kept)
    state = TrainState(
        params=keep(params, state.params),
        optimizer=keep(moments, state.optimizer),
        key=state.key,
        step=state.step + take.astype(jnp.int32),
        alive=state.alive & (healthy | ~running),
        kept=kept,
        kept_loss=state.kept_loss,
    )
    return state, jnp.where(take, jnp.stack([data_term, value]), jnp.nan)


def validation_loss(learner: Learner, static: Static, numbers, data, packed) -> Float[Array, ""]:
    """Root mean square one-step error, 1/s, on frames spread evenly over those held out."""
    n_frames = data["voltage"].shape[1]
    groups = -(-VALIDATION_FRAMES // static.batch_size)
    count = groups * static.batch_size
    position = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
    held = jnp.floor(position * numbers["n_held"].astype(jnp.float32)).astype(jnp.int32)
    frames = (held + 1) * numbers["held_every"] - 1 if learner.learns_stimulus else n_frames - 1 - held
    params = unpack(learner, packed)
    errors = jax.lax.map(
        lambda own: learner.square_error(
            params, **lit(learner, params, batch_of(learner, data, numbers["level"], own))
        ),
        frames.reshape(groups, -1),
    )
    return jnp.sqrt(jnp.sum(errors) / (count * data["voltage"].shape[2]))


def train_chunk(
    learner: Learner, static: Static, length: int, numbers, data, state: TrainState
) -> tuple[TrainState, Float[Array, "length 3"]]:
    """`length` steps in one scan, then validation.

    **Returns:** the state and per step (data, total, validation) losses; the last column is NaN but for the
    last step taken, and there too without validation.
    """
    frames = draw_frames(static, numbers["n_starts"], state, length)
    if learner.learns_stimulus:
        # Of every k frames the first k - 1 are trained on.
        frames = frames + frames // (numbers["held_every"] - 1)

    def body(carry, frames):
        return train_step(learner, static, numbers, data, carry, frames)

    before = state.step
    state, losses = jax.lax.scan(body, state, frames)
    at_end = jnp.arange(length) == state.step - before - 1
    value = jnp.float32(jnp.nan)
    if static.validates:
        value = validation_loss(learner, static, numbers, data, state.params)
        if static.select == "best":
            better = jnp.any(at_end) & (value < state.kept_loss)  # false where it is not finite
            kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.kept)
            state = state._replace(kept=kept, kept_loss=jnp.where(better, value, state.kept_loss))
    return state, jnp.concatenate([losses, jnp.where(at_end, value, jnp.nan)[:, None]], axis=1)


def train_lanes(learner: Learner, static: Static, length: int, numbers, data, state: TrainState):
    """`train_chunk` of stacked lanes; `data` is shared. **Returns:** stacked states, losses (lanes, length, 3).

    Lanes large enough to be worked on in pieces take turns, so that a piece of one is in cache and not
    one of all; a single lane is not batched either. Small ones are batched: fewer, larger kernels.
    """
    n_lanes = state.step.shape[0]

    def lane(numbers, state):
        return train_chunk(learner, static, length, numbers, data, state)

    if n_lanes == 1 or n_pieces(learner.connectome.n_neurons * static.batch_size) > 1:
        return jax.lax.map(lambda each: lane(*each), (numbers, state))
    return jax.vmap(lane)(numbers, state)
