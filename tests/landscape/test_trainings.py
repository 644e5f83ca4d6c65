"""Reading trainings from runs, sweeps and tables."""

import gzip
import json

import numpy as np
import pytest

from flyjax.config import PROTOCOL_RANGES
from flyjax.landscape import Trainings
from flyjax.utils.errors import UserError


def test_a_search_is_read_training_by_training(root):
    trainings = Trainings.read([root / "experiments" / "results" / "quickstart"])
    per_seed = [
        m["connectivity_R2"]
        for line in (root / "experiments" / "results" / "quickstart" / "journal.jsonl").read_text().splitlines()
        if (event := json.loads(line))["event"] == "node_finished"
        for m in event["per_seed"]
    ]
    assert list(trainings.metrics["connectivity_R2"]) == per_seed
    assert set(trainings.split(PROTOCOL_RANGES)) == {"scenes_texture", "scenes_flow"}


def test_a_table_is_read_as_it_was_written(tmp_path):
    text = (
        "configuration,seed,learner,stimulus,learning_rate_W_start,batch_size,connectivity_R2,test_R2,reason\n"
        "0,1,ours,DAVIS,0.001,2,0.95,-3.5,\n0,2,ours,DAVIS,0.001,2,,,diverged\n"
    )
    path = tmp_path / "trainings.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    for source in (path, tmp_path):
        trainings = Trainings.read([source])
        assert trainings.settings == {"learning_rate_W_start": (0.001, 0.001), "batch_size": (2, 2)}
        assert trainings.reasons == ("", "diverged") and trainings.seeds == (1, 2)
        # No result, and predictions worse than the mean, count as 0.
        np.testing.assert_array_equal(trainings.values("connectivity_R2"), [0.95, 0])
        np.testing.assert_array_equal(trainings.values("test_R2"), [0, 0])
    trainings.write(tmp_path / "again.csv.gz")
    again = Trainings.read([tmp_path / "again.csv.gz"])
    np.testing.assert_array_equal(again.metrics["test_R2"], [-3.5, np.nan])
    assert again.settings == trainings.settings and again.reasons == trainings.reasons


def test_held_out_prediction_stands_for_weights_that_nobody_knows():
    def rows(truth):
        metrics = [{"connectivity_R2": truth, "test_R2": value} for value in (0.95, 0.5, None)]
        return [{"settings": {"batch_size": k}, "seed": k, "metrics": m} for k, m in enumerate(metrics)]

    unknown = Trainings.from_rows(rows(None))
    np.testing.assert_array_equal(unknown.values("connectivity_R2"), [0.95, 0.5, 0])
    assert unknown.diverged == 1
    np.testing.assert_array_equal(Trainings.from_rows(rows(0.7)).values("connectivity_R2"), [0.7] * 3)


@pytest.mark.parametrize("content", [None, b"a,b\n1,2\n", b"\x1f\x8bdamaged"])
def test_what_holds_no_trainings_is_one_line(tmp_path, content):
    path = tmp_path / "trainings.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as error:
        Trainings.read([path])
    assert "\n" not in str(error.value)


HEADER = "seed,learning_rate_start,batch_size,connectivity_R2\n"


@pytest.mark.parametrize(
    "table, named",
    [
        (HEADER + "1,nan,2,0.5\n", "learning_rate_start"),
        (HEADER + "1,inf,2,0.5\n", "learning_rate_start"),
        (HEADER + "1,-0.001,2,0.5\n", "learning_rate_start"),
        (HEADER + "1,0.001,x,0.5\n", "batch_size"),
        (HEADER + "1,0.001,1.5,0.5\n", "batch_size"),
        (HEADER + "inf,0.001,2,0.5\n", "seed"),
        (HEADER + "1.5,0.001,2,0.5\n", "seed"),
        (HEADER + "1,0.001,2,high\n", "connectivity_R2"),
        (HEADER + "1,0.001,2,1.5\n", "connectivity_R2"),
        (HEADER + "1,0.001,2\n", "row 1"),
        (HEADER + "1,0.001,2,0.5,7\n", "row 1"),
        ("seed,batch_size,connectivity_R2,batch_size\n1,2,0.5,4\n", "batch_size"),
    ],
)
def test_a_value_that_no_training_has_is_refused_with_its_name(tmp_path, table, named):
    path = tmp_path / "mine.csv"
    path.write_text(table)
    with pytest.raises(UserError, match=named) as error:
        Trainings.read([path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_training_that_is_read_twice_counts_once(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + "1,0.001,2,0.5\n2,0.001,2,0.5\n1,0.001,2,0.5\n")
    assert Trainings.read([path, path]).seeds == (1, 2)


def test_a_journal_is_read_as_the_search_reads_it(root, tmp_path):
    """A line that was cut off is left out, lost lines are refused, and a node has one result."""
    data = (root / "experiments" / "results" / "quickstart" / "journal.jsonl").read_bytes()
    *lines, _ = data.split(b"\n")
    number = next(k for k, line in enumerate(lines) if b'"node_finished"' in line)
    journal = tmp_path / "journal.jsonl"
    n = len(Trainings.read([root / "experiments" / "results" / "quickstart"]))
    for tail in (b'{"schema": 1, "ev', b"\0\0\0\n", b"\n"):
        journal.write_bytes(data + tail)
        assert len(Trainings.read([tmp_path])) == n
    again = json.dumps({k: v for k, v in json.loads(lines[number]).items() if k != "seq"}).encode()
    journal.write_bytes(data + again + b"\n")
    assert len(Trainings.read([tmp_path])) == n
    journal.write_bytes(b"\n".join(lines[:number] + lines[number + 1 :]) + b"\n")
    with pytest.raises(UserError, match="lost"):
        Trainings.read([tmp_path])


def test_trainings_of_another_connectome_are_of_another_ground_truth(tmp_path):
    for number, folder in enumerate(("a", None)):
        node = tmp_path / "nodes" / f"000{number}"
        node.mkdir(parents=True)
        config = {"simulation": {"connectome": folder}, "model": {}, "training": {"batch_size": 2}, "seeds": [0]}
        (node / "config.yaml").write_text(json.dumps(config))
        (node / "metrics.json").write_text(json.dumps({"connectivity_R2": 0.5, "test_R2": 0.5}))
    assert Trainings.read([tmp_path]).conditions["ground_truth"] == ("sampled of a", "sampled")
