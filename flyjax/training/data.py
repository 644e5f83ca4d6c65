"""Training data on the devices: recordings stacked by noise level, and batches of them.

Where the learner has a field for an unknown stimulus (`model.stimulus: field`), batches carry frame
numbers and no luminance, which is not even on the device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from flyjax.data.on_device import drop, keep_only, voltages
from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std, uses_finite_differences
from flyjax.models import Learner
from flyjax.simulation.kernels import Kernel
from flyjax.simulation.solve import VectorFieldArgs, derivatives, vector_field_args
from flyjax.utils import distributed

#: Derivatives of a recording larger than this are computed while it trains, not stored on the device.
TARGET_BYTES = 1e9
#: Frames whose derivatives are then computed at once.
TARGET_FRAMES = 64
#: Frames whose squares are summed at once.
STD_FRAMES = 16
#: Recordings are padded to as many as lanes while they are smaller than this together: then the number of
#: noise levels does not shape the program.
PADDING_BYTES = 256e6


def computes_target(recording) -> bool:
    """Whether the derivatives of the drawn frames are computed chunk by chunk instead of stored on the device.

    They cost a message sum (1 to 2 % of a step at extent 8), and stored as much memory as the voltages. With
    measurement noise or finite differences they depend on the noise that was drawn and are stored.
    """
    exact = (
        hasattr(recording, "ground_truth")
        and recording.has_equation
        and not measurement_noise_std(recording.simulation, recording.split)
    )
    exact = exact and not uses_finite_differences(recording.simulation, recording.split)
    return exact and recording.voltage.size * 4 > TARGET_BYTES


def stack_recordings(recordings: list[Recording], field: bool = False) -> dict[str, Any]:
    """Training data on the device, one leading index per noise level; no luminance where a `field` replaces it.

    **Returns:** `voltage` (L, T, N), `luminance` (L, T, n_col), `x_norm` (L,): 1.5 std(v), and either `target`
    (L, T, N) in 1/s or, where `computes_target`, `circuit`: the arrays it is computed from. Real recordings
    also have `dt` (L,) in s and `last` (L, T), the last frame of each frame's part.
    """
    data: dict[str, Any] = {
        "voltage": voltages(recordings[0]) if len(recordings) == 1 else _stack([r.voltage for r in recordings]),
        **({} if field else {"luminance": _stack([r.luminance for r in recordings])}),
        "x_norm": jnp.asarray([1.5 * _std(r.voltage) for r in recordings], jnp.float32),
    }
    if not field and all(map(computes_target, recordings)):
        data["circuit"] = jax.tree.map(lambda *x: jnp.stack(x), *map(_circuit, recordings))
    else:
        data["target"] = _stack([r.derivative for r in recordings])
    if all(hasattr(r, "spans") for r in recordings):
        data["dt"] = jnp.asarray([r.dt for r in recordings], jnp.float32)
        data["last"] = jnp.asarray(
            [np.concatenate([np.full(s.stop - s.start, s.stop - 1) for s in r.spans]) for r in recordings], jnp.int32
        )
    return data


def _stack(arrays: list[np.ndarray]) -> jax.Array:
    """Arrays on the device, stacked; a single one is not copied, and on a CPU its memory is shared where JAX can."""
    return jax.device_put(arrays[0][None] if len(arrays) == 1 else np.stack(arrays))


def _std(values: Float32[np.ndarray, "T N"]) -> float:
    """Standard deviation of all values, in float64 and in blocks that stay in cache."""
    first = second = 0.0
    for begin in range(0, len(values), STD_FRAMES):
        block = values[begin : begin + STD_FRAMES].astype(np.float64)
        first, second = first + float(block.sum()), second + float(np.einsum("tn,tn->", block, block))
    mean = first / values.size
    return float(np.sqrt(max(second / values.size - mean**2, 0.0)))


def _circuit(recording: Recording) -> VectorFieldArgs:
    connectome, parameters = recording.ground_truth
    kernel = Kernel("segment", connectome)
    return vector_field_args(kernel, kernel.plan(), parameters, recording.dt, recording.simulation.clamp_tau)


def batch_of(learner: Learner, data, level, frames: Int[Array, " B"], target=None) -> dict[str, Array]:
    """Voltage, luminance and target (unless it is given) of frames of a recording; their numbers instead of an unknown
    luminance."""
    if learner.learns_stimulus:
        return {"voltage": data["voltage"][level, frames], "frame": frames, "target": data["target"][level, frames]}
    batch = {name: data[name][level, frames] for name in ("voltage", "luminance")}
    if target is not None or "target" in data:
        return batch | {"target": data["target"][level, frames] if target is None else target}
    kernel, circuit = Kernel("segment", learner.connectome), jax.tree.map(lambda x: x[level], data["circuit"])
    return batch | {"target": derivatives(kernel, circuit, data["dt"][level], **batch)}


def with_luminance(learner: Learner, params, batch) -> dict[str, Array]:
    """A batch with its luminance, or with that of the learned field."""
    if not learner.learns_stimulus:
        return batch
    luminance = learner.luminance(params, batch["frame"])
    return {"voltage": batch["voltage"], "luminance": luminance, "target": batch["target"]}


class DeviceRecordings:
    """The recordings of one program on the devices; those of the previous one are freed first."""

    def __init__(self, recording_of: Callable[[float], Recording], field: bool = False):
        self._recording_of, self._field = recording_of, field
        self._key: Any = None
        self._data: Any = None

    def at(self, levels: tuple[float, ...], width: int, sharding):
        """`stack_recordings` of these noise levels, padded to `width` recordings where that is cheap."""
        key = levels, width, sharding
        if self._key == key:
            return self._data
        self._key = self._data = None
        for slot, level in enumerate(levels):
            recording = self._recording_of(level)
            was_computed = recording.derivative_in_memory is not None
            one = distributed.place(stack_recordings([recording], self._field), sharding)
            if not was_computed:
                recording.release_derivative()  # as large as the voltages, and now on the device
            slots = _slots(one, len(levels), width)
            if slots == 1:
                self._data = one
                break
            if slot == 0:
                self._data = _empty(one, slots, sharding)
            self._data = _fill(self._data, one, slot)
            drop(recording)  # it was copied
        keep_only(recording)  # the plan counts on the memory of the others
        self._key = key
        return self._data


def _slots(one, n_levels: int, width: int) -> int:
    """The number of recordings that the data have room for, padding included."""
    n_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
    return max(width, n_levels) if width * n_bytes <= PADDING_BYTES else n_levels


def expected(learner: Learner, n_frames: int, n_levels: int, width: int, sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what `DeviceRecordings.at` gives for real recordings whose targets are stored."""
    c, shape = learner.connectome, partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    values = shape((1, n_frames, c.n_neurons))
    one = {"voltage": values, "target": values, "x_norm": shape((1,)), "dt": shape((1,))}
    one["last"] = jax.ShapeDtypeStruct((1, n_frames), jnp.int32)
    if not learner.learns_stimulus:
        one["luminance"] = shape((1, n_frames, c.n_columns))
    slots = _slots(one, n_levels, width)
    return {name: jax.ShapeDtypeStruct((slots, *x.shape[1:]), x.dtype, sharding=sharding) for name, x in one.items()}


def _empty(one, slots: int, sharding):
    return jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype, device=sharding), one)


@partial(jax.jit, donate_argnums=0)
def _fill(data, one, slot):
    return jax.tree.map(lambda all_, x: jax.lax.dynamic_update_slice_in_dim(all_, x, slot, axis=0), data, one)
