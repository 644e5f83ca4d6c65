"""The experiment as people write it: schema, ranges and loading."""

from flyjax.config.loading import apply_overrides, read_config, read_yaml
from flyjax.config.schema import (
    LLM,
    PROTOCOL_RANGES,
    PROTOCOL_SIMULATION_RANGES,
    SIMULATION_TUNABLE,
    TUNABLE,
    Experiment,
    Model,
    Range,
    Search,
    Simulation,
    Training,
    content_hash,
    dump_yaml,
    field_problem,
    load_experiment,
    parse_experiment,
)

__all__ = [
    "Experiment",
    "LLM",
    "Model",
    "PROTOCOL_RANGES",
    "PROTOCOL_SIMULATION_RANGES",
    "Range",
    "SIMULATION_TUNABLE",
    "Search",
    "Simulation",
    "TUNABLE",
    "Training",
    "apply_overrides",
    "content_hash",
    "dump_yaml",
    "field_problem",
    "load_experiment",
    "parse_experiment",
    "read_config",
    "read_yaml",
]
