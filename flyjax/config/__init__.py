"""The config file: its sections, the ranges of a search, and loading."""

from flyjax.config.experiment import Experiment, split_sizes, training_problem
from flyjax.config.loading import (
    apply_overrides,
    content_hash,
    dump_yaml,
    load_experiment,
    parse_experiment,
    read_config,
    read_yaml,
    read_yaml_file,
)
from flyjax.config.schema import LLM, Model, Search, Training
from flyjax.config.search_space import PROTOCOL_RANGES, PROTOCOL_SIMULATION_RANGES, SIMULATION_TUNABLE, TUNABLE, Range
from flyjax.config.simulation import Simulation
from flyjax.config.strict import StrictModel

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
    "StrictModel",
    "TUNABLE",
    "Training",
    "apply_overrides",
    "content_hash",
    "dump_yaml",
    "load_experiment",
    "parse_experiment",
    "read_config",
    "read_yaml",
    "read_yaml_file",
    "split_sizes",
    "training_problem",
]
