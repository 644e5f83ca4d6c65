"""The sections of a config file that learn and search, with their defaults, validated strictly.

`simulation` has the section of that name; `experiment` has what relates them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from flyjax.config.search_space import (
    PROTOCOL_RANGES,
    PROTOCOL_SIMULATION_RANGES,
    SIMULATION_TUNABLE,
    TUNABLE,
    Range,
    Values,
)
from flyjax.config.simulation import Seed, Simulation
from flyjax.config.strict import StrictModel, updated
from flyjax.utils import registry
from flyjax.utils.errors import nearest

#: Rates and penalties that are finite in single precision.
Rate = Annotated[float, Field(ge=1e-30, le=1e30)]
Penalty = Annotated[float, Field(ge=0, le=1e30)]


def _known(names: Callable[[], Iterable[str]]) -> AfterValidator:
    """One of some names, asked for at every check: plugins register more."""

    def check(name: str) -> str:
        if name not in (known := tuple(names())):
            raise ValueError(f"unknown name {name[:60]!r}.{nearest(name, known)} Known: {', '.join(known)}")
        return name

    return AfterValidator(check)


#: Names of parameters that a search may vary.
Tunable = Annotated[str, _known(lambda: (*TUNABLE, *registry.regulariser.own))]
SimulationTunable = Annotated[str, _known(lambda: SIMULATION_TUNABLE)]

#: Of a search, beside the metrics of plugins.
OBJECTIVES = ("connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "blind", "map")
MAX_CONFIGURATIONS = 10_000  # of a sweep


class Model(StrictModel):
    """Static shapes of the learner: a change here compiles another program."""

    variant: Annotated[str, _known(lambda: registry.model)] = Field(
        "A",
        description="A: messages from the source neuron alone; B: from source and target, per edge; "
        "known_ode: W, tau and V_rest themselves, linear or with tanh of the summed messages",
    )
    width: int = Field(80, ge=2, le=1024, description="units of the hidden layers of both networks")
    n_layers: int = Field(3, ge=2, le=8, description="linear layers of each network")
    embedding_size: int = Field(2, ge=1, le=64, description="dimensions of the embedding of each neuron")
    activation: Literal["relu", "tanh", "gelu", "softplus"] = Field("relu", description="of the hidden layers")
    units: Literal["none", "data"] = Field(
        "none",
        description="of the networks' inputs and outputs: as recorded (none, published), or in standard deviations of "
        "the training recording, one for all voltages and one for all derivatives (data)",
    )
    matmul_precision: Literal["default", "highest", "bfloat16", "bfloat16_kept"] = Field(
        "default",
        description="of the networks' matrix products: default is float32 on CPU and TF32 on recent NVIDIA GPUs, "
        "highest is float32 everywhere, bfloat16 rounds the factors and sums in float32, bfloat16_kept also keeps the "
        "hidden layers for the gradient in bfloat16",
    )
    form: Literal["auto", "cpu", "accelerator"] = Field(
        "auto",
        description="how the networks are evaluated, the same up to rounding: cpu multiplies signals, embedding and "
        "bias of a row at once; accelerator adds the embedding's product, once per neuron, to that of the signals; "
        "auto is that of the backend",
    )
    stimulus: Literal["given", "field"] = Field(
        "given",
        description="of the training frames: given to the learner, or unknown and learned jointly as a neural field "
        "over (x, y, t)",
    )
    field_frames: int = Field(
        8_192, ge=16, le=1_048_576, description="frames that the field spans, at least those of the recording"
    )
    field_spacing: int = Field(
        2,
        ge=1,
        le=64,
        description="frames between the nodes of the field's finest time grid; doubled on each further one",
    )
    field_levels: int = Field(5, ge=1, le=16, description="time grids of the field")
    field_features: int = Field(4, ge=1, le=64, description="features learned per node of a time grid")
    field_width: int = Field(
        48, ge=2, le=1024, description="units of the network that maps these features and the position to luminance"
    )

    @field_validator("variant", mode="before")
    @classmethod
    def _alias(cls, variant):
        return "A" if variant == "gnn" else variant  # its name in earlier versions

    @model_validator(mode="after")
    def _field_needs_networks(self):
        if self.stimulus == "field" and self.variant.startswith("known_ode"):
            raise ValueError(
                f"model.stimulus: field is trained with variant A or B, not {self.variant}: choose one of them, or "
                "stimulus: given"
            )
        return self


class Training(StrictModel):
    """The root candidate. Names and defaults are the protocol's.

    It may also have the coefficients of regularisers that plugins have registered, by name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Penalty] = Field(init=False)

    learning_rate_W_start: Rate = Field(1e-3, description="learning rate of W")
    learning_rate_start: Rate = Field(5e-4, description="learning rate of the message and update networks")
    learning_rate_embedding_start: Rate = Field(1e-3, description="learning rate of the embedding")
    learning_rate_field_start: Rate = Field(
        5e-3, description="learning rate of the neural field, where model.stimulus is field"
    )
    coeff_W_L1: Penalty = Field(5e-5, description="L1 penalty on W")
    coeff_edge_diff: Penalty = Field(500.0, description="penalty on messages that decrease with voltage")
    coeff_edge_norm: Penalty = Field(1.0, description="penalty that fixes the scale of the messages")
    noise_model_level: float = Field(
        0.05, ge=0, le=100, description="process noise of the training simulation, std per integration step"
    )
    batch_size: int = Field(1, ge=1, le=64, description="frames per optimiser step")
    data_augmentation_loop: float = Field(
        25,
        gt=0,
        le=10_000,
        description="training length: 0.2 x n_frames x data_augmentation_loop / batch_size optimiser steps",
    )
    schedule: Literal["constant", "warmup_cosine"] = Field(
        "constant", description="of the learning rates: constant, or linear warm-up and cosine decay"
    )
    warmup_fraction: float = Field(0.02, ge=0, le=0.5, description="share of the steps in the warm-up")
    coeff_message_L1: Penalty = Field(0.0, description="L1 penalty on the matrices of the message network")
    coeff_message_L2: Penalty = Field(0.0, description="L2 penalty on the matrices of the message network")
    coeff_update_L1: Penalty = Field(0.0, description="L1 penalty on the matrices of the update network")
    coeff_update_L2: Penalty = Field(0.0, description="L2 penalty on the matrices of the update network")
    coeff_edge_bend: Penalty = Field(
        0.0, description="penalty on messages that are not 0 at 0 and linear on either side of it; try 10"
    )
    coeff_update_bend: Penalty = Field(
        0.0, description="penalty on the curvature of the update between recorded inputs and none; try 1"
    )
    coeff_light_diff: Penalty = Field(
        100.0, description="where model.stimulus is field: penalty on derivatives that decrease with luminance"
    )
    validation_fraction: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the training frames held out from training: the last ones, or with model.stimulus field "
        "frames at regular intervals",
    )
    select: Literal["last", "best", "average"] = Field(
        "last",
        description="parameters of the result: of the last step, of the lowest validation loss, or an exponential "
        "average over steps",
    )
    average_decay: float = Field(0.999, ge=0, lt=1, description="decay of that average per step")
    rollout_steps: int = Field(
        1, ge=1, le=64, description="Euler steps that a prediction is rolled out for; 1 predicts derivatives"
    )
    n_projections: int = Field(
        0,
        ge=0,
        le=100,
        description="how often W is set by least squares on the learned messages, between 20 and 60 % of the steps; "
        "after the first time gradients no longer change W; 0: gradients alone; 6 works",
    )
    n_seeds: int = Field(1, ge=1, le=64, description="trainings per node; a block's root has at least two")
    checkpoint_every: int = Field(2_000, ge=1, le=10**9, description="optimiser steps between checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _own_coefficients(cls, data: Any) -> Any:
        """Other keys are coefficients of regularisers that plugins have registered."""
        known = {*cls.model_fields, *registry.regulariser.own}
        if isinstance(data, Mapping) and (unknown := [name for name in data if name not in known]):
            details: Any = {"type": "extra_forbidden", "loc": (unknown[0],), "input": data[unknown[0]]}
            raise ValidationError.from_exception_data(cls.__name__, [details])
        return {**dict.fromkeys(registry.regulariser.own, 0.0), **data} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _best_needs_validation(self):
        if self.select == "best" and not self.validation_fraction:
            raise ValueError("select: best needs frames to select on: set validation_fraction, for example to 0.1")
        return self


class TokenPrices(StrictModel):
    """Prices of a model that flyjax.search.llm.budget does not list, dollars per million tokens."""

    input: float = Field(ge=0, description="tokens read")
    output: float = Field(ge=0, description="tokens written")
    cache_write: float = Field(ge=0, description="tokens written to the prompt cache")
    cache_read: float = Field(ge=0, description="tokens read from the prompt cache")


class LLM(StrictModel):
    """The language model that proposes. Its name is a setting, never checked against a list."""

    model: str = Field("claude-sonnet-5-5", min_length=1, description="name of the model at the Anthropic API")
    max_tokens: int = Field(16_000, ge=256, le=64_000, description="per answer, thinking included")
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="of the model's thinking; by default the model's own"
    )
    timeout_s: float = Field(600, gt=0, le=86_400, description="longest wait for an answer, s")
    share: float = Field(
        0.5, gt=0, le=1, description="proposer hybrid: share of the optimiser's slots that the model may override"
    )
    max_retries: int = Field(6, ge=0, le=100, description="retries of a call that failed in transport, with backoff")
    images: bool = Field(True, description="send the figures of the new nodes")
    prices: TokenPrices | None = Field(None, description="replaces the dated table of flyjax.search.llm.budget")


class Search(StrictModel):
    """The outer loop."""

    proposer: Annotated[str, _known(lambda: ("auto", *registry.proposer))] = Field(
        "auto", description="'auto': the run's own; for a new run llm if ANTHROPIC_API_KEY is set, else rules"
    )
    n_candidates: int = Field(4, ge=1, le=64, description="K, nodes per iteration")
    n_iter_block: int = Field(12, ge=1, le=10_000, description="iterations per block")
    n_blocks: int = Field(2, ge=1, le=10_000, description="blocks of the run")
    objective: Annotated[str, _known(lambda: (*OBJECTIVES, *registry.metric.own))] = Field(
        "connectivity_R2",
        description="what the search maximises; blind uses held-out prediction only, map is the skill of its map",
    )
    ucb_c: float = Field(1.414, ge=0, description="weight of exploration in the UCB score")
    seed: Seed = Field(0, description="run seed; every training seed derives from it")
    simulations: tuple[dict[SimulationTunable, Any], ...] = Field(
        (), strict=False, description="the simulation of each block, for proposers that do not choose it"
    )
    ranges: dict[Tunable, Range] = Field(
        default_factory=lambda: dict(PROTOCOL_RANGES), description="training parameters that the search varies"
    )
    simulation_ranges: dict[SimulationTunable, Range] = Field(
        default_factory=lambda: dict(PROTOCOL_SIMULATION_RANGES),
        description="simulation parameters that the search varies between blocks",
    )
    transcript: str | None = Field(
        None, description="journal or transcript of the run that the proposer replay repeats"
    )
    max_usd: float | None = Field(None, ge=0, description="limit of the model's cost, dollars")
    max_calls: int | None = Field(None, ge=0, description="limit of calls of the model")
    max_tokens: int | None = Field(None, ge=0, description="limit of tokens of all calls, read and written")
    max_wall_s: float | None = Field(None, ge=0, description="limit of the run's time, s")
    max_nodes: int | None = Field(None, ge=1, description="limit of nodes")
    confirm_share: float = Field(
        0.15, ge=0, le=1, description="nodes on fresh seeds for the best settings at the end, per node of the search"
    )
    target: float | None = Field(None, le=1, description="stop when a node's reward (the objective) reaches it")
    patience: int | None = Field(
        None, ge=1, description="stop after this many iterations without an improvement beyond noise"
    )
    max_disk_gb: float = Field(
        20.0, gt=0, description="size of the recordings' cache, GB; the least recently used are removed first"
    )
    llm: LLM = Field(LLM(), description="the language model")

    @field_validator("ranges", "simulation_ranges")
    @classmethod
    def _values_are_possible(cls, ranges: dict[str, Range], info: ValidationInfo) -> dict[str, Range]:
        """Ranges all of whose values their parameters can take; those of a choice in the parameter's own type."""
        section = Training if info.field_name == "ranges" else Simulation

        def checked(name: str, span: Range) -> Range:
            where = f"search.{info.field_name}"
            field = section.model_fields.get(name)  # none for a plugin's coefficient
            if span.scale not in ("int", "choice") and field is not None and field.annotation is int:
                raise ValueError(f"{where}.{name}: takes whole numbers: set scale to int, or to choice with 'values'")
            values = tuple(getattr(updated(section, {name: value}, where), name) for value in span.ends)
            return span.model_copy(update={"values": values}) if span.scale == "choice" else span

        return {name: checked(name, span) for name, span in ranges.items()}


class Sweep(StrictModel):
    """Configurations for scripts/sweep.py: a list, a grid, random draws and a Sobol sequence, in this order."""

    candidates: tuple[dict[Tunable, Any], ...] = Field(
        (), strict=False, description="training settings, each relative to the training section"
    )
    grid: dict[Tunable, Values] = Field(
        default_factory=dict, description="values per training parameter; every combination is trained"
    )
    n_random: int = Field(0, ge=0, le=10_000, description="draws from search.ranges")
    n_sobol: int = Field(
        0, ge=0, le=10_000, description="first points of a scrambled Sobol sequence that fills search.ranges evenly"
    )
    seed: Seed = Field(0, description="seed of the draws and of the sequence")
    output: Literal["nodes", "trainings"] = Field(
        "nodes",
        description="nodes: a folder per configuration with every metric, figures and parameters; trainings: only "
        "trainings.csv, a row per training with read-out and prediction, which a larger n_sobol continues",
    )
    halving: float | None = Field(
        None,
        gt=1,
        le=100,
        description="successive halving: one in this many configurations continues at each rung; by default all do",
    )
    halving_rungs: int = Field(
        2, ge=1, le=10, description="rungs, at 1/halving, 1/halving^2, … of the longest training's steps"
    )

    @model_validator(mode="after")
    def _not_too_many(self):
        n = len(self.candidates) + (math.prod(map(len, self.grid.values())) if self.grid else 0)
        if n > MAX_CONFIGURATIONS:
            raise ValueError(f"{n:,} configurations in candidates and grid, more than {MAX_CONFIGURATIONS:,}")
        if self.output == "trainings" and self.halving is not None:
            raise ValueError("halving needs sweep.output=nodes: a table of trainings has only complete ones")
        return self
