"""Logged metrics can be read back, by flyjax and by the viewers they are written for."""

import json
import struct
import sys
import types

import pytest

from flyjax.training.loggers import MetricLogger
from flyjax.utils.atomic_io import open_lines, write_line
from flyjax.utils.errors import UserError
from flyjax.utils.history import read_history
from flyjax.utils.run_directory import RunDirectory

LANES = {"node_0001/seed_7": {"batch_size": 4}, "node_0002/seed_8": {"batch_size": 1}}


def log_two_trainings(logger):
    logger.start(LANES)
    for step in (250, 500):
        logger.log(step, "node_0001/seed_7", {"loss": 1000.0 / step, "connectivity_R2": None if step == 250 else 0.5})
    logger.log(250, "node_0002/seed_8", {"loss": float("nan"), "total": 3.0})
    logger.close()


def test_the_history_has_every_logged_value(tmp_path):
    log_two_trainings(MetricLogger((), tmp_path, "test"))
    assert read_history(tmp_path / "history.jsonl") == {
        "node_0001/seed_7": [{"step": 250, "loss": 4.0}, {"step": 500, "loss": 2.0, "connectivity_R2": 0.5}],
        "node_0002/seed_8": [{"step": 250, "total": 3.0}],
    }
    assert "NaN" not in (tmp_path / "history.jsonl").read_text()


def test_history_outlives_a_kill(tmp_path):
    path = tmp_path / "history.jsonl"
    log_two_trainings(MetricLogger((), tmp_path, "test"))
    path.write_text(path.read_text() + '{"lane": "node_0001/seed_7", "st')  # killed in the middle of a line
    before = read_history(path)
    again = MetricLogger((), tmp_path, "test")
    again.start(LANES)
    for step in (250, 500, 750):  # gone back to a checkpoint
        again.log(step, "node_0001/seed_7", {"loss": 1.5})
    again.close()
    before["node_0001/seed_7"].append({"step": 750, "loss": 1.5})
    assert read_history(path) == before
    complete = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert len(complete) == 4 and all(json.loads(line) for line in complete)


def test_a_damaged_history_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(
        b'[1]\n{"lane": [], "step": 1}\n{"lane": "a", "step": "x"}\n{"lane": "b", "step": 250}\n\xff\n'
        b'{"lane": "b", "step": null}\n' + b"[" * 100_000 + b'\n{"lane": "b", "step": 500.5}\n'
    )
    assert read_history(tmp_path / "history.jsonl") == {"b": [{"step": 250}]}


@pytest.mark.parametrize(
    "present, n_kept",
    [
        (b"", 0),
        (b'{"a": 1}\n', 1),
        (b'{"a": 1}\n{"a"', 1),
        (b'{"a": 1}', 1),
        (b'{"a"', 0),
        (b'{"a": 1}\n{"b": "\xc3', 1),
    ],
)
def test_what_is_added_to_a_torn_file_is_a_line_of_its_own(tmp_path, present, n_kept):
    path = tmp_path / "x" / "lines.jsonl"
    path.parent.mkdir()
    path.write_bytes(present)
    for n in (2, 3):
        with open_lines(path) as file:
            write_line(file, {"a": n})
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1] * n_kept + [2, 3]


def test_a_torn_line_longer_than_a_read_is_cut_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 200_000)
    with open_lines(path) as file:
        write_line(file, {"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_tensorboard_files_hold_the_same(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    log_two_trainings(MetricLogger(["tensorboard"], tmp_path, "test"))
    read = {}
    for path in (tmp_path / "tensorboard").rglob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # records of length, checksum, content, checksum
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                lane = path.parent.relative_to(tmp_path / "tensorboard").as_posix()
                read[lane, value.tag, event.step] = value.simple_value
    assert read == {
        ("node_0001/seed_7", "loss", 250): 4.0,
        ("node_0001/seed_7", "loss", 500): 2.0,
        ("node_0001/seed_7", "connectivity_R2", 500): 0.5,
        ("node_0002/seed_8", "total", 250): 3.0,
    }


@pytest.mark.parametrize(
    "viewer, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_viewer_names_its_remedy(tmp_path, monkeypatch, viewer, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}") as error:
        MetricLogger([viewer], tmp_path, "test")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_an_unknown_viewer_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        MetricLogger(["tensorbord"], tmp_path, "test")


class Settings:
    """As wandb's: no dictionary, but it can be added to."""

    def __init__(self, settings):
        self.known = dict(settings)

    def update(self, settings):
        self.known |= settings


@pytest.mark.parametrize("viewer", ["wandb", "trackio"])
def test_a_run_directory_is_one_run_of_a_tracker_in_all_its_sessions(tmp_path, monkeypatch, viewer):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **k: calls.append(("init", k)) or types.SimpleNamespace(),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, viewer, fake)
    RunDirectory(tmp_path / "run", "search").close()
    for _ in range(2):
        log_two_trainings(MetricLogger([viewer], tmp_path / "run", "test"))
    first, second = (given for name, *rest in calls if name == "init" for given in rest)
    assert first == second and calls[-1] == ("finish",)
    assert (first["project"], first["config"], first["resume"]) == ("test", LANES, "allow")
    assert first.get("group") == ("test" if viewer == "wandb" else None)
    RunDirectory(tmp_path / "other", "search").close()
    log_two_trainings(MetricLogger([viewer], tmp_path / "other", "test"))
    key = "id" if viewer == "wandb" else "name"  # by which it knows a run
    assert [given for name, *rest in calls if name == "init" for given in rest][2][key] != first[key]
    values = {f"node_0001/seed_7/{k}": v for k, v in {"loss": 2.0, "connectivity_R2": 0.5, "step": 500}.items()}
    assert calls.count(("log", values)) == 2  # not again in the second session of the first


@pytest.mark.parametrize("viewer", ["wandb", "trackio"])
def test_a_tracker_that_cannot_start_is_one_line(tmp_path, monkeypatch, viewer):
    def init(**given):
        raise RuntimeError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setitem(sys.modules, viewer, types.SimpleNamespace(init=init))
    with pytest.raises(UserError, match=f"--log {viewer}.*No API key") as error:
        MetricLogger([viewer], tmp_path, "test").start(LANES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("viewer, kind", [("wandb", Settings), ("trackio", dict)])
def test_a_tracker_learns_the_settings_of_every_iteration(tmp_path, monkeypatch, viewer, kind):
    runs, logged, steps = [], [], []

    def init(config, **given):
        runs.append(types.SimpleNamespace(config=kind(config)))
        return runs[-1]

    fake = types.SimpleNamespace(
        init=init, log=logged.append, finish=lambda: None, define_metric=lambda name, step_metric: steps.append(name)
    )
    monkeypatch.setitem(sys.modules, viewer, fake)
    logger = MetricLogger([viewer], tmp_path, "test")
    later = {"node_0003/seed_9": {"batch_size": 2, "schedule": "constant"}}
    logger.start(LANES)
    logger.start({**later, "node_0002/seed_8": LANES["node_0002/seed_8"]})
    logger.close()
    (run,) = runs
    assert (run.config if kind is dict else run.config.known) == {**LANES, **later}
    assert steps == [f"{lane}/*" for lane in (*LANES, *later)]
    # trackio sends its config once: later settings are logged as values.
    assert logged == ([{"node_0003/seed_9/batch_size": 2}] if kind is dict else [])
