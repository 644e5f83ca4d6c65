"""The benchmark of the simulator, as a user runs it."""

import itertools
import json
import math
import sys
from types import SimpleNamespace

import pytest

from flyjax.config import parse_experiment
from flyjax.experiments import benchmark
from flyjax.experiments.benchmark import full_rows, train_row
from flyjax.utils import system
from flyjax.utils.errors import UserError


def test_rows_and_table(script, tmp_path):
    options = ["--extent", "0", "--batch", "1", "--frames", "64", "--seconds", "0.1"]
    code, out, errors = script("benchmark", "simulate", *options, "--json", tmp_path / "rows.json")
    assert code == 0, errors
    assert "segment" in out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["neurons"] == 65 and row["edges"] == 480
    assert row["bytes_per_step"] == 3 * 4 * 65 + 8 * 480
    assert abs(row["share_of_floor"] - row["steps_per_s"] / row["floor_steps_per_s"]) < 1e-9
    assert row["steps_per_s"] > 100 and row["bandwidth_gb_s"] > 0.1


@pytest.mark.parametrize(
    "option, value, needed",
    [("--extent", "16", "0 to 15"), ("--batch", "0", "at least 1"), ("--kernel", "conv", "Known: auto")],
)
def test_bad_input_is_one_line(script, option, value, needed):
    code, _, errors = script("benchmark", "simulate", option, value)
    assert code == 2 and needed in errors and "Traceback" not in errors


def test_profile_of_a_step(script, tmp_path):
    options = ["--extent", "0", "--width", "8", "--repeats", "5", "--rows", "64", "--json", tmp_path / "rows.json"]
    code, _, errors = script("benchmark", "profile", *options)
    assert code == 0, errors
    ms = {row["part"]: row["ms"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {"one step", "Adam", "regularisers and gradient"} < set(ms) and min(ms.values()) > 0
    assert ms["one step"] > ms["Adam"]


def test_parts_of_an_evaluation(script, tmp_path):
    options = ["--extent", "0", "--frames", "320", "--width", "8", "--json", tmp_path / "rows.json"]
    code, _, errors = script("benchmark", "judge", *options)
    assert code == 0, errors
    rows = {row["part"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {"closed form", "refit", "clusters", "activity"} < set(rows)
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["closed form"]["gigabytes"] == pytest.approx(8e-9 * 320 * 65)


def test_stages_of_nodes_add_up(monkeypatch):
    """`train_nodes` itself is tested elsewhere: here it only reports, at known times."""
    clock = itertools.count()

    def train_nodes(experiment, specs, run_dir, *, on_stage, on_progress):
        assert [spec.seeds for spec in specs] == [(1,), (2,)]
        for stage in ("simulating", "compiling"):
            on_stage(stage)
        for steps in (500, 1000):
            on_progress(SimpleNamespace(lane_steps=steps))
        for stage in ("evaluating", "drawing node 1", "evaluating, 1 of 2 done", "drawing node 2"):
            on_stage(stage)

    monkeypatch.setattr(benchmark, "train_nodes", train_nodes)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    experiment = parse_experiment(
        {
            "simulation": {"extent": 0, "n_frames": 64, "visual_input_type": "scenes_texture"},
            "training": {"batch_size": 2},
            "search": {"simulation_ranges": {}},
        }
    )
    rows = {row["part"]: row for row in full_rows(experiment, 2)}
    total = rows["all nodes"]["seconds"]
    parts = [row["seconds"] for part, row in rows.items() if part not in ("all nodes", "recording, another")]
    assert rows["files and figures"]["seconds"] == 2
    # What is between the last report and the evaluation belongs to no stage.
    assert total - 1 == sum(parts)
    assert rows["training, the rest"]["train_frames_per_s"] == 500 * 2 / 1
    assert rows["evaluation of the others"]["gflop"] == rows["evaluation of the first node"]["gflop"] > 0


def test_every_part_of_an_accelerator_is_written_as_it_ends(script, tmp_path, monkeypatch):
    """Nodes are trained elsewhere: here they fail, after the first form was timed."""
    file = tmp_path / "rows.json"
    config = tmp_path / "small.yaml"
    config.write_text("simulation: {extent: 0}\nmodel: {width: 8}\nsearch: {simulation_ranges: {}}\n")

    def full_rows(experiment, n_nodes):
        raise UserError("no video")

    monkeypatch.setattr(benchmark, "full_rows", full_rows)
    monkeypatch.setattr(benchmark, "matmul_gflops", lambda: 100.0)
    code, _, errors = script("benchmark", "accelerator", config, "--json", file)
    assert code == 2 and "no video" in errors
    (row,) = json.loads(file.read_text())
    assert row["part"].endswith("form accelerator") and row["device"] == "cpu"
    rate = row["candidates"] * row["batch_size"] * 250 / row["seconds"]
    assert row["frames_per_s"] == pytest.approx(rate)
    assert row["gigabytes"] == pytest.approx(250 * 4e-9 * 4 * (2 * 4 + 2) * 65 * 8 * 2)


def test_an_accelerator_is_timed_in_every_form(monkeypatch):
    asked = []

    def train_row(extent, candidates, seeds, batch_size, width, **settings):
        asked.append((candidates, batch_size, settings["form"], settings.get("matmul_precision")))
        return {"frames_per_s": 10.0, "gflop_per_frame": 2.0}

    parts = {"training, the rest": 500.0, "all nodes": 0.0}
    nodes = [{"part": part, "seconds": 1.0, "train_frames_per_s": 500.0} for part in parts]
    monkeypatch.setattr(benchmark, "train_row", train_row)
    monkeypatch.setattr(benchmark, "full_rows", lambda experiment, n_nodes: nodes)
    monkeypatch.setattr(benchmark, "matmul_gflops", lambda: 100.0)
    experiment = parse_experiment({"simulation": {"extent": 0}, "search": {"simulation_ranges": {}}})
    first, second, *others = benchmark.accelerator_rows(experiment, 1)
    assert {row["part"]: row["frames_per_s"] for row in second} == parts
    assert len(set(asked)) == 6 == 1 + len(others)
    assert first[0]["gflop"] == 1 * 4 * 250 * 2.0


def test_memory_is_not_a_number_where_the_system_does_not_report_it(monkeypatch):
    assert 0.01 < system.peak_memory_gb() < 1000
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert math.isnan(system.peak_memory_gb())


def test_a_training_is_timed():
    row = train_row(0, 1, 1, batch_size=1, width=8, n_frames=16, repeats=1, peak=100.0)
    assert row["frames_per_s"] == pytest.approx(1e3 / row["ms_per_step"])
    assert row["share_of_peak"] == pytest.approx(row["frames_per_s"] * row["gflop_per_frame"] / 100)
