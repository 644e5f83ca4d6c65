"""Rows of results tables: validated, resumed from their journal, rendered from nothing else."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from flyjax.config import parse_experiment
from flyjax.experiments import recovery_report, recovery_table
from flyjax.training import train_sweep
from flyjax.training.hparams import n_steps
from flyjax.utils.errors import UserError

MACHINE = {"hardware": "2 cores", "device": "cpu", "jax": "0", "load": 0.1, "date": "2026-01-01"}
BASE = {
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 60, "n_test_frames": 16},
    "model": {"width": 8, "units": "data"},
    "training": {"batch_size": 4, "data_augmentation_loop": 1, "n_seeds": 2},
}


def table(**row):
    return recovery_table.Table(name="recovery_x", title="X", base=BASE, rows=(recovery_table.Row(name="one", **row),))


def test_a_row_differs_from_the_base_by_what_it_sets_and_by_nothing_else():
    one = table(set={"training.noise_model_level": 3.0})
    base, changed = one.experiment(recovery_table.Row(name="base")), one.experiment(one.rows[0])
    assert changed.training.noise_model_level == 3.0  # the protocol's range ends at 0.2: rows are no proposals
    assert changed.training.model_copy(update={"noise_model_level": base.training.noise_model_level}) == base.training
    assert (changed.simulation, changed.model) == (base.simulation, base.model)


@pytest.mark.parametrize("key, message", [
    ("training.batch_sise", "batch_size"), ("batch_size", "not section.key"), ("simulation.extent", "extent"),
    ("name.x", "There are simulation, model, training, search"), ("trainig.batch_size", "Did you mean 'training'"),
])  # fmt: skip
def test_a_bad_key_or_value_names_the_row(key, message):
    one = table(set={key: -1})
    with pytest.raises(UserError, match=message) as error:
        one.experiment(one.rows[0])
    assert "'one'" in str(error.value)


def test_identity_sees_what_is_trained_and_evaluated():
    one = table()
    same, other = one.experiment(one.rows[0]), one.experiment(one.rows[0], {"training.batch_size": 2})
    assert recovery_table.identity(same, one.rows[0]) == recovery_table.identity(
        one.experiment(one.rows[0]), recovery_table.Row(name="another name")
    )
    assert recovery_table.identity(same, one.rows[0]) != recovery_table.identity(other, one.rows[0])
    assert recovery_table.identity(same, one.rows[0]) != recovery_table.identity(
        same, recovery_table.Row(name="one", lesion=0.5)
    )


def test_a_row_added_after_a_kill_is_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    recovery_table.append(path, {"identity": "a"})
    path.write_text(path.read_text() + '{"identity": "b", "per_se')  # killed in the middle of a line
    recovery_table.append(path, {"identity": "c"})
    recovery_table.append(path, {"identity": "d"})
    assert [e["identity"] for e in recovery_table.read_journal(path)] == ["a", "c", "d"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: [x\n", "is not valid YAML"),
        ("- 1\n", "a table is a mapping with name, title"),
        ("name: n\ntitle: t\nbase: {}\nrows: [{name: a, sett: {}}]\n", "Did you mean 'set'"),
        ("name: n\ntitle: t\nbase: {modell: {}}\nrows: []\n", "Did you mean 'model'"),
        ("name: n\ntitle: t\nbase: {model: 3}\nrows: []\n", "base.model"),
        ("name: n\ntitle: t\nbase: {}\nrows: [{name: a}, {name: a}]\n", "two rows are called 'a'"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, message):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        recovery_table.load_table(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_rows_are_chosen_by_name_and_a_name_that_none_has_is_refused():
    tables = [
        recovery_table.Table(
            name=f"recovery_{t}", title="", base={}, rows=tuple(recovery_table.Row(name=f"{t}{n}") for n in (1, 2))
        )
        for t in "ab"
    ]
    assert [row.name for _, row in recovery_table.select_rows(tables, ())] == ["a1", "a2", "b1", "b2"]
    assert [(t.name, row.name) for t, row in recovery_table.select_rows(tables, ["2", "b"])] == [
        ("recovery_a", "a2"),
        ("recovery_b", "b1"),
        ("recovery_b", "b2"),
    ]
    with pytest.raises(UserError, match="Rows: a1; a2; b1; b2"):
        recovery_table.select_rows(tables, ["a1", "nonsense"])


def test_a_torn_line_is_dropped_and_a_broken_one_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    recovery_table.append(path, {"identity": "a", "n": 1})
    recovery_table.append(path, {"identity": "a", "n": 2})
    recovery_table.append(path, {"identity": "b", "n": 3})
    path.write_text(path.read_text() + '{"identity": "c", ')
    assert [(e["identity"], e["n"]) for e in recovery_table.read_journal(path)] == [("a", 2), ("b", 3)]
    path.write_text('{"identity"\n{"identity": "a"}\n')
    with pytest.raises(UserError, match="line 1"):
        recovery_table.read_journal(path)


def test_the_table_shows_mean_minimum_and_spread_and_what_was_not_run():
    one = recovery_table.Table(
        name="recovery_x",
        title="X",
        base=BASE,
        rows=(recovery_table.Row(name="one", published="W .9"), recovery_table.Row(name="two")),
    )
    seeds = [{"connectivity_R2": r, "connectivity_R2_refit": 0.9999} for r in (0.9, 0.5)]
    event = {"row": "one", "per_seed": seeds, "diverged": 0, "train_s": 3.0, "n_steps": 10, **MACHINE}
    text = recovery_report.render([(one, {"one": event})])
    assert "Not run: two." in text
    many = [recovery_table.Row(name=f"extent 8, noise {k}") for k in range(7)]
    text = recovery_report.render([(one.model_copy(update={"rows": (*one.rows, *many)}), {"one": event})])
    assert "Not run: 7 rows of extent 8; two." in text
    spread = 100 * np.std([0.9, 0.5], ddof=1) / 0.7
    assert f"| .700 (.500, {spread:.1f} %) |" in text and ".99990 (.99990, 0.0 %)" in text and "W .9" in text


def test_rows_of_other_days_and_commits_are_distinguished():
    one = recovery_table.Table(
        name="recovery_x",
        title="X",
        base=BASE,
        rows=tuple(recovery_table.Row(name=name) for name in ("old", "new", "newer")),
    )
    event = {"per_seed": [{"connectivity_R2": 0.5}], "diverged": 0, "train_s": 3.0, "n_steps": 10, **MACHINE}
    new = {
        **event,
        "date": "2026-02-02",
        "hardware": "an H100",
        "commit": "abc",
        "parameters_sha256": "0123456789abcdef",
    }
    same = recovery_report.render([(one, {"old": event})])
    assert "`experiments/recovery_x.yaml`; 2 cores, cpu, JAX 0, 2026-01-01, unknown commit." in same
    text = recovery_report.render([(one, {"old": event, "new": new, "newer": new})])
    assert "- 2 cores, cpu, JAX 0, 2026-01-01, unknown commit: old\n" in text
    same = "- an H100, cpu, JAX 0, 2026-02-02, commit abc, parameters from a file of SHA-256 0123456789abcdef…: "
    assert same + "new; newer\n" in text


def test_rows_of_the_journal_are_known_by_what_made_them(root):
    """What a finished row is known by must not change with the code: it would be trained again."""
    events = recovery_table.read_journal(root / "experiments" / "results" / "recovery.jsonl")
    assert len(events) >= 20
    for event in events:
        made = parse_experiment({**event["config"], "search": {"ranges": {}, "simulation_ranges": {}}})
        cut = 0.5 if "lesion_R2" in event["per_seed"][0] else 0.0
        assert recovery_table.identity(made, recovery_table.Row(name=event["row"], lesion=cut)) == event["identity"], (
            event["row"]
        )


def test_a_row_trained_for_real_fills_a_line_of_json(tmp_path):
    one = table(lesion=0.5)
    event = recovery_table.run_row(one, one.rows[0], one.experiment(one.rows[0]), tmp_path, MACHINE)
    back = json.loads(json.dumps(event, allow_nan=False))
    assert len(back["per_seed"]) == 2 and back["n_steps"] == 3 and back["diverged"] == 0
    for seed in back["per_seed"]:
        assert {"connectivity_R2", "connectivity_R2_refit", "connectivity_R2_ceiling", "test_R2"} <= set(seed)
    assert back["per_seed"][0]["final_loss"] != back["per_seed"][1]["final_loss"]
    assert recovery_report.summary(event).count("refit") == 3
    assert not (tmp_path / "checkpoints").exists()
    assert back["computed_on"]["held_out"]["split"] == "test"
    assert "parameters_sha256" not in event and event["train_s"] <= event["wall_s"]


def test_a_row_keeps_the_checksum_of_its_parameters_and_the_time_of_all_its_programs(tmp_path, golden, monkeypatch):
    source, intervals = golden / "flyvis_flow_0000_000.npz", []

    def sweep(*arguments, checkpoint_every, **options):
        out = train_sweep(*arguments, checkpoint_every=checkpoint_every, **options)
        intervals.append(checkpoint_every)
        # Two programs one after the other, most of both before an interruption.
        return [[dataclasses.replace(one, wall_s=wall) for one, wall in zip(out[0], (1000.0, 2000.0), strict=True)]]

    monkeypatch.setattr(recovery_table, "train_sweep", sweep)
    monkeypatch.setattr(
        recovery_table, "evaluate_node", lambda *arguments: ([{"test_R2": 0.5}] * 2, None)
    )  # evaluated for real above
    one = table(set={"simulation.parameters": str(source), "training.checkpoint_every": 123})
    event = recovery_table.run_row(
        one, one.rows[0], one.experiment(one.rows[0]), tmp_path, {**MACHINE, "commit": "abc"}
    )
    assert (
        event["parameters_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()[:16] and event["commit"] == "abc"
    )
    assert event["train_s"] == 3000.0 and intervals == [123]


def test_the_tables_are_always_drawn_whole(root, tmp_path, script):
    """Naming a table or a row chooses what is trained, not what is written: every table with a finished row."""
    journal, given = tmp_path / "r.jsonl", {"name": "own", "title": "My own", "base": BASE, "rows": [{"name": "one"}]}
    journal.write_bytes((root / "experiments" / "results" / "recovery.jsonl").read_bytes())
    (tmp_path / "own.yaml").write_text(json.dumps(given))
    own = recovery_table.load_table(tmp_path / "own.yaml")
    event = {"per_seed": [{"connectivity_R2": 0.5}] * 2, "diverged": 0, "train_s": 3.0, "n_steps": 10, **MACHINE}
    recovery_table.append(
        journal, {"identity": recovery_table.identity(own.experiment(own.rows[0]), own.rows[0]), **event}
    )
    chosen = [tmp_path / "own.yaml", root / "experiments" / "recovery_seeds.yaml", "--row", "one"]
    code, _, errors = script("recovery", *chosen, "--journal", journal)
    assert code == 0, errors
    text = (tmp_path / "r.md").read_text()
    own_tables = [recovery_table.load_table(path) for path in sorted((root / "experiments").glob("recovery_*.yaml"))]
    titles = [one.title for one in own_tables if one.name != "recovery_davis"]  # it has a journal of its own
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [*titles, "My own"]
    assert "| one | 2 |" in text and "Not run: one" not in text
    code, _, errors = script("recovery", tmp_path / "own.yaml", "--row", "nonsense", "--journal", journal)
    assert code == 2 and "Rows: one" in errors and len(errors.splitlines()) == 1


def test_networks_of_one_simulation_are_chosen_blind():
    def event(batch, seeds, extent=1):
        names = ("connectivity_R2", "test_R2", "one_step_R2", "final_loss")
        config = {"simulation": {"extent": extent}, "training": {"batch_size": batch, "noise_model_level": 0.05}}
        return {"config": config, "per_seed": [dict(zip(names, seed, strict=True)) for seed in seeds]}

    # The loss of four frames is twice as large: by the error of a frame the first row's second seed is the best.
    a = recovery_table.Row(name="a"), event(4, [(0.9, 0.5, 0.6, 8.0), (0.8, 0.9, 0.5, 3.0)])
    b = recovery_table.Row(name="b"), event(1, [(0.7, 0.6, 0.9, 2.0)])
    other = recovery_table.Row(name="c"), event(1, [(0.99, 0.99, 0.99, 0.1)], extent=2)
    assert recovery_report.blind_choices([a, b, other]) == [
        ["a and 1 more rows", "3", ".900", ".800 (rank 2)", ".700 (rank 3)", ".800 (rank 2)"]
    ]
    assert recovery_report.blind_choices([b, other]) == []


def test_the_davis_table_has_one_learner_and_the_published_steps(root):
    table = recovery_table.load_table(root / "experiments" / "recovery_davis.yaml")
    experiments = {row.name: table.experiment(row) for row in table.rows}
    assert len({recovery_table.identity(e, row) for row, e in zip(table.rows, experiments.values())}) == len(table.rows)
    for name, one in experiments.items():
        s, training = one.simulation, one.training
        assert s.video_pipeline == "flyvis_gnn" and not s.clamp_tau and s.test_visual_input_type == "DAVIS"
        if name.startswith("extent 8") and "published" in name:
            steps = {0.0: 96_000, 0.05: 112_000, 0.5: 128_000}[training.noise_model_level]
            assert n_steps(training, s.n_frames) == steps
        if "published" not in name and "ODE" not in name:
            varied = {"noise_model_level", "n_seeds", "data_augmentation_loop"}
            varied |= {"n_projections"} if "gradients alone" in name else set()
            ours = {k: v for k, v in training if k not in varied}
            assert ours == {k: v for k, v in experiments["extent 8, noise 0.05, plain, ours"].training if k in ours}
    conditions = {"null edges 400 %", "edges cut 50 %", "edges withheld 50 %", "measurement noise 0.20"}
    assert {f"extent {e}, {c}" for e in (8, 2) for c in conditions} <= {*experiments}


def test_outliers_are_counted_beside_the_r2_without_them():
    one = table()
    event = {"per_seed": [{"V_rest_R2_inliers": 0.9, "V_rest_R2_outliers": 0.25}, {"V_rest_R2_inliers": 0.8}]}
    _, columns, _ = next(t for t in recovery_report.TABLES if t[2] == "V_rest_R2_inliers")
    cell = dict(columns)["V_rest"](one.rows[0], event)
    assert cell.startswith(".850 (.800") and "25.0%" in cell
