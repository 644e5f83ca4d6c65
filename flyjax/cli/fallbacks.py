"""Built-in stimuli that replace missing video data sets, on request."""

from __future__ import annotations

from flyjax import stimulus
from flyjax.config import Experiment, parse_experiment
from flyjax.data import SPLITS, stimulus_for_split
from flyjax.experiments.node import updated_simulation
from flyjax.search.proposals.space import block_simulation

FALLBACKS = {"DAVIS": "scenes_texture", "optical_flow": "scenes_flow"}


def check_stimuli(experiment: Experiment) -> None:
    """Check the stimuli of both splits of every block before anything is trained.

    **Raises:** `UserError` that says what to download.
    """
    for block in range(1, experiment.search.n_blocks + 1):
        simulation = updated_simulation(experiment, block_simulation(experiment, block))
        for split in SPLITS:
            stimulus.fingerprint(stimulus_for_split(simulation, split), simulation.data_path)


def apply_stimulus_fallbacks(
    experiment: Experiment, allowed: bool, check: bool = True
) -> tuple[Experiment, tuple[str, ...], dict[str, str]]:
    """Replace missing data sets by built-in stimuli where that is `allowed`.

    **Arguments:** `check` is False for a dry run, in which a missing data set is no error.

    **Returns:** the experiment, the stimuli available on this machine, and the replacing name of each data set that was
    replaced.

    **Raises:** `UserError` for a data set that is missing and not replaced.
    """
    available = stimulus.available(experiment.simulation.data_path)
    missing = {name: used for name, used in FALLBACKS.items() if name not in available} if allowed else {}
    if not missing:
        if check:
            check_stimuli(experiment)
        return experiment, available, {}
    data = experiment.model_dump(mode="json")
    used: dict[str, str] = {}
    for section in (data["simulation"], *data["search"]["simulations"]):
        for key in ("visual_input_type", "test_visual_input_type"):
            if (name := section.get(key)) in missing:
                used[name] = section[key] = missing[name]
    span = data["search"]["simulation_ranges"].get("visual_input_type")
    if span and span.get("values"):
        span["values"] = list(dict.fromkeys(missing.get(v, v) for v in span["values"]))
    return parse_experiment(data, "--allow-fallback"), available, used
