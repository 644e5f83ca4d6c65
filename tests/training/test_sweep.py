"""A sweep from its config to its tables, killed in between and run again; dry runs without data."""

import csv
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from flyjax.cli.console import Console
from flyjax.cli.progress import LaneTable
from flyjax.config import Range, load_experiment, parse_experiment
from flyjax.experiments import forecast as forecast_room
from flyjax.experiments import sweep
from flyjax.experiments.forecast import Rate, forecast, forecast_search, given_memory
from flyjax.experiments.node import NodeSpec
from flyjax.experiments.sweep import describe, run_sweep, sweep_candidates
from flyjax.experiments.train_nodes import train_nodes
from flyjax.report.charts import Axis
from flyjax.report.figures.sweep import parallel_figure
from flyjax.training import Lane, LaneProgress, Progress, checkpoint
from flyjax.utils.errors import UserError
from flyjax.utils.history import read_history
from flyjax.utils.run_directory import RunDirectory, own

TINY = {
    "name": "tiny",
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 320, "n_test_frames": 60},
    "model": {"width": 8},
    "training": {"n_seeds": 1, "checkpoint_every": 250, "validation_fraction": 0.2, "data_augmentation_loop": 20},
    "search": {"ranges": {}, "simulation_ranges": {}},
    "sweep": {
        "candidates": [{"learning_rate_start": r} for r in (1e-3, 1e-6, 5e-4, 1e10)],
        "halving": 2, "halving_rungs": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    experiment, run_dir = parse_experiment(TINY), tmp_path_factory.mktemp("sweep") / "run"
    results = run_sweep(experiment, sweep_candidates(experiment), run_dir, Console(), ["tensorboard"])
    return run_dir, results


def rows_of(run_dir):
    with (run_dir / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_leaves_tables_a_figure_and_nodes(made):
    run_dir, results = made
    rows = rows_of(run_dir)
    assert [float(r["learning_rate_start"]) for r in rows] == [1e-3, 1e-6, 5e-4, 1e10]
    for row in rows[:3]:
        assert float(row["connectivity_R2"]) == results[int(row["node"])]["metrics"]["connectivity_R2"]
    # 1,280 steps in 6 chunks: the worse half stops at the third, the diverged one has stopped itself.
    assert [row["stopped_at"] for row in rows] == ["", "750", "", ""]
    assert results[2]["per_seed"][0]["n_steps"] == 750
    assert rows[3]["connectivity_R2"] == "" and "diverged at step" in rows[3]["reason"]
    page = (run_dir / "report.html").read_text()
    assert 'class="pill finished"' in page and all(f'id="card-{n}"' in page for n in results)
    lines = (run_dir / "results.md").read_text().splitlines()
    assert "parallel.png" in lines[2] and "diverged" in lines[-1]
    with Image.open(run_dir / "parallel.png") as figure:
        assert figure.width > 400 and len(np.unique(figure.convert("L"))) > 50
    assert (run_dir / "nodes" / "0002" / "metrics.json").is_file() and not (run_dir / "checkpoints").exists()


def test_the_history_ends_where_the_metrics_are(made):
    run_dir, results = made
    history = read_history(run_dir / "history.jsonl")
    assert len(history) == 4
    for lane, lines in history.items():
        node = int(lane[5:9])
        assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
        if results[node]["metrics"] is None:
            continue
        assert all(0 < line["validation"] for line in lines)
        assert lines[-1]["step"] == results[node]["per_seed"][0]["n_steps"]
        if "connectivity_R2" in lines[-1]:
            assert lines[-1]["connectivity_R2"] == pytest.approx(results[node]["metrics"]["connectivity_R2"], rel=1e-4)
    assert any("connectivity_R2" in line for lines in history.values() for line in lines)
    assert len(list((run_dir / "tensorboard").rglob("events*"))) == 4


def test_a_sweep_killed_while_its_tables_are_written_finds_its_trainings_again(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    few = {**TINY, "sweep": {"candidates": TINY["sweep"]["candidates"][:2]}}
    experiment = parse_experiment(few)

    def train(experiment, specs, run_dir, **options):
        own(run_dir / "checkpoints" / "x")
        return {spec.id: {"metrics": {"connectivity_R2": 0.5}, "per_seed": [{}], "reason": ""} for spec in specs}

    monkeypatch.setattr(sweep, "train_nodes", train)
    monkeypatch.setattr(sweep, "write_report", lambda run_dir: run_dir)  # there are no nodes to report
    with monkeypatch.context() as then:
        then.setattr(sweep, "parallel_figure", killed)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(experiment, sweep_candidates(experiment), tmp_path / "run", Console())
    assert (tmp_path / "run" / "checkpoints" / "x").is_dir()
    run_sweep(experiment, sweep_candidates(experiment), tmp_path / "run", Console())
    assert (tmp_path / "run" / "results.md").is_file() and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["sweep", "train"])
def test_a_finished_sweep_is_not_trained_again(tmp_path, monkeypatch, capsys, kind):
    experiment = parse_experiment({**TINY, "sweep": {"candidates": TINY["sweep"]["candidates"][:2]}})
    calls = []

    def train(experiment, specs, run_dir, **options):
        calls.append(run_dir)
        options["logger"].start({})
        options["logger"].log(1, "lane", {"loss": 1.0})
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints" / "model.pt").write_text("mine")
        return {spec.id: {"metrics": {"connectivity_R2": 0.5}, "per_seed": [{}], "reason": ""} for spec in specs}

    monkeypatch.setattr(sweep, "train_nodes", train)
    run = tmp_path / "run"
    arguments = experiment, sweep_candidates(experiment), run, Console(), (), kind
    assert set(run_sweep(*arguments)) == {1, 2}
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert run_sweep(*arguments) == {} and len(calls) == 1
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert before[run / "checkpoints" / "model.pt"] == b"mine" and "--run" in capsys.readouterr().out
    with RunDirectory(run, kind), pytest.raises(UserError, match=str(run)):
        run_sweep(*arguments)
    with pytest.raises(UserError, match=kind):
        run_sweep(*arguments[:-1], {"sweep": "train", "train": "sweep"}[kind])


def test_a_folder_of_the_user_in_the_place_of_a_node_is_refused_before_the_training(tmp_path):
    experiment = parse_experiment(TINY)
    (tmp_path / "nodes" / "0002").mkdir(parents=True)
    (tmp_path / "nodes" / "0002" / "metrics.json").write_text("mine")
    specs = [NodeSpec(k, experiment.training, (0,)) for k in (1, 2)]
    with pytest.raises(UserError, match="0002"):
        train_nodes(experiment, specs, tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == ["nodes/0002/metrics.json"]


def test_another_configuration_is_refused_before_anything_is_touched(made):
    run_dir, _ = made
    other = parse_experiment({**TINY, "model": {"width": 9}})
    with pytest.raises(UserError, match=str(run_dir)):
        run_sweep(other, sweep_candidates(other), run_dir, Console())
    with pytest.raises(UserError, match="results.csv is a file"):
        run_sweep(other, sweep_candidates(other), run_dir / "results.csv" / "x", Console())


def test_a_killed_sweep_ends_the_same_bit_for_bit(made, root, tmp_path):
    reference, _ = made
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    env = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, str(root / "scripts" / "sweep.py"), "tiny.yaml", "--run", "run"]

    def start():
        return subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finished_checkpoints():
        return [p for p in (tmp_path / "run" / "checkpoints").glob("*/*") if p.name.isdigit()]

    process, end = start(), time.monotonic() + 240
    try:
        while not finished_checkpoints():
            assert process.poll() is None and time.monotonic() < end, "ended without a checkpoint"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "Wrote results.md" in out and "Traceback" not in out
    for node in range(1, 5):
        with (
            np.load(reference / "nodes" / f"{node:04d}" / "losses.npz") as mine,
            np.load(tmp_path / "run" / "nodes" / f"{node:04d}" / "losses.npz") as theirs,
        ):
            assert mine.files == theirs.files
            for name in mine.files:
                np.testing.assert_array_equal(mine[name], theirs[name])
    timeless = [{k: v for k, v in row.items() if k != "wall_s"} for row in rows_of(reference)]
    assert timeless == [{k: v for k, v in row.items() if k != "wall_s"} for row in rows_of(tmp_path / "run")]


# -- checkpoints -----------------------------------------------------------------------------------


def test_checkpoints_are_bounded_and_whole_or_passed_over_aloud(tmp_path, caplog):
    tree = {"x": np.arange(200_000, dtype=np.float32)}
    store = checkpoint.Store(tmp_path / "store")
    for number in range(1, 6):
        store.save(number, {"x": tree["x"] * number})
        unfinished = [p for p in (tmp_path / "store").iterdir() if "tmp" in p.name]
        assert all(p.name.isdigit() or "tmp" in p.name for p in (tmp_path / "store").iterdir())
        assert len(unfinished) <= 1  # written under another name, renamed when whole
    store.close()
    assert sorted(int(p.name) for p in (tmp_path / "store").iterdir()) == [4, 5]

    def damage(number):
        for file in (tmp_path / "store" / str(number)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"damaged")

    damage(5)
    store = checkpoint.Store(tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        number, found = store.restore_latest(tree)
    assert number == 4 and "checkpoint 5" in caplog.text and "going back to the one before" in caplog.text
    np.testing.assert_array_equal(found["x"], tree["x"] * 4)
    store.close()
    damage(4)
    store = checkpoint.Store(tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        assert store.restore_latest(tree) is None
    assert "beginning anew" in caplog.text
    store.close()


def test_a_checkpoint_without_its_content_costs_only_itself(tmp_path, caplog):
    tree = {"x": np.arange(1000, dtype=np.float32)}
    store = checkpoint.Store(tmp_path / "store")
    for number in (1, 2):
        store.save(number, {"x": tree["x"] * number})
    store.close()
    shutil.rmtree(tmp_path / "store" / "2" / "default")
    store = checkpoint.Store(tmp_path / "store")
    number, found = store.restore_latest(tree)
    assert number == 1 and "going back to the one before" in caplog.text
    np.testing.assert_array_equal(found["x"], tree["x"])
    store.save(2, tree)
    store.close()
    assert sorted(int(p.name) for p in (tmp_path / "store").iterdir()) == [1, 2]


def test_a_full_disk_or_memory_is_one_line_and_loses_no_checkpoint(tmp_path, monkeypatch):
    tree = {"x": np.arange(1000, dtype=np.float32)}
    store = checkpoint.Store(tmp_path / "store")
    store.save(1, tree)
    store.close()

    def fails(*arguments, **options):  # as orbax words it
        raise ValueError(
            'RESOURCE_EXHAUSTED: Error writing "x/0" in OCDBT database: '
            "Failed to write 812374 bytes to file 11: No space left on device"
        )

    def too_much(*arguments, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 400 bytes.")

    store = checkpoint.Store(tmp_path / "store")
    with monkeypatch.context() as then, pytest.raises(UserError, match="the disk is full") as error:
        then.setattr(checkpoint.ocp.CheckpointManager, "save", fails)
        store.save(2, tree)
    assert "\n" not in str(error.value)
    with monkeypatch.context() as then, pytest.raises(UserError, match="out of memory"):
        then.setattr(checkpoint.ocp.CheckpointManager, "restore", too_much)
        store.restore_latest(tree)
    assert store.restore_latest(tree)[0] == 1
    store.close()
    with monkeypatch.context() as then, pytest.raises(UserError, match="the disk is full"):
        then.setattr(checkpoint.ocp.Checkpointer, "save", fails)
        checkpoint.save_params(tmp_path / "params", tree)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    """What is on disk before the checkpoint is complete is what a kill would leave."""
    tree = {"x": np.arange(1000, dtype=np.float32)}
    store = checkpoint.Store(tmp_path / "store")
    store.save(1, tree)
    store.close()
    written, rename, go_on = threading.Event(), os.rename, threading.Event()

    def stopped(source, target, **options):
        if Path(target).name == "2":
            written.set()
            assert go_on.wait(60)
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", stopped)
    store = checkpoint.Store(tmp_path / "store")
    later = {"x": tree["x"] + 1}
    saving = threading.Thread(target=store.save, args=(2, later))
    saving.start()
    assert written.wait(60)
    shutil.copytree(tmp_path / "store", tmp_path / "killed")
    go_on.set()
    saving.join()
    store.close()
    for folder, number, wanted in (("killed", 1, tree), ("store", 2, later)):
        store = checkpoint.Store(tmp_path / folder)
        found, values = store.restore_latest(tree)
        store.close()
        assert found == number
        np.testing.assert_array_equal(values["x"], wanted["x"])


# -- before and beside -----------------------------------------------------------------------------


def test_a_dry_run_at_full_scale_needs_no_data(root):
    experiment = load_experiment(
        root / "experiments" / "full_scale.yaml", ["sweep.n_random=16", "search.max_disk_gb=20"]
    )
    text = describe(experiment, sweep_candidates(experiment), 40.0)
    assert "13,741 neurons, 434,112 edges" in text and "3.57 GB each while it trains" in text
    assert "16 noise levels" in text and "more than search.max_disk_gb=20" in text and "does not fit" not in text
    assert "does not fit: one training takes about" in describe(experiment, sweep_candidates(experiment), 2.0)


def test_a_plan_for_another_device_has_no_time_of_this_one(root, monkeypatch):
    """Programs and memory of one accelerator, whatever this machine is and has."""
    experiment = load_experiment(root / "experiments" / "full_scale.yaml", ["sweep.n_random=16"])
    candidates = sweep_candidates(experiment)

    def refuse():
        raise AssertionError("this machine was measured")

    monkeypatch.setattr(forecast_room, "measured_rate", refuse)
    monkeypatch.setattr(sweep, "measured_rate", refuse)
    plans = []
    for n_devices in (1, 8):
        monkeypatch.setattr(jax, "local_device_count", lambda n=n_devices: n)
        plans.append((describe(experiment, candidates, 80.0), forecast_search(experiment, given_memory(80.0))))
    assert plans[0] == plans[1]
    for text in plans[0]:
        assert "programs" in text and "80 GB" in text and "time: not measured" in text
        assert "GFLOP/s" not in text and "time each" not in text and "complete run" not in text
        assert re.search(r"\babout \d", text) is None


def test_a_plan_for_this_machine_has_a_time(monkeypatch):
    monkeypatch.setattr(forecast_room, "measured_rate", lambda: Rate(1.0, "given"))
    assert "complete run: about" in forecast_search(parse_experiment(TINY))


def test_time_is_work_over_rate():
    experiment = parse_experiment(TINY)
    forecasts = [
        forecast(
            experiment.simulation,
            experiment.model,
            [experiment.training] * k,
            [[0]] * k,
            Rate(2.0, "given"),
            given_memory(1),
        ).seconds
        for k in (4, 8)
    ]
    assert forecasts[1] == pytest.approx(2 * forecasts[0]) and forecasts[0] > 0


def test_a_forecast_sees_the_variant():
    experiment = parse_experiment(TINY)
    forecasts = {}
    for variant in ("A", "B", "known_ode"):
        model = experiment.model.model_copy(update={"variant": variant, "width": 80})
        forecasts[variant] = forecast(
            experiment.simulation, model, [experiment.training], [[0]], Rate(0.001, "given"), given_memory(1)
        )
    assert forecasts["B"].seconds > 2 * forecasts["A"].seconds > 4 * forecasts["known_ode"].seconds > 0
    memory = {v: next(line for line in f.text.splitlines() if "activations" in line) for v, f in forecasts.items()}
    assert len(set(memory.values())) == 3


def test_the_live_table_counts_down():
    now = [0.0]
    table = LaneTable([7], clock=lambda: now[0])

    def chunk(step, **values):
        lanes = (LaneProgress(Lane(0, 0, 1, 1000, 0.05), step, values, "training" if step < 1000 else "finished"),)
        table.update(Progress(0, 1, step, 1000, 1.0, 0, lanes))
        return table.rows()[0]

    assert chunk(250, loss=4.0)["to go"] == ""  # the first chunk compiled
    now[0] = 10.0
    assert chunk(500, loss=2.0, connectivity_R2=0.25) == {
        "node": "7",
        "seed": "1",
        "step": "500/1,000",
        "loss": "2",
        "R2 of W": "0.250 at step 500",
        "to go": "20 s",
    }
    assert chunk(1000)["to go"] == "finished" and "0.250 at step 500" in table.best_r2()


def test_axes_follow_their_scales(tmp_path):
    log = Axis([1e-4, 1e-3, 2e-3, 1e-2], Range(min=1e-4, max=1e-2, scale="log"))
    assert [round(log.place(v), 6) for v in (1e-4, 1e-3, 1e-2)] == [0, 0.5, 1] and log.ticks == pytest.approx(
        [1e-4, 1e-3, 1e-2]
    )
    assert Axis([1, 5, 30, 40]).kind == "log" and Axis([10, 12, 15, 30]).kind == "linear"
    choice = Axis([1, 4, 4, 1], few=3)
    assert choice.kind == "choice" and choice.place(1) < choice.place(4)
    rows = [{"a": k, "connectivity_R2": None} for k in range(5)]  # nothing was recovered: still a figure
    assert parallel_figure(tmp_path / "none.png", rows, ["a"], {}).stat().st_size > 1000
