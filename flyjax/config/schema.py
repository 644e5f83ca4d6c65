"""The experiment: simulation + model + training + search, validated strictly.

A config file is YAML. Every key has a default; an unknown key is an error that names the
nearest known one, a value out of range is an error that names the range.

    experiment = load_experiment("experiments/quickstart.yaml", ["simulation.extent=2"])
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flyjax.config.loading import apply_overrides, read_config
from flyjax.utils.errors import UserError, nearest


class _Strict(BaseModel):
    # inf and nan parse from YAML; they have no place in an experiment.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Simulation(_Strict):
    """The ground truth, what the fly sees and how it is integrated."""

    extent: int = Field(8, ge=0, le=15, description="hexagonal radius in columns; 8 is flyvis' usual eye")
    parameters: str = Field("sampled", description="'sampled', 'flow/0000/000' or a path to a checkpoint")
    parameters_seed: int = Field(0, ge=0)
    visual_input_type: str = Field("DAVIS", description="training stimulus, a name of flyjax.stimulus")
    test_visual_input_type: str | None = Field(None, description="held-out stimulus; by default the other kind")
    n_frames: int = Field(64_000, ge=16, le=1_000_000, description="training frames")
    n_test_frames: int = Field(1_000, ge=16, le=100_000, description="held-out frames, always noise-free")
    delta_t: float = Field(0.02, ge=0.001, le=0.05, description="integration step, s")
    clamp_tau: bool = Field(True, description="integrate with max(tau, delta_t), as flyvis does")
    solver: str = Field("euler", description="diffrax solver by name")
    initial: Literal["grey", "rest", "fade_in"] = Field(
        "grey", description="start: 1 s of grey, V_rest, or 1 s from grey to frame 0"
    )
    data_path: str | None = Field(None, description="folder of the video data set, where one is needed")
    frame_rate: Literal["default", "native", "resampled"] = Field(
        "default",
        description="of videos: one frame per step (native; DAVIS' default) or 24/s at 1/delta_t (optical_flow's)",
    )
    measurement_noise_level: float = Field(0.0, ge=0, le=10, description="std of what is added to training voltages")
    target: Literal["exact", "difference"] = Field(
        "exact",
        description="of training: the right-hand side, or the difference to the next recorded voltage over delta_t, with its noise",
    )
    null_edges: float = Field(
        0.0, ge=0, le=10, description="edges that do not exist, told to the learner; 1 = as many again"
    )
    null_edges_kind: Literal["per_source", "random"] = "per_source"
    removed_edges: float = Field(0.0, ge=0, lt=1, description="share of true edges the learner is not told")
    n_recordings: int = Field(
        1, ge=1, le=64, description="of other scenes and noise that the training frames are divided among"
    )
    voltage_dtype: Literal["float32", "float16"] = Field(
        "float32", description="as training voltages are stored; float16 rounds them"
    )
    store_derivative: bool = Field(
        False, description="keep dV/dt with the training voltages instead of computing it again"
    )
    seed: int = Field(0, ge=0, description="of the stimulus and the process noise")


class Model(_Strict):
    """Static shapes of the learner: a change here is another compiled program."""

    variant: Literal["A", "B", "known_ode", "known_ode_tanh"] = Field(
        "A",
        description="A: messages from the source neuron alone; B: from source and target, per edge; "
        "known_ode: W, tau and V_rest themselves, linear or with tanh of the summed messages",
    )
    width: int = Field(80, ge=2, le=1024)
    n_layers: int = Field(3, ge=2, le=8, description="linear layers of each network")
    embedding_size: int = Field(2, ge=1, le=64)
    activation: Literal["relu", "tanh", "gelu", "softplus"] = "relu"
    units: Literal["none", "data"] = Field(
        "none",
        description="of what the networks see and say: none as recorded (published), data in standard deviations of the training recording, "
        "one number for all voltages and one for all derivatives",
    )
    matmul_precision: Literal["default", "highest", "bfloat16"] = Field(
        "default",
        description="of the networks' products: default is float32 on CPU and TF32 on recent NVIDIA GPUs, highest float32 everywhere, "
        "bfloat16 rounds the factors and sums in float32",
    )

    stimulus: Literal["given", "field"] = Field(
        "given",
        description="of the training frames: given to the learner, or field: unknown to it, a neural field over (x, y, t) trained jointly",
    )
    field_frames: int = Field(
        8_192, ge=16, le=1_048_576, description="frames that the field spans, at least those of the recording"
    )
    field_spacing: int = Field(
        2,
        ge=1,
        le=64,
        description="frames between the nodes of its finest grid over time; on each further one, twice as many",
    )
    field_levels: int = Field(5, ge=1, le=16, description="grids over time")
    field_features: int = Field(4, ge=1, le=64, description="numbers learned per node of a grid")
    field_width: int = Field(
        48, ge=2, le=1024, description="of the network that turns them and the place into luminance"
    )

    @field_validator("variant", mode="before")
    @classmethod
    def _alias(cls, variant):
        return "A" if variant == "gnn" else variant  # its name in earlier versions

    @model_validator(mode="after")
    def _field_needs_networks(self):
        if self.stimulus == "field" and self.variant.startswith("known_ode"):
            raise ValueError(
                f"model.stimulus: field is trained with variant A or B, not {self.variant}: choose one of them, or stimulus: given"
            )
        return self


class Training(_Strict):
    """The root candidate. Names and defaults are the protocol's."""

    learning_rate_W_start: float = Field(1e-3, gt=0)
    learning_rate_start: float = Field(5e-4, gt=0)
    learning_rate_embedding_start: float = Field(1e-3, gt=0)
    learning_rate_field_start: float = Field(
        5e-3, gt=0, description="of the neural field, where model.stimulus is field"
    )
    coeff_W_L1: float = Field(5e-5, ge=0)
    coeff_edge_diff: float = Field(500.0, ge=0)
    coeff_edge_norm: float = Field(1.0, ge=0)
    noise_model_level: float = Field(0.05, ge=0, description="std per step of the training simulation")
    batch_size: int = Field(1, ge=1, le=64)
    data_augmentation_loop: float = Field(25, gt=0)
    schedule: Literal["constant", "warmup_cosine"] = "constant"
    warmup_fraction: float = Field(0.02, ge=0, le=0.5)
    coeff_message_L1: float = Field(0.0, ge=0)
    coeff_message_L2: float = Field(0.0, ge=0)
    coeff_update_L1: float = Field(0.0, ge=0)
    coeff_update_L2: float = Field(0.0, ge=0)
    coeff_edge_bend: float = Field(
        0.0, ge=0, description="messages start at 0 and are straight on either side of it; 10 works"
    )
    coeff_update_bend: float = Field(
        0.0, ge=0, description="the update does not bend between what was seen and no input; 1 works"
    )
    coeff_light_diff: float = Field(
        100.0, ge=0, description="where model.stimulus is field: brighter light should not slow the neurons that see"
    )
    validation_fraction: float = Field(
        0.0, ge=0, le=0.5,
        description="of the training recording that is never trained on: its last part; with model.stimulus field every so many-th frame",
    )  # fmt: skip
    select: Literal["last", "best", "average"] = Field(
        "last",
        description="parameters kept: of the last step, of the best validation loss, or an exponential average over steps",
    )
    average_decay: float = Field(0.999, ge=0, lt=1, description="per step, of that average")
    rollout_steps: int = Field(
        1, ge=1, le=64, description="Euler steps that a training example is followed for; 1 predicts derivatives"
    )
    n_seeds: int = Field(1, ge=1, le=64, description="trainings per node; a block's root has at least two")
    checkpoint_every: int = Field(2_000, ge=1, description="optimiser steps between checkpoints")

    @model_validator(mode="after")
    def _best_of_something(self):
        if self.select == "best" and not self.validation_fraction:
            raise ValueError("select: best needs frames to select on: set validation_fraction, for example to 0.1")
        return self


def field_problem(model: Model, training: Training, n_frames: int) -> str | None:
    """Why a stimulus cannot be learned as a field with these settings, with the remedy; None where it can, or is given."""
    if model.stimulus == "given":
        return None
    if training.rollout_steps > 1:
        return f"model.stimulus: field is trained one step at a time, not with rollout_steps={training.rollout_steps}: set rollout_steps to 1"
    if not training.validation_fraction:
        return "model.stimulus: field is judged on frames that were not trained on: set training.validation_fraction, for example to 0.1"
    if n_frames > model.field_frames:
        return f"model.field_frames={model.field_frames} is less than the recording's {n_frames} frames: set it to at least {n_frames}"
    return None


#: Training parameters a search may vary; the first nine are the protocol's.
TUNABLE = (
    "learning_rate_W_start",
    "learning_rate_start",
    "learning_rate_embedding_start",
    "coeff_W_L1",
    "coeff_edge_diff",
    "coeff_edge_norm",
    "noise_model_level",
    "batch_size",
    "data_augmentation_loop",
    "coeff_message_L1",
    "coeff_message_L2",
    "coeff_update_L1",
    "coeff_update_L2",
    "coeff_edge_bend",
    "coeff_update_bend",
    "learning_rate_field_start",
    "coeff_light_diff",
)
#: Simulation parameters a search may vary, at block borders only.
SIMULATION_TUNABLE = ("visual_input_type", "n_frames", "delta_t")


class Range(_Strict):
    """A range of one tunable parameter: an interval on a scale, or a list of values."""

    min: float | None = None
    max: float | None = None
    scale: Literal["log", "linear", "int", "choice"] = "linear"
    values: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.scale == "choice":
            if not self.values:
                raise ValueError("a choice needs 'values'")
        elif self.min is None or self.max is None or not self.min < self.max:
            raise ValueError("needs min < max")
        elif self.scale == "log" and self.min <= 0:
            raise ValueError("a log range needs min > 0")
        return self

    def contains(self, value) -> bool:
        """Whether `value` is of the right type and inside the range."""
        if self.scale == "choice":
            return any(type(value) is type(v) and value == v for v in self.values)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        # The bounds first: NaN and infinity have no int.
        return self.min <= value <= self.max and (self.scale != "int" or value == int(value))

    def describe(self) -> str:
        if self.scale == "choice":
            return "one of " + ", ".join(str(v) for v in self.values)
        return f"{self.min:g} to {self.max:g}" + (" (log)" if self.scale == "log" else "")


def _interval(low, high, scale="linear"):
    return Range(min=low, max=high, scale=scale)


#: The protocol's ranges (protocol.md states the same; a test compares them).
PROTOCOL_RANGES = {
    "learning_rate_W_start": _interval(1e-4, 1e-2, "log"),
    "learning_rate_start": _interval(1e-5, 1e-3, "log"),
    "learning_rate_embedding_start": _interval(1e-5, 1e-3, "log"),
    "coeff_W_L1": _interval(1e-6, 1e-3, "log"),
    "coeff_edge_diff": _interval(0, 1000),
    "coeff_edge_norm": _interval(0, 10),
    "noise_model_level": _interval(0, 0.2),
    "batch_size": Range(scale="choice", values=(1, 2, 4)),
    "data_augmentation_loop": _interval(10, 100, "int"),
}
PROTOCOL_SIMULATION_RANGES = {
    "visual_input_type": Range(scale="choice", values=("DAVIS", "optical_flow")),
    "n_frames": _interval(32_000, 128_000, "int"),
    "delta_t": _interval(0.01, 0.05),
}


def _known_keys(mapping, known):
    for key in mapping:
        if key not in known:
            raise ValueError(f"unknown name {key!r}.{nearest(key, known)}")
    return mapping


class TokenPrices(_Strict):
    """Dollars per million tokens, for a model that flyjax.search.prices does not know."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_write: float = Field(ge=0)
    cache_read: float = Field(ge=0)


class LLM(_Strict):
    """The language model that proposes. Its name is a setting, never checked against a list."""

    model: str = Field("claude-sonnet-5-5", min_length=1)
    max_tokens: int = Field(16_000, ge=256, le=64_000, description="per answer, thinking included")
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(None, description="by default the model's")
    timeout_s: float = Field(600, gt=0)
    share: float = Field(
        0.5, gt=0, le=1, description="proposer hybrid: of the optimiser's slots, how many the model may override"
    )
    max_retries: int = Field(6, ge=0, le=100, description="of a call that failed in transport, with backoff")
    images: bool = Field(True, description="send the new nodes' figures")
    prices: TokenPrices | None = Field(None, description="instead of the dated table of flyjax.search.prices")


class Search(_Strict):
    """The outer loop."""

    proposer: Literal["auto", "llm", "rules", "random", "tpe", "cmaes", "hybrid", "replay"] = Field(
        "auto", description="'auto': the run's own; of a new run llm where ANTHROPIC_API_KEY is set, else rules"
    )
    n_candidates: int = Field(4, ge=1, le=64, description="K, nodes per iteration")
    n_iter_block: int = Field(12, ge=1, description="iterations per block")
    n_blocks: int = Field(2, ge=1)
    objective: Literal["connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "blind"] = "connectivity_R2"
    ucb_c: float = Field(1.414, ge=0)
    seed: int = Field(0, ge=0, description="run seed; every training seed derives from it")
    simulations: tuple[dict[str, Any], ...] = Field(
        (), description="the simulation of each block, for proposers that do not choose it"
    )
    ranges: dict[str, Range] = Field(default_factory=lambda: dict(PROTOCOL_RANGES))
    simulation_ranges: dict[str, Range] = Field(default_factory=lambda: dict(PROTOCOL_SIMULATION_RANGES))
    transcript: str | None = Field(None, description="journal of the run that the proposer replay plays again")
    max_usd: float | None = Field(None, ge=0)
    max_calls: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=0, description="of all calls, read and written")
    max_wall_s: float | None = Field(None, ge=0)
    max_nodes: int | None = Field(None, ge=1)
    target: float | None = Field(None, le=1, description="stop when a node's reward (the objective) reaches it")
    patience: int | None = Field(
        None, ge=1, description="stop after so many iterations without an improvement beyond noise"
    )
    max_disk_gb: float = Field(20.0, gt=0, description="cached recordings beyond it are dropped, oldest first")
    llm: LLM = LLM()

    @field_validator("ranges")
    @classmethod
    def _known_training(cls, ranges):
        return _known_keys(ranges, TUNABLE)

    @field_validator("simulation_ranges")
    @classmethod
    def _known_simulation(cls, ranges):
        return _known_keys(ranges, SIMULATION_TUNABLE)

    @field_validator("simulations")
    @classmethod
    def _known_simulations(cls, simulations):
        for entry in simulations:
            _known_keys(entry, SIMULATION_TUNABLE)
        return simulations


class Sweep(_Strict):
    """Configurations for scripts/sweep.py: a list, a grid and random draws from search.ranges, one after the other."""

    candidates: tuple[dict[str, Any], ...] = Field(
        (), description="training settings, each against the training section"
    )
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="every combination of these values")
    n_random: int = Field(0, ge=0, le=10_000, description="draws from search.ranges")
    seed: int = Field(0, ge=0, description="of the draws")
    halving: float | None = Field(
        None,
        gt=1,
        le=100,
        description="keep one in so many configurations at each rung and stop the rest; by default none is stopped",
    )
    halving_rungs: int = Field(
        2, ge=1, le=10, description="rungs, at 1/halving, 1/halving^2, … of the longest training's steps"
    )

    @field_validator("grid")
    @classmethod
    def _known_grid(cls, grid):
        return _known_keys(grid, TUNABLE)

    @field_validator("candidates")
    @classmethod
    def _known_candidates(cls, candidates):
        for entry in candidates:
            _known_keys(entry, TUNABLE)
        return candidates


class Experiment(_Strict):
    """One config file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "experiment"
    description: str = ""
    simulation: Simulation = Simulation()
    model: Model = Model()
    training: Training = Training()
    search: Search = Search()
    sweep: Sweep = Sweep()

    @model_validator(mode="after")
    def _stimulus_can_be_learned(self):
        problem = field_problem(self.model, self.training, self.simulation.n_frames)
        if problem:
            raise ValueError(problem)
        if self.model.stimulus == "field" and self.search.objective == "blind":
            raise ValueError(
                "search.objective: blind is prediction of a held-out movie, whose light no field knows: choose another objective"
            )
        return self

    @model_validator(mode="after")
    def _root_in_ranges(self):
        for section, ranges in ((self.training, self.search.ranges), (self.simulation, self.search.simulation_ranges)):
            for key, span in ranges.items():
                value = getattr(section, key)
                if not span.contains(value):
                    raise ValueError(f"{key}={value} is outside its range, {span.describe()}")
        for k, entry in enumerate(self.search.simulations):
            for key, value in entry.items():
                span = self.search.simulation_ranges.get(key)
                if span is not None and not span.contains(value):
                    raise ValueError(f"search.simulations[{k}].{key}={value} is outside its range, {span.describe()}")
        return self


def _fields_at(location) -> list[str]:
    """Known keys of the section a pydantic error location points into."""
    model: Any = Experiment
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def _bounds(location) -> str:
    """The range of the field at an error location, in words."""
    model: Any = Experiment
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return ""
        model = field.annotation
    limits = {
        k: getattr(m, k) for m in field.metadata for k in ("ge", "gt", "le", "lt") if getattr(m, k, None) is not None
    }
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{words[k]} {v:g}" for k, v in limits.items())


def _one_line(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {where!r}.{nearest(first['loc'][-1], _fields_at(first['loc']))}"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"{source}: {message}"
    bounds = _bounds(first["loc"])
    if bounds and first["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        message = f"out of range, {bounds}"
    shown = "" if isinstance(first["input"], (dict, BaseModel)) else f" (got {first['input']!r})"
    return f"{source}: {where}: {message}{shown}"


def parse_experiment(data: dict, source: str = "config") -> Experiment:
    """Validate a plain dictionary.

    **Raises:** `UserError`, one line, for an unknown key (naming the nearest), a wrong type or a
    value out of range (naming the range).
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: a config is a mapping of sections, got {type(data).__name__}")
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def load_experiment(path: str | Path, overrides=()) -> Experiment:
    """Read a config file and apply `KEY=VALUE` overrides.

    **Raises:** `UserError` if the file is missing, is not YAML, or does not validate.
    """
    path, data = Path(path), read_config(path)
    if isinstance(data, dict):
        data.pop("made_with", None)  # what a run adds to its own config.yaml
        data.setdefault("name", path.stem)
        data = apply_overrides(data, overrides)
    return parse_experiment(data, str(path))


def dump_yaml(experiment: Experiment) -> str:
    """The experiment as YAML, defaults filled in."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def content_hash(*parts) -> str:
    """16 hex digits of what made something: equal for equal JSON-able content."""
    text = json.dumps(parts, sort_keys=True, default=lambda x: x.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
