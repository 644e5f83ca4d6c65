"""Bad configs are one line that helps; good ones survive a round trip."""

import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flyjax.config import (
    PROTOCOL_RANGES,
    Experiment,
    apply_overrides,
    content_hash,
    dump_yaml,
    load_experiment,
    parse_experiment,
    read_yaml,
)
from flyjax.utils.errors import UserError


@pytest.mark.parametrize(
    "data, expected",
    [
        ({"simulaton": {}}, "'simulaton'. Did you mean 'simulation'?"),
        ({"simulation": {"extnt": 3}}, "'simulation.extnt'. Did you mean 'extent'?"),
        ({"training": {"learning_rate": 1}}, "Did you mean 'learning_rate"),
        ({"simulation": {"extent": 33}}, "simulation.extent: out of range, at least 0 and at most 15 (got 33)"),
        ({"simulation": {"extent": -1}}, "at least 0 and at most 15 (got -1)"),
        ({"simulation": {"delta_t": 0.2}}, "at least 0.001 and at most 0.05"),
        (
            {"training": {"learning_rate_W_start": 1.0}},
            "learning_rate_W_start=1.0 is outside its range, 0.0001 to 0.01",
        ),
        ({"training": {"batch_size": 3}}, "batch_size=3 is outside its range, one of 1, 2, 4"),
        ({"training": {"coeff_W_L1": "much"}}, "training.coeff_W_L1"),
        ({"simulation": {"delta_t": float("nan")}}, "finite"),
        ({"search": {"ranges": {"learning_rate_W": {"min": 0, "max": 1}}}}, "Did you mean 'learning_rate_W_start'?"),
        ({"search": {"simulations": [{"n_frames": 5}]}}, "search.simulations[0].n_frames=5 is outside its range"),
        ({"search": {"ranges": {"coeff_W_L1": {"min": 0, "max": 1, "scale": "log"}}}}, "a log range needs min > 0"),
        ({"sweep": {"grid": {"batchsize": [1]}}}, "Did you mean 'batch_size'?"),
        (["a list"], "a config is a mapping"),
    ],
)
def test_bad_config_is_one_helpful_line(data, expected):
    with pytest.raises(UserError) as error:
        parse_experiment(data)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_names_the_known_ones(root):
    with pytest.raises(UserError, match="quickstart.yaml"):
        load_experiment(root / "experiments" / "quickstat.yaml")


@pytest.mark.parametrize("name", ["quickstart", "full_scale", "whole_eye", "sweep_noise"])
def test_shipped_experiments_are_valid_and_survive_a_round_trip(root, name):
    experiment = load_experiment(root / "experiments" / f"{name}.yaml")
    assert parse_experiment(read_yaml(dump_yaml(experiment))) == experiment


def test_quickstart_root_is_the_protocols_default(root):
    training = load_experiment(root / "experiments" / "quickstart.yaml").training
    assert training == Experiment().training


def test_a_runs_own_config_can_be_loaded(root, tmp_path):
    experiment = load_experiment(root / "experiments" / "quickstart.yaml")
    (tmp_path / "config.yaml").write_text(dump_yaml(experiment) + "made_with: {versions: {jax: 0.10.2}}\n")
    assert load_experiment(tmp_path / "config.yaml") == experiment
    with pytest.raises(UserError, match="unknown key 'made_with'"):
        parse_experiment({"made_with": {}})


def test_settings_override():
    data = apply_overrides({"simulation": {"extent": 1}}, ["simulation.extent=2", "training.coeff_W_L1=1e-4"])
    assert data == {"simulation": {"extent": 2}, "training": {"coeff_W_L1": 1e-4}}
    for bad in ("simulation.extent", "=3", "simulation.extent.x=1"):
        with pytest.raises(UserError):
            apply_overrides({"simulation": {"extent": 1}}, [bad])


def test_numbers_without_a_point_are_numbers():
    assert read_yaml("[1e-3, 5E2, 12, -.5, true]") == [1e-3, 500.0, 12, -0.5, True]
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.system ['true']")


@given(
    st.sampled_from(sorted(PROTOCOL_RANGES)), st.one_of(st.floats(), st.integers(), st.text(), st.booleans(), st.none())
)
@settings(max_examples=200, deadline=None)
def test_a_range_holds_only_numbers_inside_it(name, value):
    span = PROTOCOL_RANGES[name]
    if span.contains(value):
        assert isinstance(value, (int, float)) and not isinstance(value, bool)
        assert value in span.values if span.scale == "choice" else span.min <= value <= span.max


def test_content_hash_sees_every_part():
    a, b = Experiment().simulation, Experiment().simulation.model_copy(update={"seed": 1})
    assert content_hash(a, 1) == content_hash(a, 1) != content_hash(b, 1) != content_hash(b, 2)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["scripts/meta_loop.py", "--set", "simulation.extnt=2"], "Did you mean 'extent'?"),
        (["scripts/meta_loop.py", "nowhere.yaml"], "no config file"),
        (["scripts/meta_loop.py", "--proposer", "oracle"], "search.proposer"),
        (["scripts/evaluate.py", "nowhere"], "no trained node"),
        (["scripts/sweep.py", "experiments/quickstart.yaml"], "nothing to sweep"),
    ],
)
def test_scripts_fail_in_one_line_with_code_2(root, arguments, expected):
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
