"""Recordings: the voltages of a simulated fly, paired with what it saw."""

from flyjax.data.cache import Recordings, cached_recording
from flyjax.data.own_recording import known_connectome, own_splits, split_in_time, with_recording
from flyjax.data.recorder import held_out, record
from flyjax.data.recording import Part, Recording, load_recording
from flyjax.data.splits import SPLITS, measurement_noise_std, stimulus_for_split, uses_finite_differences

__all__ = [
    "SPLITS",
    "Part",
    "Recording",
    "Recordings",
    "cached_recording",
    "held_out",
    "known_connectome",
    "load_recording",
    "measurement_noise_std",
    "own_splits",
    "record",
    "split_in_time",
    "stimulus_for_split",
    "uses_finite_differences",
    "with_recording",
]
