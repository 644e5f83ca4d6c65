"""Bad configs are one line that helps; good ones survive a round trip."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyjax.config import (
    PROTOCOL_RANGES,
    Experiment,
    Range,
    Search,
    Simulation,
    Training,
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
            "training.learning_rate_W_start=1.0 is outside search.ranges.learning_rate_W_start, 0.0001 to 0.01",
        ),
        ({"training": {"batch_size": 3}}, "training.batch_size=3 is outside search.ranges.batch_size, one of 1, 2, 4"),
        ({"training": {"coeff_W_L1": "much"}}, "training.coeff_W_L1"),
        ({"simulation": {"delta_t": float("nan")}}, "finite"),
        ({"search": {"ranges": {"learning_rate_W": {"min": 0, "max": 1}}}}, "Did you mean 'learning_rate_W_start'?"),
        ({"search": {"simulations": [{"n_frames": 5}]}}, "search.simulations.0.n_frames: out of range, at least 16"),
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
    with pytest.raises(UserError):
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
        (["meta_loop", "--set", "simulation.extnt=2"], "Did you mean 'extent'?"),
        (["meta_loop", "nowhere.yaml"], "no config file"),
        (["meta_loop", "--proposer", "oracle"], "search.proposer"),
        (["evaluate", "nowhere"], "no trained node"),
        (["sweep", "experiments/quickstart.yaml"], "nothing to sweep"),
    ],
)
def test_scripts_fail_in_one_line_with_code_2(root, script, monkeypatch, arguments, expected):
    monkeypatch.chdir(root)
    code, _, errors = script(*arguments)
    assert code == 2, errors
    assert expected in errors and "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "text, line, key",
    [
        ("a: !!binary aGk=", 1, "a"),
        ("a:\n  b: !!set {x}", 2, "a.b"),
        ("a: !mine 3", 1, "a"),
        ("a: 1\nb: 2\na: 3", 3, "a"),
        ("s:\n  x: 1\n  'x': 2", 3, "s.x"),
        ("a: &a [*a]", 1, "a"),
        ("a: " + "9" * 5_000, 1, "a"),
        ("a: " + "[" * 100_000, 1, ""),
        ("- " * 3_000, 1, ""),
        ("? [a]\n: 1", 1, ""),
        ("<<: 3", 1, ""),
        ("a: !!float x", 1, "a"),
        ("a: *b", 1, "b"),
        ("a: [1\nb: 2", 2, ""),
        ("a: 1\n---\nb: 1", 2, ""),
        ("- x\n" * 50_000, 20_000, ""),
    ],
)
def test_yaml_that_is_no_plain_data_is_one_line_with_its_place(tmp_path, text, line, key):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_experiment(path)
    assert f"{path}, line {line}" in str(error.value) and key in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_few_bytes_of_aliases_do_not_stand_for_millions_of_values(tmp_path):
    levels = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
    with pytest.raises(UserError, match="alias"):
        read_yaml("a: &a [x, x, x]\n" + levels)
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}


def test_scalars_are_those_of_yaml_1_2():
    text = "[010, 26:40, yes, No, on, 2024-01-01, 1_000, 0x1F, '3', ~, null, TRUE, 1e3, 1., .5, -.inf]"
    expected = [10, "26:40", "yes", "No", "on", "2024-01-01", "1_000", "0x1F", "3", None, None, True, 1e3, 1.0, 0.5]
    assert read_yaml(text) == [*expected, float("-inf")]
    assert [type(v) for v in read_yaml("[010, 1e3, .5]")] == [int, float, float]
    assert read_yaml("true: 1\n1: 2") == {"true": 1, "1": 2}


@pytest.mark.parametrize("data", [b"name: \xff\xfe", b"a: 1\nb: \xb5", b"#" * 1_000_001, b"a: \x00"])
def test_a_file_that_is_no_utf8_text_of_moderate_size_is_one_line(tmp_path, data):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(UserError, match="a.yaml"):
        load_experiment(tmp_path / "a.yaml")


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), max_size=8),
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=12)
        | st.integers(-(10**9), 10**9)
        | st.floats(allow_nan=False)
        | st.booleans()
        | st.none(),
    )
)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_again(data):
    assert read_yaml(dump_yaml({"data": data})) == {"data": data}


@pytest.mark.parametrize(
    "given_settings, named",
    [
        (["simulation.extent=true"], ["--set simulation.extent=true", "simulation.extent"]),
        (["simulation.extent='3'"], ["simulation.extent"]),
        (["training.batch_size=1.5"], ["training.batch_size"]),
        (["search.seed=1000000000000000000000000000000"], ["search.seed"]),
        (["training.coeff_W_L1=.nan"], ["training.coeff_W_L1"]),
        (["training.coeff_W_L1=.inf"], ["training.coeff_W_L1"]),
        (["training.learning_rate_start=0"], ["training.learning_rate_start"]),
        (["extent=2"], ["'simulation.extent'"]),
        (["simulation.batch_size=2"], ["'training.batch_size'"]),
        (["search.proposer=LLM"], ["'llm'"]),
        (["training.learning_rate_start=1"], ["--set training.", "search.ranges.learning_rate_start"]),
        (["search.ranges.learning_rate_start={min: -1, max: 1}"], ["search.ranges.learning_rate_start"]),
        (["search.ranges.batch_size={scale: choice, values: [1, 2.5]}"], ["search.ranges.batch_size"]),
        (["search.ranges.batch_size={min: 1, max: 4}"], ["search.ranges.batch_size"]),
        (["search.ranges.batch_size={scale: int, min: 1, max: 100}"], ["search.ranges.batch_size"]),
        (["search.ranges.learning_rate_start.min=2"], ["--set", "search.ranges.learning_rate_start"]),
        (["search.simulation_ranges.n_frames={scale: int, min: 1, max: 9000}"], ["search.simulation_ranges.n_frames"]),
        (["search.simulations=[{n_frames: many}]"], ["search.simulations.0.n_frames"]),
        (["sweep.candidates=[{batch_size: 1.5}]"], ["sweep.candidates.0.batch_size"]),
        (["sweep.grid={batch_size: [1, x]}"], ["sweep.grid.batch_size"]),
        (["simulation.solver=tsit5"], ["simulation.solver", "noise_model_level"]),
        (["simulation.n_recordings=2", "simulation.target=difference"], ["n_recordings"]),
        (["training.validation_fraction=0.0001"], ["--set training.validation_fraction=0.0001", "n_frames"]),
        (["training.select=best", "simulation.extent=99"], ["--set simulation.extent=99"]),
        (
            ["model.stimulus=field", "training.validation_fraction=0.1", "model.field_frames=900"],
            ["model.field_frames"],
        ),
        (["model.variant=known_ode", "search.ranges.n_projections={scale: int, min: 0, max: 6}"], ["n_projections"]),
        (["simulation.extent=[1"], ["--set simulation.extent"]),
        (["name=.."], ["name"]),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named_before_anything_runs(root, given_settings, named):
    with pytest.raises(UserError) as error:
        load_experiment(root / "experiments" / "quickstart.yaml", given_settings)
    message = str(error.value)
    assert all(name in message for name in named) and "\n" not in message
    assert message.startswith("--set ") and "quickstart.yaml" not in message


def test_the_file_is_named_where_it_is_the_cause(tmp_path):
    (tmp_path / "a.yaml").write_text("simulation: {extent: 99}\n", encoding="utf-8")
    with pytest.raises(UserError, match="^.*a.yaml: simulation.extent"):
        load_experiment(tmp_path / "a.yaml", ["training.batch_size=2"])


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: Simulation(extant=1), ["Simulation", "'extant'", "'extent'"]),
        (lambda: Simulation(extent=True), ["extent"]),
        (lambda: Simulation(extent=10**5_000), ["extent"]),
        (lambda: Training(batch_size="2"), ["batch_size"]),
        (lambda: Training.model_validate({"learning_rate_strat": 1}), ["'learning_rate_start'"]),
        (lambda: Search(proposer="Rules"), ["'rules'"]),
        (lambda: Range(min=0, max=1, values=[1]), ["values"]),
        (lambda: Range(min=0.5, max=2, scale="int"), ["whole"]),
    ],
)
def test_python_arguments_are_refused_in_the_words_of_the_command_line(make, named):
    with pytest.raises(UserError) as error:
        make()
    assert all(name in str(error.value) for name in named) and "\n" not in str(error.value)


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    training = Training(batch_size=np.int64(2), coeff_W_L1=np.float32(0.5), n_seeds=2.0)
    assert (training.batch_size, training.coeff_W_L1, training.n_seeds) == (2, 0.5, 2)
    assert type(training.batch_size) is int and type(training.n_seeds) is int


def test_a_choice_has_the_type_of_its_parameter(root):
    changes = ["search.ranges.coeff_edge_norm={scale: choice, values: [0, 1]}"]
    search = load_experiment(root / "experiments" / "quickstart.yaml", changes).search
    assert search.ranges["coeff_edge_norm"].values == (0.0, 1.0)
    assert type(search.ranges["coeff_edge_norm"].values[0]) is float


def test_the_solvers_of_the_config_are_those_of_the_simulator():
    from flyjax.simulation import SOLVERS

    assert set(get_args(Simulation.model_fields["solver"].annotation)) == set(SOLVERS)


def test_the_settings_that_do_not_hold_together_are_named_and_no_others(root):
    given = ["search.n_blocks=1", "simulation.n_recordings=2", "simulation.seed=3", "simulation.target=difference"]
    with pytest.raises(UserError) as error:
        load_experiment(root / "experiments" / "quickstart.yaml", given)
    message = str(error.value)
    assert all(s in message for s in (given[1], given[3])) and not any(s in message for s in (given[0], given[2]))


@pytest.mark.parametrize(
    "search, values",
    [
        ("", ("video",)),
        ("search: {simulations: [{}, {visual_input_type: blank}]}", ("video", "blank")),
        ("search: {simulation_ranges: {n_frames: {min: 16, max: 99999, scale: int}}}", None),
        ("search: {simulation_ranges: {visual_input_type: {scale: choice, values: [blank]}}}", "refused"),
    ],
)
def test_the_stimuli_of_a_file_are_its_range_where_it_gives_none(tmp_path, search, values):
    path = tmp_path / "a.yaml"
    path.write_text(f"simulation: {{visual_input_type: video}}\n{search}\n", encoding="utf-8")
    if values == "refused":
        with pytest.raises(UserError, match=r"search\.simulation_ranges\.visual_input_type"):
            load_experiment(path)
        return
    loaded = load_experiment(path)
    span = loaded.search.simulation_ranges.get("visual_input_type")
    assert (span and span.values) == values
    assert parse_experiment(loaded.model_dump(mode="json")) == loaded
