"""What a configuration means for its two splits, and the content hash that identifies a recording.

The training split has process noise, measurement noise and targets as configured. The test split is noise-free, has
exact targets and shows another stimulus.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from flyjax import stimulus
from flyjax.config import Simulation, content_hash
from flyjax.ground_truth import files_of
from flyjax.stimulus.registry import SPLITS, check_known


def stimulus_for_split(simulation: Simulation, split: str) -> str:
    """The stimulus of a split: the test split shows another kind unless the configuration names one.

    Where that is a data set which is not on this machine, the held-out part of the training's data set is shown.

    **Raises:** `UserError` for an unknown split or stimulus.
    """
    check_known("split", split, SPLITS)
    name = simulation.visual_input_type if split == "train" else simulation.test_visual_input_type
    if name is not None:
        stimulus.parts_of(name)
        return name
    other = stimulus.other_kind(simulation.visual_input_type)
    own, data_sets = stimulus.other_kind(other), stimulus.DATA_SETS
    absent = other in data_sets and data_sets[other].find(simulation.data_path) is None
    return own if absent and data_sets[own].find(simulation.data_path) else other


def videos_line(simulation: Simulation, split: str) -> str | None:
    """One line on how the videos of a split are shown, None for other stimuli."""
    name = stimulus_for_split(simulation, split)
    videos = {part for part, _ in stimulus.parts_of(name)} & {*stimulus.DATA_SETS}
    if not videos:
        return None
    line = f"{split} split: {name}"
    usual = stimulus.other_kind(simulation.visual_input_type)
    if split == "test" and simulation.test_visual_input_type is None and name != usual:
        line += f" that is held out, because {usual} is not on this machine"
    if videos != {"optical_flow"}:
        line += f", video pipeline {simulation.video_pipeline}"
    if simulation.blank_prefix_fraction:
        blank = simulation.blank_prefix_fraction, simulation.blank_prefix_luminance
        line += ", the first {:.0%} of every clip blank (luminance {:g})".format(*blank)
    return line


def measurement_noise_std(simulation: Simulation, split: str) -> float:
    """Standard deviation of the measurement noise of a split."""
    return simulation.measurement_noise_level if split == "train" else 0.0


def uses_finite_differences(simulation: Simulation, split: str) -> bool:
    """Whether targets are differences of the recorded voltages."""
    return split == "train" and simulation.target == "difference"


def storage_dtype(simulation: Simulation, split: str) -> str:
    """Type of the voltages on disk; the test split, from which metrics are taken, is exact."""
    return simulation.voltage_dtype if split == "train" else "float32"


@lru_cache(maxsize=1)
def _code_hash() -> str:
    """Hash of the rooms that make a recording: edited code never reads an old recording."""
    package = Path(__file__).parents[1]
    rooms = ("circuit", "simulation", "ground_truth", "stimulus", "data")
    digest = hashlib.sha256()
    for source in sorted(path for room in rooms for path in (package / room).rglob("*.*")):
        if source.suffix in (".py", ".json"):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def cache_key(simulation: Simulation, noise_model_level: float, split: str, seed: int) -> str:
    """Content hash of everything a recording depends on: configuration, code, checkpoint, videos."""
    name = stimulus_for_split(simulation, split)
    # The stimulus shown and its files count, wherever they lie; settings of the other split do not.
    excluded = {"visual_input_type", "test_visual_input_type", "data_path", "connectome"}
    if split == "test":
        excluded |= {"n_frames", "n_recordings", "voltage_dtype", "store_derivative", "target", "observe_every"}
    else:
        excluded |= {"n_test_frames"}
    content = simulation.model_dump(mode="json", exclude=excluded)
    content["parameters"] = f"{simulation.parameters == 'sampled'} {files_of(simulation)}"
    level = 0.0 if split == "test" else float(noise_model_level)
    files = stimulus.fingerprint(name, simulation.data_path)
    return content_hash(content, name, files, level, split, seed, _code_hash())
