"""Built-in stimuli that replace missing video data sets, on request."""

from flyjax import stimulus
from flyjax.config import Experiment, parse_experiment
from flyjax.data import SPLITS, stimulus_for_split
from flyjax.experiments.node import updated_simulation
from flyjax.search.iteration import block_simulation
from flyjax.stimulus.clips import data_root
from flyjax.utils.errors import UserError

FALLBACKS = {"DAVIS": "scenes_texture", "optical_flow": "scenes_flow"}


def check_stimuli(experiment: Experiment, dry_run: bool = False, search: bool = True) -> None:
    """Check the stimuli of both splits, of every block of a `search`, before anything is trained.

    A dry run needs no data set where no folder of one is set. A range may name data sets that are not on this machine:
    proposers choose from those that are.

    **Raises:** `UserError` that says what to download, or that nothing uses `simulation.data_path`.
    """
    if experiment.simulation.recording is not None:
        return  # nothing is shown
    with_files = not dry_run or data_root(experiment.simulation.data_path) is not None
    span = experiment.search.simulation_ranges.get("visual_input_type") if search else None
    blocks = range(1, experiment.search.n_blocks + 1) if search else ()
    simulations = [updated_simulation(experiment, block_simulation(experiment, block)) for block in blocks]
    shown = [stimulus_for_split(s, split) for s in simulations or [experiment.simulation] for split in SPLITS]
    for name in dict.fromkeys(shown) if with_files else ():
        stimulus.fingerprint(name, experiment.simulation.data_path)
    names = {*shown, *(span.values or () if span is not None else ())}
    for name in names:
        stimulus.parts_of(name)
    if experiment.simulation.data_path and not {part for n in names for part, _ in stimulus.parts_of(n)} & {
        *stimulus.DATA_SETS
    }:
        raise UserError(
            f"simulation.data_path (--data-path) has no effect, as {experiment.simulation.visual_input_type} needs no "
            "files: set simulation.visual_input_type=video (--visual-input-type video) to show own videos, or DAVIS or "
            "optical_flow, or leave data_path out"
        )


def apply_stimulus_fallbacks(
    experiment: Experiment, allowed: bool, dry_run: bool = False
) -> tuple[Experiment, tuple[str, ...], dict[str, str]]:
    """Replace missing data sets by built-in stimuli where that is `allowed`.

    **Returns:** the experiment, the stimuli available on this machine, and the replacing name of each data set that was
    replaced.

    **Raises:** `UserError` for a data set that is missing and not replaced.
    """
    if experiment.simulation.recording is not None:
        return experiment, (experiment.simulation.visual_input_type,), {}
    available = stimulus.available(experiment.simulation.data_path)
    missing = {name: used for name, used in FALLBACKS.items() if name not in available} if allowed else {}
    if not missing:
        check_stimuli(experiment, dry_run)
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
    experiment = parse_experiment(data, "--allow-fallback")
    check_stimuli(experiment, dry_run)
    return experiment, available, used
