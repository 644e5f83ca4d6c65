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


@pytest.mark.parametrize("content", [None, b"a,b\n1,2\n", b"\x1f\x8bdamaged"])
def test_what_holds_no_trainings_is_one_line(tmp_path, content):
    path = tmp_path / "trainings.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as error:
        Trainings.read([path])
    assert "\n" not in str(error.value)
