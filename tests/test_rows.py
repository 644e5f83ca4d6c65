"""Rows of results tables: validated, resumed from their journal, rendered from nothing else."""

import json

import numpy as np
import pytest

from flyjax import rows
from flyjax.errors import UserError

MACHINE = {"hardware": "2 cores", "device": "cpu", "jax": "0", "load": 0.1, "date": "2026-01-01"}
BASE = {
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 60, "n_test_frames": 16},
    "model": {"width": 8, "units": "data"},
    "training": {"batch_size": 4, "data_augmentation_loop": 1, "n_seeds": 2},
}


def table(**row):
    return rows.Table(name="recovery_x", title="X", base=BASE, rows=(rows.Row(name="one", **row),))


def test_a_row_differs_from_the_base_by_what_it_sets_and_by_nothing_else():
    one = table(set={"training.noise_model_level": 3.0})
    base, changed = one.experiment(rows.Row(name="base")), one.experiment(one.rows[0])
    assert changed.training.noise_model_level == 3.0  # the protocol's range ends at 0.2: rows are no proposals
    assert changed.training.model_copy(update={"noise_model_level": base.training.noise_model_level}) == base.training
    assert (changed.simulation, changed.model) == (base.simulation, base.model)


@pytest.mark.parametrize("key, message", [("training.batch_sise", "batch_size"), ("batch_size", "not section.key"), ("simulation.extent", "extent")])
def test_a_bad_key_or_value_names_the_row(key, message):
    one = table(set={key: -1})
    with pytest.raises(UserError, match=message) as error:
        one.experiment(one.rows[0])
    assert "'one'" in str(error.value)


def test_identity_sees_what_is_trained_and_judged():
    one = table()
    same, other = one.experiment(one.rows[0]), one.experiment(one.rows[0], {"training.batch_size": 2})
    assert rows.identity(same, one.rows[0]) == rows.identity(one.experiment(one.rows[0]), rows.Row(name="another name"))
    assert rows.identity(same, one.rows[0]) != rows.identity(other, one.rows[0])
    assert rows.identity(same, one.rows[0]) != rows.identity(same, rows.Row(name="one", lesion=0.5))


def test_a_torn_line_is_dropped_and_a_broken_one_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    rows.append(path, {"identity": "a", "n": 1})
    rows.append(path, {"identity": "a", "n": 2})
    rows.append(path, {"identity": "b", "n": 3})
    path.write_text(path.read_text() + '{"identity": "c", ')
    assert [(e["identity"], e["n"]) for e in rows.read_journal(path)] == [("a", 2), ("b", 3)]
    path.write_text('{"identity"\n{"identity": "a"}\n')
    with pytest.raises(UserError, match="line 1"):
        rows.read_journal(path)


def test_the_table_shows_mean_minimum_and_spread_and_what_was_not_run():
    one = rows.Table(name="recovery_x", title="X", base=BASE, rows=(rows.Row(name="one", published="W .9"), rows.Row(name="two")))
    seeds = [{"connectivity_R2": r, "connectivity_R2_refit": 0.9999} for r in (0.9, 0.5)]
    event = {"row": "one", "per_seed": seeds, "diverged": 0, "train_s": 3.0, "n_steps": 10, **MACHINE}
    text = rows.render([(one, {"one": event})])
    assert "Not run: two." in text
    spread = 100 * np.std([0.9, 0.5], ddof=1) / 0.7
    assert f"| .700 (.500, {spread:.1f} %) |" in text and ".99990 (.99990, 0.0 %)" in text and "W .9" in text


def test_a_row_trained_for_real_fills_a_line_of_json(tmp_path):
    one = table(lesion=0.5)
    event = rows.run_row(one, one.rows[0], one.experiment(one.rows[0]), tmp_path, MACHINE)
    back = json.loads(json.dumps(event, allow_nan=False))
    assert len(back["per_seed"]) == 2 and back["n_steps"] == 3 and back["diverged"] == 0
    for seed in back["per_seed"]:
        assert {"connectivity_R2", "connectivity_R2_refit", "connectivity_R2_ceiling", "test_R2"} <= set(seed)
    assert back["per_seed"][0]["final_loss"] != back["per_seed"][1]["final_loss"]
    assert rows.line(event).count("refit") == 3
    assert not (tmp_path / "checkpoints").exists()
