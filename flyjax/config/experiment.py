"""One config file: its sections, and the relations between them that are checked before anything runs."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from flyjax.config.schema import Model, Search, Sweep, Training
from flyjax.config.search_space import PROTOCOL_RANGES
from flyjax.config.simulation import Simulation
from flyjax.config.strict import StrictModel, updated
from flyjax.utils import registry

#: Frames at most between the training and the held-out frames, which are near copies of their neighbours.
GAP = 50


def split_sizes(training: Training, n_frames: int) -> tuple[int, int]:
    """(number of training frames, number of held-out frames, the last ones)."""
    n_held_out = int(n_frames * training.validation_fraction)
    return n_frames - n_held_out - min(GAP, n_held_out // 4), n_held_out


def training_problem(model: Model, training: Training, n_frames: int, part_frames: int) -> str | None:
    """Why a model cannot be trained on a recording of so many frames, with the remedy; None if it can.

    **Arguments:** `part_frames`: frames of the recording's shortest part.
    """
    n_training, n_held_out = split_sizes(training, n_frames)
    is_field, steps, fraction = model.stimulus == "field", training.rollout_steps, training.validation_fraction
    problems = {
        f"model.stimulus: field does not work with rollout_steps={steps}: set rollout_steps to 1": is_field
        and steps > 1,
        "model.stimulus: field is evaluated on frames that were held out from training: set "
        "training.validation_fraction, for example to 0.1": is_field and not fraction,
        f"model.field_frames={model.field_frames} is less than the recording's {n_frames} frames: set it to at least "
        f"{n_frames}": is_field and n_frames > model.field_frames,
        f"validation_fraction={fraction} and rollout_steps={steps} leave {n_training} frames for training and "
        f"{n_held_out} for validation, of n_frames={n_frames}: lower them or record more frames": n_training < steps
        or (fraction > 0 and not n_held_out),
        f"n_projections={training.n_projections} needs learned messages of single neurons and a known stimulus: set it "
        "to 0 and leave it out of ranges, or set model.variant to A and model.stimulus to given": training.n_projections
        and (is_field or model.variant == "B" or model.variant.startswith("known_ode")),
        f"rollout_steps={steps}, but a part of the recording has {part_frames} frames: lower rollout_steps or "
        "n_recordings": part_frames < steps,
    }
    return next((line for line, applies in problems.items() if applies), None)


class Experiment(StrictModel):
    """One config file."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        max_length=100,
        description="by default the name of the file; runs/<name> is the default run directory",
    )
    description: str = Field("", description="free text")
    plugins: dict[str, str | None] = Field(
        default_factory=dict,
        description="Python files of one's own that register stimuli, models, ...; a list of paths, which a run keeps "
        "with their SHA-256",
    )
    simulation: Simulation = Field(Simulation(), description="the ground truth and its recordings")
    model: Model = Field(Model(), description="the learner")
    training: Training = Field(Training(), description="the root candidate")
    search: Search = Field(Search(), description="the outer loop")
    sweep: Sweep = Field(Sweep(), description="configurations of a sweep")

    @model_validator(mode="before")
    @classmethod
    def _own_recording(cls, data: Any) -> Any:
        """A recording of one's own has the noise that it has, is the only one, and tells no ground truth."""
        simulation = data.get("simulation") if isinstance(data, Mapping) else None
        own = simulation.get("recording") if isinstance(simulation, Mapping) else getattr(simulation, "recording", None)
        if own is None:
            return data
        ranges = {name: span for name, span in PROTOCOL_RANGES.items() if name != "noise_model_level"}
        defaults: dict[str, dict[str, Any]] = {
            "training": {"noise_model_level": 0.0},
            "search": {"objective": "blind", "ranges": ranges, "simulation_ranges": {}},
        }
        given = {name: data.get(name) or {} for name in defaults}
        return {**data, **{k: {**defaults[k], **v} if isinstance(v, Mapping) else v for k, v in given.items()}}

    @field_validator("plugins", mode="before")
    @classmethod
    def _load_plugins(cls, plugins: Any) -> dict[str, str]:
        """Before the sections that name what they register."""
        if isinstance(plugins, list):
            plugins = dict.fromkeys(plugins)
        if not isinstance(plugins, dict) or not all(isinstance(path, str) for path in plugins):
            raise ValueError("a list of Python files, for example [my_lab.py]")
        return {path: registry.load_plugin(path, sha256) for path, sha256 in plugins.items()}

    @model_validator(mode="after")
    def _can_run(self):
        """What would fail after hours is an error now."""
        if problem := next(_problems(self), None):
            raise ValueError(problem)
        return self


#: The keys of a simulation that a recording of one's own gives, and how much of it is held out.
OF_RECORDING = ("recording", "connectome", "visual_input_type", "n_frames", "n_test_frames", "delta_t")


def _recording_problems(experiment: Experiment, has_level: bool) -> Iterator[str]:
    without, search = "with simulation.recording", experiment.search
    used = (*OF_RECORDING, *(["extent"] if experiment.simulation.connectome else []))
    for name, field in Simulation.model_fields.items():
        if name not in used and getattr(experiment.simulation, name) != field.default:
            yield f"simulation.{name} has no meaning {without}: leave it out"
    if has_level:
        yield (
            f"noise_model_level has no meaning {without}, which has the noise that it has: set "
            "training.noise_model_level to 0 and leave it out of ranges and candidates"
        )
    if search.simulation_ranges or search.simulations:
        yield f"search.simulations and search.simulation_ranges vary a simulation: leave them out {without}"
    if experiment.model.stimulus == "field":
        yield f"model.stimulus: field needs columns of the eye, which there are none of {without}: use given"


def _problems(experiment: Experiment) -> Iterator[str]:
    search, simulation, training = experiment.search, experiment.simulation, experiment.training
    # What the search and the sweep section make of the root.
    blocks = [updated(simulation, entry, f"search.simulations.{k}") for k, entry in enumerate(search.simulations)]
    lengths = search.simulation_ranges.get("n_frames")
    for n_frames in lengths.ends if lengths else ():
        blocks.append(updated(simulation, {"n_frames": int(n_frames)}, "search.simulation_ranges"))
    listed = enumerate(experiment.sweep.candidates)
    trainings = [training, *(updated(training, entry, f"sweep.candidates.{k}") for k, entry in listed)]
    for name, values in experiment.sweep.grid.items():
        trainings += [updated(training, {name: value}, "sweep.grid") for value in values]
    if projections := search.ranges.get("n_projections"):
        trainings.append(updated(training, {"n_projections": max(projections.ends)}, "search.ranges"))
    for one, candidate in itertools.product([simulation, *blocks], trainings):
        problem = training_problem(experiment.model, candidate, one.n_observed, one.n_observed // one.n_recordings)
        if problem:
            yield problem
        if one.observe_every > 1 and candidate.rollout_steps > 1:
            yield (
                f"simulation.observe_every={one.observe_every} gives no state after each step, which rollout_steps="
                f"{candidate.rollout_steps} needs: set rollout_steps to 1"
            )
    noise = search.ranges.get("noise_model_level")
    if simulation.recording is not None:
        yield from _recording_problems(experiment, noise is not None or any(t.noise_model_level for t in trainings))
    level = max([t.noise_model_level for t in trainings] + list(noise.ends if noise else ()))
    if simulation.solver != "euler" and level:
        yield (
            f"simulation.solver={simulation.solver} is noise-free, and noise_model_level is up to {level:g}: use "
            "solver euler, or set training.noise_model_level to 0 and remove its range"
        )
    if experiment.model.stimulus == "field" and search.objective == "blind":
        yield (
            "search.objective: blind needs predictions of a held-out movie, whose luminance a field cannot give: "
            "choose another objective"
        )
    ranged: list[tuple[str, str, dict[str, Any]]] = [
        ("training", "ranges", dict(training)),
        ("simulation", "simulation_ranges", dict(simulation)),
        *((f"search.simulations.{k}", "simulation_ranges", entry) for k, entry in enumerate(search.simulations)),
    ]
    for section, key, chosen in ranged:
        for name, span in getattr(search, key).items():
            if name in chosen and not span.contains(chosen[name]):
                yield (
                    f"{section}.{name}={chosen[name]!r} is outside search.{key}.{name}, {span.describe()}: change one "
                    f"of them, or leave nothing to the search with search.{key}: {{}}"
                )
