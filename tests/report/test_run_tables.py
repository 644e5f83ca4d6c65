"""A run as tables: every value is the journal's, also after a round trip through CSV."""

import csv
import io
import json
import shutil

import pytest
from support.made_up_run import HOSTILE, Maker, metrics, two_blocks

import flyjax
from flyjax.config import dump_yaml, parse_experiment
from flyjax.report.html import write_report
from flyjax.report.run_tables import as_csv, load_run
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.utils.errors import UserError

RECORDED = "experiments/results/quickstart"


def test_load_run_equals_the_journal(root):
    run, events = flyjax.load_run(root / RECORDED), read_journal(root / RECORDED)
    state = fold(events)
    assert [row["node"] for row in run.nodes] == sorted(state.nodes)
    for row in run.nodes:
        node = state.nodes[row["node"]]
        assert {name: row[name] for name in node.config} == node.config
        assert row["connectivity_R2"] == node.metrics["connectivity_R2"] and row["reward"] == node.reward
        assert row["simulation.visual_input_type"] == state.blocks[node.block].simulation["visual_input_type"]
        assert row["model.width"] == state.experiment["model"]["width"]
    finished = {e["node"]: e["per_seed"] for e in events if e["event"] == "node_finished"}
    expected = [m["connectivity_R2"] for node in state.all_nodes for m in finished[node.id]]
    assert [row["connectivity_R2"] for row in run.trainings] == expected
    assert len(run.trainings) > len(run.nodes) and run.trainings[-1]["strategy"] == "confirmation"


def test_csv_round_trip_keeps_every_digit(root):
    run = load_run(root / RECORDED)
    for rows in (run.nodes, run.trainings):
        read = list(csv.DictReader(io.StringIO(as_csv(rows))))
        assert len(read) == len(rows)
        for cells, row in zip(read, rows, strict=True):
            for name, value in row.items():
                if isinstance(value, bool) or value is None:
                    assert cells[name] == ("" if value is None else str(value))
                elif isinstance(value, (int, float)):
                    assert float(cells[name]) == value


def test_failed_nodes_and_trainings_in_progress_have_rows(tmp_path):
    run = load_run(two_blocks(tmp_path))
    failed, running = run.nodes[5], run.nodes[24]
    assert failed["status"] == "failed" and failed["connectivity_R2"] is None and "step 40" in failed["reason"]
    assert running["status"] == "running" and running["noise_model_level"] == 0.1
    of_node_4 = [row for row in run.trainings if row["node"] == 4]
    assert [row["connectivity_R2"] for row in of_node_4] == [0.91, 0.95]
    assert run.curves == []


def sweep(folder, **files):
    """A sweep of three configurations, the last of which failed, and the history of the first."""
    experiment = parse_experiment({"name": "levels", "sweep": {"grid": {"noise_model_level": [0.0, 0.1]}}})
    (folder / "config.yaml").write_text(dump_yaml(experiment))
    base = experiment.model_dump(mode="json")
    for number, level in enumerate((0.05, 0.0, 0.1), 1):
        path = folder / "nodes" / f"{number:04d}"
        path.mkdir(parents=True)
        config = {"node": number, "seeds": [7, 8], **{k: base[k] for k in ("simulation", "model")}}
        config["training"] = {**base["training"], "noise_model_level": level}
        (path / "config.yaml").write_text(dump_yaml(config))
        none = dict.fromkeys(metrics(0.0))
        found = metrics(0.7 + level) if number < 3 else none | {"reasons": {"connectivity_R2": HOSTILE}}
        per_seed = [found, {**found, "connectivity_R2": 0.8}] if number < 3 else [found, found]
        (path / "metrics.json").write_text(json.dumps({**found, "per_seed": per_seed}))
    lines = [{"lane": "node_0001/seed_7", "step": k, "loss": 1 / k, "connectivity_R2": 0.1 * k} for k in (1, 2)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_sweep_is_a_table_too(tmp_path):
    run = load_run(sweep(tmp_path))
    assert [row["noise_model_level"] for row in run.nodes] == [0.05, 0.0, 0.1]
    assert [row["status"] for row in run.nodes] == ["finished", "finished", "failed"]
    assert [row["connectivity_R2"] for row in run.trainings[:2]] == [0.75, 0.8]
    assert run.curves[1] == {"node": 1, "seed": 7, "step": 2, "loss": 0.5, "connectivity_R2": 0.2}


def test_a_sweep_of_trainings_names_the_script_for_its_map(tmp_path):
    (tmp_path / "trainings.csv").write_text("seed\n")
    with pytest.raises(UserError, match="scripts/landscape.py"):
        load_run(tmp_path)


def test_a_sweep_has_a_report(tmp_path):
    text = write_report(sweep(tmp_path)).read_text()
    assert 'id="node-2"' in text and 'id="curves"' in text and "<script>alert" not in text
    assert 'id="tree"' not in text and 'id="blocks"' not in text


def test_the_curves_of_a_sweep_in_training_are_drawn(tmp_path):
    shutil.rmtree(sweep(tmp_path) / "nodes")
    text = write_report(tmp_path).read_text()
    assert text.count('class="curve running"') == 2 and "No node has finished" in text
    assert load_run(tmp_path).nodes == [] and as_csv([]) == "\n"


def test_no_cell_is_a_formula(tmp_path):
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=["=cmd()|x"])
    assert "'=cmd()" in as_csv(load_run(tmp_path).nodes)


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.yaml", "[1]"),
        ("config.yaml", ""),
        ("config.yaml", "training: x"),
        ("config.yaml", "training: {batch_size: x}"),
        ("nodes/0001/config.yaml", ""),
        ("nodes/0001/config.yaml", "node: x\ntraining: {batch_size: 1}"),
        ("nodes/0001/metrics.json", "[1]"),
        ("nodes/0001/metrics.json", '{"per_seed": []}'),
        ("nodes/0001/metrics.json", '{"per_seed": [5]}'),
        ("nodes/0001/metrics.json", '{"per_seed": [{"reasons": 5}]}'),
        (".flyjax-run.json", '{"finis'),
        (".flyjax-run.json", "[1]"),
    ],
)
def test_a_damaged_file_of_a_sweep_is_one_line(tmp_path, name, text):
    (tmp_path / "nodes" / "0001").mkdir(parents=True)
    experiment = dump_yaml(parse_experiment({"name": "sweep"}))
    (tmp_path / "config.yaml").write_text(experiment)
    (tmp_path / "nodes" / "0001" / "config.yaml").write_text(experiment + "node: 1\nseeds: [5]\n")
    (tmp_path / "nodes" / "0001" / "metrics.json").write_text(json.dumps(metrics(0.5)))
    assert len(load_run(tmp_path).nodes) == 1
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load_run(tmp_path)
    assert "\n" not in str(error.value)
