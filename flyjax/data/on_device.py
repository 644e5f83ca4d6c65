"""Voltages that stay on an accelerator from the simulation to the training and the evaluation.

A CPU keeps nothing here: its arrays are those of the recording (`array_store.empty`).
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std, uses_finite_differences
from flyjax.simulation import derivative
from flyjax.utils import distributed

#: Share of an accelerator's memory that kept voltages may take.
SHARE = 0.4
#: (1, T, N) by recording, for as long as it lives; the least recently used first.
_kept: weakref.WeakKeyDictionary[Recording, Array] = weakref.WeakKeyDictionary()


def _limit() -> float:
    """Bytes that may be kept; none where several processes train, which read recordings from the disk."""
    device = jax.local_devices()[0]
    stats = (device.platform != "cpu" and distributed.count() == 1 and device.memory_stats()) or {}
    return SHARE * stats.get("bytes_limit", 0)


def kept_bytes() -> int:
    """Device memory that is free once these voltages are dropped, in bytes."""
    return sum(voltage.nbytes for voltage in _kept.values())


def drop(recording: Recording) -> None:
    """Drop the voltages of a recording, if they are kept."""
    _kept.pop(recording, None)


def keep_only(recording: Recording) -> None:
    """Drop the voltages of all others."""
    for other in list(_kept):
        if other is not recording:
            drop(other)


def make_room(n_bytes: int) -> bool:
    """Drop the least recently used voltages until so many bytes fit. **Returns:** whether they do."""
    if n_bytes > (limit := _limit()):
        return False
    while _kept and kept_bytes() + n_bytes > limit:
        del _kept[next(iter(_kept))]
    return True


@partial(jax.jit, donate_argnums=0)
def _insert(voltage, before, after, begin):
    states = jnp.concatenate([before[None], after[:-1]])[None]
    return jax.lax.dynamic_update_slice_in_dim(voltage, states, begin, axis=1)


class Collector:
    """Collects the states of a simulation that is to be recorded, where there is room for them."""

    def __init__(self, shape: tuple[int, int]):
        self.voltage = jnp.zeros((1, *shape), jnp.float32) if make_room(4 * int(np.prod(shape))) else None

    def add(self, before: Float32[Any, " N"], after: Float32[Array, "chunk N"], frame: int) -> None:
        """Add a chunk: the state before its first frame, the states after each of its frames, and the frame."""
        if self.voltage is not None:
            self.voltage = _insert(self.voltage, before, after, frame)

    def keep(self, recording: Recording) -> None:
        """Keep what was collected as the voltages of a recording."""
        if self.voltage is not None:
            _kept[recording] = self.voltage


def voltages(recording) -> Float32[Array, "1 T N"]:
    """The voltages of a recording on the device: those kept, else a copy, which is kept where there is room.

    A CPU shares the memory of the recording.
    """
    if not (isinstance(recording, Recording) and (recording in _kept or make_room(recording.voltage.nbytes))):
        return jax.device_put(recording.voltage[None])
    voltage = _kept.pop(recording, None)
    _kept[recording] = voltage = jax.device_put(recording.voltage[None]) if voltage is None else voltage
    return voltage  # now the most recently used


def pairs(recording: Recording, frames: slice) -> tuple:
    """`Recording.pairs`, on the device where the voltages are kept there and the derivative follows from them."""
    s = recording.simulation
    is_stored = recording.derivative_in_memory is not None or uses_finite_differences(s, recording.split)
    if recording not in _kept or is_stored or measurement_noise_std(s, recording.split):
        return recording.pairs(frames)
    voltage, luminance = _kept[recording][0, frames], recording.luminance[frames]
    return voltage, luminance, derivative(*recording.ground_truth, voltage, luminance, s.delta_t, s.clamp_tau)
