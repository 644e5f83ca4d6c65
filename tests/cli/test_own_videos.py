"""Own videos through the scripts' checks: the keys to set, and a dry run that refuses what the run refuses."""

import numpy as np
import pytest
from PIL import Image

from flyjax.cli.fallbacks import apply_stimulus_fallbacks, check_stimuli
from flyjax.config import load_experiment
from flyjax.data import stimulus_for_split
from flyjax.experiments.node import updated_simulation
from flyjax.search.iteration import block_simulation
from flyjax.search.run.opening import stimuli
from flyjax.utils.errors import UserError


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("FLYJAX_DATA", raising=False)


@pytest.fixture
def clip(tmp_path):
    for k in range(5):
        Image.fromarray(np.full((20, 30), 50 * k, np.uint8)).save(tmp_path / f"{k}.png")
    return tmp_path


def load(root, *settings, config="quickstart"):
    return load_experiment(root / "experiments" / f"{config}.yaml", settings)


@pytest.mark.parametrize("config", ["quickstart", "full_scale"])
def test_a_chosen_stimulus_is_the_only_one_of_the_run(root, clip, config):
    settings = "simulation.visual_input_type=video", f"simulation.data_path={clip}"
    experiment, available, used = apply_stimulus_fallbacks(load(root, *settings, config=config), False)
    assert experiment.search.simulation_ranges["visual_input_type"].values == ("video",) and not used
    assert "video" in available and not any("visual_input_type" in s for s in experiment.search.simulations)


@pytest.mark.parametrize("ranges", [(), ("search.simulation_ranges={}",)])
def test_a_chosen_stimulus_is_that_of_every_block_and_keeps_the_ranges(root, ranges):
    experiment = load(root, "simulation.visual_input_type=scenes_edges", *ranges)
    blocks = [experiment.simulation.model_dump() | block for block in experiment.search.simulations]
    assert [b["visual_input_type"] for b in blocks] == ["scenes_edges"] * 2
    assert experiment.search.simulation_ranges == load(root, *ranges).search.simulation_ranges


def test_a_chosen_stimulus_leaves_blocks_that_are_set_too(root):
    settings = "simulation.visual_input_type=scenes_edges", "search.simulations=[{visual_input_type: scenes_flow}]"
    assert load(root, *settings).search.simulations[0]["visual_input_type"] == "scenes_flow"


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_path_that_nothing_uses_is_refused(root, clip, dry_run):
    experiment = load(root, f"simulation.data_path={clip}")
    with pytest.raises(UserError, match="simulation.visual_input_type=video"):
        apply_stimulus_fallbacks(experiment, False, dry_run)
    with pytest.raises(UserError, match="data_path"):
        check_stimuli(experiment, dry_run, search=False)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_dry_run_refuses_a_folder_without_videos(root, tmp_path, dry_run, fallback):
    settings = "simulation.visual_input_type=video", f"simulation.data_path={tmp_path}"
    with pytest.raises(UserError, match="simulation.data_path"):
        apply_stimulus_fallbacks(load(root, *settings), fallback, dry_run)


def test_a_dry_run_without_any_folder_needs_no_data(root):
    apply_stimulus_fallbacks(load(root, config="full_scale"), False, dry_run=True)
    with pytest.raises(UserError, match="DAVIS"):
        apply_stimulus_fallbacks(load(root, config="full_scale"), False)


def test_full_scale_needs_no_more_than_a_folder_of_videos(root, clip):
    for name in ("a", "b"):
        (clip / name).mkdir()
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(clip / name / "0.png")
    experiment, available, used = apply_stimulus_fallbacks(
        load(root, f"simulation.data_path={clip}", config="full_scale"), False
    )
    assert not used and "DAVIS" in available and "optical_flow" not in available
    assert stimuli(experiment, available) == available
    for block in range(1, experiment.search.n_blocks + 1):
        simulation = updated_simulation(experiment, block_simulation(experiment, block))
        assert stimulus_for_split(simulation, "test") == "DAVIS"


def test_a_range_error_names_both_keys(root):
    with pytest.raises(UserError, match=r"simulation\.n_frames.*search\.simulation_ranges\.n_frames"):
        load(root, "simulation.n_frames=100")
