"""Comparing proposers: equal budgets, pairs, regret by hand, and a real training that is kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from support.search_landscape import ROOT, TEMPLATE
from support.torch_zip import flyvis_checkpoint

from flyjax.config import PROTOCOL_RANGES, load_experiment
from flyjax.config.ranges import unit
from flyjax.experiments import proposer_benchmark
from flyjax.experiments.sweep import sobol_settings
from flyjax.report.proposers import (
    STYLES,
    add_regret,
    group_rows,
    holm_correction,
    paired_differences,
    proposer_table,
    regret_figure,
    summarise,
    wilcoxon_p,
    write_comparison,
)
from flyjax.search.iteration import root_config
from flyjax.search.proposals.types import Paused
from flyjax.search.proposers import NAMES
from flyjax.search.proposers.rules import RulesProposer
from flyjax.search.synthetic import REAL, make_landscape
from flyjax.utils.errors import UserError
from flyjax.utils.format import csv_table


def row(landscape, seed, proposer, root, *curve):
    return {
        "landscape": landscape,
        "seed": seed,
        "proposer": proposer,
        "nodes": 8,
        "wall_s": 1.0,
        "root": root,
        "curve": list(curve),
    }


def test_regret_is_zero_at_the_best_and_one_at_the_root():
    rows = [row("bowl", 0, "rules", 0.2, 0.2, 0.6, 1.0), row("bowl", 0, "random", 0.2, 0.2, 0.2, 0.6)]
    assert [r["regret"] for r in add_regret(rows)] == [pytest.approx([1, 0.5, 0]), pytest.approx([1, 1, 0.5])]
    # Of real trainings the best is what anybody found; a seed that somebody lacks is left out.
    real = [
        row(REAL, 0, "rules", 0.2, 0.4, 0.7),
        row(REAL, 0, "random", 0.2, 0.2, 0.45),
        row(REAL, 1, "rules", 0.1, 0.9),
    ]
    assert [r["regret"] for r in add_regret(real)] == [pytest.approx([0.6, 0.0]), pytest.approx([1.0, 0.5])]
    lines = {line["proposer"]: line for line in summarise(add_regret(rows))}
    assert lines["rules"]["mean_regret"] == pytest.approx(0.5) and lines["random"]["final_regret"] == pytest.approx(0.5)


def test_luck_is_distinguished_from_a_reliable_configuration():
    """One search has the best single training, the other the configuration that gives it again."""
    rows = []
    for seed in range(10):
        for who, found, held in (("random", 0.9, (0.1, 0.9)), ("rules", 0.8, (0.8, 0.7 + 0.01 * seed))):
            rows.append(row(REAL, seed, who, 0.1, found) | {"fresh": list(held), "root_fresh": [0.1, 0.3]})
    lucky, steady = summarise(add_regret(rows))
    assert (lucky["proposer"], steady["proposer"]) == ("random", "rules")
    assert lucky["fresh"] == pytest.approx(0.5) and steady["fresh"] == pytest.approx(0.7725)
    p = wilcoxon_p(paired_differences(add_regret(rows), "rules", "random", "fresh"))
    assert steady["p_fresh_random"] == lucky["p_fresh_rules"] == pytest.approx(p) and p < 0.01
    assert steady["p_fresh_rules"] is None and "| 0.500 ± 0.000 |" in proposer_table(add_regret(rows))
    # A table of all landscapes has the column where every search was evaluated so.
    assert "fresh" not in proposer_table(add_regret([*rows, row("bowl", 0, "rules", 0.1, 0.5)]))


def test_pairs_are_tested_not_means():
    """Landscapes differ far more than proposers: only the paired differences show it."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(12):
        base = rng.uniform(0.3, 0.9)
        rows += [
            row("hills", seed, "rules", 0.0, base + 0.02 + 0.005 * rng.random()),
            row("hills", seed, "random", 0.0, base),
        ]
    lines = summarise(add_regret(rows))
    assert [line["proposer"] for line in lines] == ["rules", "random"]
    assert lines[0]["p_random"] < 0.001 and lines[1]["p_random"] is None
    assert wilcoxon_p(np.zeros(5)) == 1.0
    assert holm_correction({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert "| rules | 12 |" in proposer_table(add_regret(rows)) and "< 0.001" in proposer_table(add_regret(rows))


@pytest.mark.parametrize("others", [[], ["cliff"]])
def test_the_legend_names_who_plays_on_any_panel(tmp_path, monkeypatch, others):
    drawn = []
    monkeypatch.setattr("flyjax.report.proposers.save_png", lambda fig, path: drawn.append(fig))
    rows = [row(name, 0, who, 0.1, 0.5, 0.6) for name in ["bowl", "hills", *others] for who in ("rules", "tpe")]
    rows += [row(REAL, 0, who, 0.1, 0.5, 0.7) for who in ("rules", "llm")]
    regret_figure(tmp_path / "f.png", group_rows(add_regret(rows)))
    (legend,) = drawn[0].legends
    assert sorted(t.get_text() for t in legend.get_texts()) == ["llm", "rules", "tpe"]
    assert "error" in legend.get_title().get_text(), "what the band is"
    assert len({str(style) for _, style in STYLES.values()}) == len(STYLES), "also in grey"
    assert set(STYLES) == set(NAMES)
    FigureCanvasAgg(drawn[0]).draw()
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_window_extent()) for ax in drawn[0].axes)


def test_a_pair_is_one_hypothesis_and_nobody_above_the_root_is_no_regret():
    rng = np.random.default_rng(1)
    rows = [
        row("hills", s, who, 0.0, 0.5 + 0.1 * rng.random() + (who == "rules") * 0.02)
        for s in range(8)
        for who in ("rules", "random")
    ]
    lines = {line["proposer"]: line for line in summarise(add_regret(rows))}
    raw = wilcoxon_p(paired_differences(add_regret(rows), "rules", "random", "mean_regret"))
    assert lines["rules"]["p_random"] == lines["random"]["p_rules"] == pytest.approx(raw)
    assert add_regret([row(REAL, 0, "rules", 0.5, 0.5), row(REAL, 0, "tpe", 0.5, 0.5)])[0]["regret"] == [0.0]
    # A proposer that plays on one landscape alone is compared there.
    some = [row(name, s, "rules", 0.1, 0.5) for name in ("bowl", "hills") for s in range(2)] + [
        row("bowl", s, "llm", 0.1, 0.6) for s in range(2)
    ]
    assert len(paired_differences(add_regret(some), "llm", "rules", "mean_regret")) == 2 and summarise(add_regret(some))


def test_what_was_paid_for_goes_on(tmp_path, monkeypatch):
    """A search of llm that pauses is taken up by the same call, not begun again."""
    exp, asked = proposer_benchmark.made_up_experiment(2, 3), []

    class Paying(RulesProposer):
        name = "llm"

        def step(self, context):
            asked.append(context.iter_in_block)
            if len(asked) == 3:
                raise Paused("the service is down")
            return super().step(context)

    monkeypatch.setattr(proposer_benchmark, "make_proposer", lambda name, e, run_dir: Paying(e))
    with pytest.raises(UserError, match="the service is down"):
        proposer_benchmark.compare([("bowl", 0)], ["llm"], lambda _: exp, tmp_path, TEMPLATE)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"key": "torn')
    rows = proposer_benchmark.compare([("bowl", 0)], ["llm"], lambda _: exp, tmp_path, TEMPLATE)
    assert len(rows) == 1 and asked == [0, 1, 2, 2, 3]


def test_equal_budgets_from_the_same_root_and_rows_are_kept(tmp_path):
    exp = proposer_benchmark.made_up_experiment(4, 3)
    said = []

    def go(proposers):
        return proposer_benchmark.compare(
            [("bowl", 0), ("cliff", 1)], proposers, lambda name: exp, tmp_path / "cache", TEMPLATE, log=said.append
        )

    assert go([]) == []  # makes the cache
    own = tmp_path / "cache" / "bowl_0_rules" / "own.txt"  # where a search of that name might go
    own.parent.mkdir(parents=True)
    own.write_text("not of a search")
    rows = go(["rules", "random", "tpe", "cmaes"])
    assert own.is_file()
    assert len(rows) == 8 and {r["nodes"] for r in rows} == {12} and {len(r["curve"]) for r in rows} == {3}
    root = make_landscape("bowl", 0, exp).value(root_config(exp))
    assert {r["root"] for r in rows if r["landscape"] == "bowl"} == {root}
    kept = (tmp_path / "cache" / "rows.jsonl").read_text()
    assert go(["rules", "random", "tpe", "cmaes"]) == rows
    assert (tmp_path / "cache" / "rows.jsonl").read_text() == kept and kept.count("\n") == 8, "nothing is run twice"
    path = write_comparison(tmp_path / "out", rows, "Here and now.")
    text = path.read_text()
    assert "## all made-up landscapes" in text and text.count("| rules | 1 |") == 2 and "Here and now." in text
    assert (tmp_path / "out" / "proposers.csv").read_text().count("\n") == 9
    assert (tmp_path / "out" / "proposers.png").stat().st_size < 120_000


def test_a_replayed_run_has_the_regret_of_the_run_it_replays(tmp_path):
    from flyjax.config import parse_experiment
    from flyjax.search.loop import run_loop
    from flyjax.search.proposers import make_proposer

    exp = proposer_benchmark.made_up_experiment(4, 3)
    landscape = make_landscape("bowl", 0, exp)
    data = exp.model_dump(mode="json")
    run_loop(exp, tmp_path / "played", landscape.evaluate, make_proposer("rules", exp), protocol_template=TEMPLATE)
    data["search"]["transcript"] = str(tmp_path / "played" / "journal.jsonl")
    exp = parse_experiment(data)
    rows = proposer_benchmark.compare(
        [("bowl", 0)], ["rules", "replay"], lambda name: exp, tmp_path / "cache", TEMPLATE
    )
    assert rows[0]["curve"] == rows[1]["curve"]


def test_recorded_answers_stand_in_for_a_key(tmp_path, monkeypatch):
    from flyjax.search.loop import run_loop
    from flyjax.search.proposers import make_proposer
    from flyjax.search.proposers.replay import write_transcript

    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    exp, landscape, folder = proposer_benchmark.made_up_experiment(4, 3), None, tmp_path / "transcripts"
    for seed in (0, 1):
        landscape = make_landscape("bowl", seed, exp)
        run_loop(
            exp, tmp_path / f"played{seed}", landscape.evaluate, make_proposer("tpe", exp), protocol_template=TEMPLATE
        )
        write_transcript(tmp_path / f"played{seed}", folder / f"bowl_{seed}_llm.jsonl")
    said = []
    cases = [("bowl", seed) for seed in (0, 1, 2)]
    rows = proposer_benchmark.compare(
        cases, ["rules", "llm"], lambda name: exp, tmp_path / "cache", TEMPLATE, log=said.append, transcripts=folder
    )
    played = [r for r in rows if r["proposer"] == "llm"]
    assert [r["seed"] for r in played] == [0, 1] and not any("fallbacks" in r for r in rows)
    assert any("bowl, seed 2, llm: left out, " in line for line in said)
    assert {r["seed"] for r in add_regret(rows)} == {0, 1}, "only seeds that all have are compared"
    # The answers belong to the row's key: others are played anew. Here they do not fit, and the row says so.
    short = proposer_benchmark.made_up_experiment(3, 3)
    kept = proposer_benchmark.compare(
        cases[:1], ["llm"], lambda name: short, tmp_path / "cache", TEMPLATE, log=said.append, transcripts=folder
    )
    assert kept[0]["fallbacks"] and "the rules answered where the transcript did not fit" in said[-1]


def test_real_trainings_are_kept_by_configuration_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(proposer_benchmark, "FRESH_SEEDS", (0, 1, 3))
    exp = load_experiment(
        ROOT / "experiments" / "proposers.yaml",
        [
            "simulation.extent=0",
            "simulation.n_frames=40",
            "model.width=4",
            "search.n_iter_block=1",
            "search.n_candidates=2",
        ],
    )
    real = proposer_benchmark.RealTrainings(exp, tmp_path / "trainings")
    cases, of = [(REAL, 0)], lambda name: exp
    rows = proposer_benchmark.compare(cases, ["rules"], of, tmp_path / "a", TEMPLATE, real)
    assert real.trained == 3 + 3 * (1 + (rows[0]["fresh"] != rows[0]["root_fresh"])), (
        "the root has two seeds; fresh ones evaluate it"
    )
    again = proposer_benchmark.RealTrainings(exp, tmp_path / "trainings", until=0.0)  # no time to train anything
    same = proposer_benchmark.compare(cases, ["rules"], of, tmp_path / "b", TEMPLATE, again)
    assert again.trained == 0 and same[0]["curve"] == rows[0]["curve"] and 0 <= rows[0]["root"] <= 1
    said = []
    stopped = proposer_benchmark.compare([(REAL, 1)], ["rules"], of, tmp_path / "b", TEMPLATE, again, said.append)
    assert stopped == [] and "out of time" in said[0]
    assert rows[0]["fresh"] == same[0]["fresh"] and len(rows[0]["fresh"]) == len(rows[0]["root_fresh"]) == 3
    monkeypatch.setattr(proposer_benchmark, "FRESH_SEEDS", (3,))
    alone = proposer_benchmark.RealTrainings(exp, tmp_path / "alone").again(exp.training.model_dump(mode="json"))
    assert alone == pytest.approx([rows[0]["root_fresh"][2]], abs=1e-4)
    text = write_comparison(tmp_path / "out", rows, "").read_text()
    assert "on fresh seeds" in text and f"The root gives {np.mean(rows[0]['root_fresh']):.3f}" in text
    kept = [json.loads(p.read_text()) for p in (tmp_path / "trainings").glob("*.json")]
    assert len(kept) == real.trained and all(set(k) == {"connectivity_R2", "reasons"} for k in kept)


def test_trainings_on_another_circuit_are_not_taken_from_the_folder(tmp_path, monkeypatch):
    """The same settings name a file of parameters, whose content has changed."""

    def diverged(learner, trainings, seeds, recordings):
        return [[SimpleNamespace(seed=seed, diverged_at=1) for seed in own] for own in seeds]

    monkeypatch.setattr(proposer_benchmark, "train_sweep", diverged)
    monkeypatch.setattr(proposer_benchmark, "Recordings", lambda simulation: SimpleNamespace(train=lambda level: None))
    file, changes = tmp_path / "model", ["simulation.extent=0", f"simulation.parameters={tmp_path / 'model'}"]
    trained = []
    first, other = (flyvis_checkpoint(edges_syn_strength=np.full(604, strength)) for strength in (2e-3, 3e-3))
    for content in (first, first, other):
        file.write_bytes(content)
        exp = load_experiment(ROOT / "experiments" / "proposers.yaml", changes)
        real = proposer_benchmark.RealTrainings(exp, tmp_path / "trainings")
        real.again(exp.training.model_dump(mode="json"))
        trained.append(real.trained)
    assert trained == [10, 0, 10]


@pytest.mark.parametrize(
    "options, needed",
    [
        (["--landscape", "bowls"], "no landscape 'bowls'; there are: bowl,"),
        (["--proposer", "llm"], "cannot run llm (no ANTHROPIC_API_KEY)"),
        (["--transcripts", "."], "LANDSCAPE_SEED_llm.jsonl"),
    ],
)
def test_the_command_refuses_in_one_line(script, options, needed):
    code, _, errors = script("compare_proposers", *options)
    assert code == 2 and needed in errors and "Traceback" not in errors


def test_a_second_comparison_on_one_cache_is_refused(tmp_path):
    from filelock import FileLock

    from flyjax.experiments.proposer_benchmark import compare
    from flyjax.utils.errors import UserError

    with FileLock(str(tmp_path / ".lock")):
        with pytest.raises(UserError, match=tmp_path.name):
            compare([], [], lambda name: None, tmp_path, tmp_path / "protocol.md")
    assert compare([], [], lambda name: None, tmp_path, tmp_path / "protocol.md") == []


def study_table(path, condition=(("learner", "published"), ("ground_truth", "sampled"), ("stimulus", "DAVIS")), n=32):
    """A made-up table of trainings over the protocol's ranges: better with larger rates, the seeds nearly equal."""
    lines = []
    for settings in sobol_settings(PROTOCOL_RANGES, n, 0):
        value = unit(PROTOCOL_RANGES["learning_rate_start"], settings["learning_rate_start"])
        for seed in range(2):
            metrics = dict.fromkeys(("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2"), 0.97 * value + 0.01 * seed)
            lines.append({**dict(condition), **settings, "seed": seed, **metrics, "reason": ""})
    path.write_text(csv_table(list(lines[0]), lines))
    return path


def test_searches_on_the_study_have_regret_fresh_seeds_and_the_quality_of_their_map(tmp_path):
    table = study_table(tmp_path / "trainings.csv")
    (study,) = [proposer_benchmark.study_landscapes(table, tuning=False)]
    with pytest.raises(UserError, match="study-tuning"):
        proposer_benchmark.study_landscapes(table, tuning=True)
    exp = proposer_benchmark.made_up_experiment(4, 4)
    (name,) = study
    rows = proposer_benchmark.compare(
        [(name, 0), (name, 1)], ["rules", "random"], lambda _: exp, tmp_path / "cache", TEMPLATE, study=study
    )
    benchmark = study[name].benchmark
    for r in rows:
        assert r["root"] == benchmark.expected(root_config(exp))["connectivity_R2"]
        assert np.mean(r["fresh"]) == pytest.approx(r["curve"][-1], abs=0.05) and len(r["fresh"]) == 10
        assert 0 < r["brier"] < 2 and r["log_loss"] > 0
    best = max(benchmark.best, *(max(r["curve"]) for r in rows))
    assert [r["regret"] for r in add_regret(rows)] == [pytest.approx([best - q for q in r["curve"]]) for r in rows]
    line = next(line for line in summarise(add_regret(rows)) if line["proposer"] == "rules")
    assert line["log_loss"] == pytest.approx(np.mean([r["log_loss"] for r in rows if r["proposer"] == "rules"]))
    assert {"p_random", "p_fresh_random", "p_log_loss_random", "p_brier_random"} <= line.keys()
    text = write_comparison(tmp_path / "out", rows, "").read_text()
    assert "log loss" in text and "Brier" in text


def test_the_scores_of_a_map_are_those_of_its_probabilities():
    truth = np.eye(3)[[0, 2]]
    found = proposer_benchmark.class_scores(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), truth)
    assert found["log_loss"] == pytest.approx(-(np.log(0.5) + np.log(0.6)) / 2)
    assert found["brier"] == pytest.approx((0.25 + 2 * 0.0625 + 2 * 0.04 + 0.16) / 2)
