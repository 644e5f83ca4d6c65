"""Parts of one's own, registered from outside of the package and used by the usual command."""

import json
import shutil

import numpy as np
import pytest
import yaml
from support.pages import follow
from typer.testing import CliRunner

from flyjax.config import Experiment, load_experiment, parse_experiment
from flyjax.data.splits import cache_key
from flyjax.experiments.reevaluate import experiment_of
from flyjax.landscape import Trainings
from flyjax.search.journal.journal import read_journal
from flyjax.utils import registry
from flyjax.utils.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Other tests see the built-in parts alone."""
    yield
    for one in registry.ALL:
        for source in {one.source(name) for name in one.own}:
            one.forget(source)
    registry._loaded.clear()


@pytest.fixture(scope="module")
def lab(root, tmp_path_factory):
    """A folder in which docs/how_to/own_parts.md was followed."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        follow(root / "docs" / "how_to" / "own_parts.md")
    return folder


@pytest.fixture
def node(lab):
    folder = lab / "runs" / "my_lab" / "nodes" / "0002"
    return yaml.safe_load((folder / "config.yaml").read_text()), json.loads((folder / "metrics.json").read_text())


def events(lab, name):
    return [e for e in read_journal(lab / "runs" / "my_lab") if e["event"] == name]


def configs(lab):
    return [planned["config"] for e in events(lab, "iteration_started") for planned in e["nodes"]]


def test_stimulus(lab, node):
    assert node[1]["computed_on"]["training"]["visual_input_type"] == "bars"
    assert node[1]["computed_on"]["held_out"]["visual_input_type"] == "bars"


def test_model(lab, node):
    assert node[1]["connectivity_R2"] is not None and node[1]["update_affine_R2_data"] == pytest.approx(1, abs=1e-3)


def test_regulariser(lab, node):
    values = [config["coeff_tau_spread"] for config in configs(lab)]
    assert values[:2] == [0.1, 0.5] and node[1]["final_loss_total"] > node[1]["final_loss"]
    assert {0.1, 0.5} < set(Trainings.read([lab / "runs" / "my_lab"]).settings["coeff_tau_spread"])


def test_metric_is_the_objective(lab, node):
    assert 0 <= node[1]["sign_accuracy"] <= 1
    assert all("sign_accuracy" in e["metrics"] for e in events(lab, "node_finished"))


def test_read_out(lab, node):
    assert node[1]["tau_R2_by_type"] is not None and "connectivity_R2_by_type_identifiable" in node[1]


def test_proposer_draws_halves(lab):
    rates = [config["learning_rate_W_start"] for config in configs(lab)]
    assert rates[1] == pytest.approx(1e-3, rel=0.05) and events(lab, "run_started")[0]["proposer"] == "bisect"


@pytest.mark.parametrize("name", ["plugins", "connectome", "parameters", "variant", "proposer"])
def test_no_search_varies_what_names_a_file(name):
    """A proposal may change what has a range, and nothing else."""
    for ranges in ("ranges", "simulation_ranges"):
        with pytest.raises(UserError, match=name):
            parse_experiment({"search": {ranges: {name: {"scale": "choice", "values": ["evil.py"]}}}})


def test_the_journal_has_the_checksum_and_another_file_is_refused(lab, node, monkeypatch, tmp_path):
    copy = shutil.copytree(lab, tmp_path / "copy")
    monkeypatch.chdir(copy)
    plugins = events(lab, "run_started")[0]["experiment"]["plugins"]
    assert list(plugins) == ["my_lab.py"] and len(plugins["my_lab.py"]) == 64
    assert node[0]["plugins"] == plugins and experiment_of(lab, node[0]).plugins == plugins
    (copy / "my_lab.py").write_text((copy / "my_lab.py").read_text() + "\n")
    import meta_loop

    result = CliRunner().invoke(meta_loop.app, ["my_lab.yaml", "--run", "runs/my_lab"])
    assert isinstance(result.exception, UserError) and "my_lab.py" in str(result.exception)


WRONG = {
    "no such file": None,
    "syntax": "def (",
    "error": "import numpy\n1 / 0\n",
    "no coefficient": "from flyjax.utils import registry\n@registry.regulariser('batch_size')\ndef f(): ...\n",
    "taken": "from flyjax.utils import registry\n@registry.stimulus('blank')\ndef f(): ...\n",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plugin_is_one_line(case, tmp_path):
    path = tmp_path / "wrong.py"
    if WRONG[case] is not None:
        path.write_text(WRONG[case])
    with pytest.raises(UserError) as error:
        parse_experiment({"plugins": [str(path)]})
    assert "wrong.py" in str(error.value) and "\n" not in str(error.value)


def test_none_is_loaded_by_default_and_names_are_checked():
    assert Experiment().plugins == {}
    for section, key in (("model", "variant"), ("search", "proposer"), ("search", "objective")):
        with pytest.raises(UserError, match=key):
            parse_experiment({section: {key: "nobodys"}})
    with pytest.raises(UserError, match="coeff_nobodys"):
        parse_experiment({"training": {"coeff_nobodys": 1.0}})


def test_an_edited_stimulus_is_another_recording(tmp_path):
    path, keys = tmp_path / "edited.py", []
    for value in (0.2, 0.7):
        path.write_text(
            "import numpy as np\nfrom flyjax.utils import registry\n@registry.stimulus('edited')\n"
            f"def edited(columns, n_frames, dt, split, seed):\n    return np.full((n_frames, len(columns)), {value})\n"
        )
        config = {"plugins": [str(path)], "simulation": {"visual_input_type": "edited", "extent": 0}}
        simulation = parse_experiment({**config, "search": {"simulation_ranges": {}}}).simulation
        keys.append(cache_key(simulation, 0.0, "train", 0))
    assert keys[0] != keys[1]
    assert np.allclose(registry.stimulus["edited"](np.zeros((3, 2)), 4, 0.02, "train", 0), 0.7)


def test_a_metric_that_fails_is_missing_with_its_reason(lab, monkeypatch):
    from flyjax.recovery.evaluate import _compute

    def fails(e):
        raise KeyError("nothing")

    monkeypatch.chdir(lab)
    load_experiment("my_lab.yaml")
    monkeypatch.setitem(registry.metric._entries, "sign_accuracy", fails)
    found = _compute("sign_accuracy", None)
    assert found.values == {"sign_accuracy": None} and "KeyError" in found.reasons["sign_accuracy"]
