"""A run that goes on: what it keeps, what may change, and what remains; pure functions of its journal."""

import pytest
from support.search_contexts import events, experiment

from flyjax.search.iteration import next_nodes
from flyjax.search.journal.state import State, fold
from flyjax.search.run.opening import changeable, changed_settings, resume_experiment
from flyjax.search.run.status import remaining, remaining_seconds, remaining_text, spent_text
from flyjax.utils.errors import UserError

PRICES = {"input": 1.0, "output": 2.0, "cache_write": 3.0, "cache_read": 4.0}


def dumped(**search):
    return experiment(**search).model_dump(mode="json")


def resumed(search, run, config=None, settings=()):
    """The settings that a run goes on with, what changes of them, and what its config files have said."""
    now, overrides = resume_experiment(experiment(**search), run, config or {}, settings)
    return now, changed_settings(run, now, "runs/x"), overrides


def test_what_a_call_does_not_name_is_the_runs_own():
    limits = {"max_usd": 5, "max_wall_s": 60, "target": 0.9, "patience": 3, "n_blocks": 5, "max_disk_gb": 2}
    was = dumped(**limits, transcript="t.jsonl", llm={"effort": "low", "prices": PRICES})
    now, changed, overrides = resumed({"n_blocks": 4}, State(was, config_overrides={}))
    assert changed == {} and changeable(now.model_dump(mode="json")) == changeable(was) and overrides == {}


@pytest.mark.parametrize("named_by", ["setting", "file"])
def test_what_a_call_names_changes_and_null_drops_a_limit(named_by):
    was = State(dumped(max_usd=5, max_wall_s=60, llm={"effort": "low", "prices": PRICES}), config_overrides={})
    named = {"max_usd": None, "max_wall_s": 90.5, "llm": {"prices": None}}
    settings = ["search.max_usd=null", "search.max_wall_s=90.5", "search.llm.prices=null"]
    config = changeable({"search": named}) if named_by == "file" else {}
    now, changed, overrides = resumed(named, was, config, settings if named_by == "setting" else [])
    assert (now.search.max_usd, now.search.max_wall_s, now.search.llm.prices) == (None, 90.5, None)
    assert now.search.llm.effort == "low", "the rest of the section is the run's own"
    assert changed == {
        "search.max_usd": (5, None), "search.max_wall_s": (60, 90.5), "search.llm.prices": (PRICES, None),
    }  # fmt: skip
    assert overrides == config


def test_a_file_names_a_setting_only_where_it_says_something_new():
    """--set has replaced the file's max_usd: the file as it was does not bring it back, the changed file does."""
    run = State(dumped(max_usd=0.5), config_overrides={"search.max_usd": 2})
    assert resumed({"max_usd": 2}, run, {"search.max_usd": 2})[0].search.max_usd == 0.5
    now, changed, overrides = resumed({"max_usd": 3}, run, {"search.max_usd": 3})
    assert now.search.max_usd == 3 and changed == {"search.max_usd": (0.5, 3)} and overrides == {"search.max_usd": 3}
    # The run's own config.yaml repeats its values: what the other file said stays known.
    assert resumed({"max_usd": 0.5}, run, {"search.max_usd": 0.5})[2] == {"search.max_usd": 2}


def test_a_run_of_an_earlier_version_has_defaults_for_what_it_does_not_know():
    was = dumped(max_calls=4)
    del was["search"]["patience"], was["search"]["llm"]["share"]
    # Its journal does not hold what its file said: only --set names a setting, and from here on it is known.
    config = {"search.max_calls": 9}
    now, changed, overrides = resumed({"patience": 2, "max_calls": 9}, State(was), config, ["search.patience=2"])
    assert (now.search.max_calls, now.search.patience, now.search.llm.share) == (4, 2, 0.5)
    assert changed == {"search.patience": (None, 2)} and overrides == config


def test_a_setting_that_changes_results_is_refused():
    with pytest.raises(UserError, match=r"search.ucb_c was 1.414, is 2.0; restore it, or choose another --run"):
        resumed({"ucb_c": 2.0}, State(dumped()))


def test_the_end_names_the_blocks_that_were_done():
    exp = experiment(n_blocks=1)  # lowered in the second block
    assert next_nodes(exp, fold(events(experiment(), 6)), 0.0) == (0, "2 blocks done")


def test_what_remains_is_counted_as_the_loop_counts():
    exp = experiment()  # 2 blocks x 3 iterations x 3 candidates
    done = fold(events(exp, 2))
    assert remaining(exp, fold([])) == (18, 6) and remaining(exp, done) == (12, 4)
    training = fold(events(exp, 2)[:-1])  # a node of the second iteration is not done
    assert remaining(exp, training) == (13, 5)
    assert remaining(experiment(max_nodes=10), done) == (4, 2) and remaining(experiment(max_nodes=6), done) == (0, 0)
    assert remaining(experiment(target=0.5), done) == (0, 0) and remaining_text(experiment(target=0.5), done) == ""
    assert remaining(experiment(n_blocks=1), fold(events(exp, 4))) == (6, 2), "a block that has begun goes to its end"
    assert remaining(exp, fold(events(exp, 6))) == (0, 0)
    # events() are a second apart: two iterations are done, four are left.
    assert remaining_seconds(exp, done) == pytest.approx(4 * done.wall_s / 2)
    assert remaining_seconds(experiment(max_wall_s=done.wall_s + 6), done) == pytest.approx(6)
    assert remaining_seconds(exp, fold([])) is None
    assert remaining_text(exp, done).startswith("at most 12 nodes in 4 iterations left, about ")


def test_costs_are_shown_where_a_model_was_asked():
    exp = experiment(max_nodes=20, max_usd=2, max_tokens=1000, max_wall_s=3600)
    done = events(exp, 2)

    def after(*usages):
        paid = [
            {"schema": 1, "time": done[-1]["time"], "event": "run_paused", "reason": "x", "usage": u} for u in usages
        ]
        return spent_text(exp, fold([*done, *paid]))

    known, unknown = (
        {"calls": 1, "input_tokens": 500, "output_tokens": 100, "usd": 0.5},
        {"calls": 2, "input_tokens": 10, "usd": "not reported"},
    )
    assert after() == "6 of 20 nodes, 9 s of 60 min worked"
    assert after(known) == "6 of 20 nodes, 1 call, 600 of 1,000 tokens, $0.50 of $2 paid, 9 s of 60 min worked"
    assert ", 2 calls, 10 of 1,000 tokens, cost not reported, " in after(unknown)
    assert ", 3 calls, 610 of 1,000 tokens, $0.50 of $2 paid (of 2 calls not reported), " in after(known, unknown)
    assert spent_text(experiment(), fold(done)) == "6 nodes, 9 s worked"
