"""What a run keeps, may change and has left when it is taken up again: pure functions of its journal."""

import pytest
from support.search_contexts import events, experiment

from flyjax.config import parse_experiment
from flyjax.search.iteration import next_nodes
from flyjax.search.journal.state import State, fold
from flyjax.search.run.resume import changeable, taken_up
from flyjax.search.run.status import left, left_text, seconds_left, spent_text


def dumped(**search):
    return experiment(**search).model_dump(mode="json")


def test_what_a_call_does_not_name_is_the_runs_own():
    prices = {"input": 1.0, "output": 2.0, "cache_write": 3.0, "cache_read": 4.0}
    was = dumped(
        max_usd=5,
        max_wall_s=60,
        target=0.9,
        patience=3,
        transcript="t.jsonl",
        n_blocks=5,
        max_disk_gb=2,
        llm={"effort": "low", "prices": prices},
    )
    plain = parse_experiment({"name": "played", "search": {"n_blocks": 4}})
    now, changed, _ = taken_up(plain, State(was, config_overrides={}), {}, [])
    assert changed == [] and changeable(now.model_dump(mode="json")) == changeable(was)
    assert now.search.ranges == plain.search.ranges and now.simulation == plain.simulation, "the rest is as called"
    given = ["search.max_usd=null", "search.max_wall_s=90.5", "search.llm.prices=null"]
    told = ["search.max_usd: 5 -> none", "search.max_wall_s: 60 -> 90.5", f"search.llm.prices: {prices} -> none"]
    named = {"max_usd": None, "max_wall_s": 90.5, "llm": {"prices": None}}
    for said, settings in (({}, given), (changeable({"search": named}), [])):  # by --set, by a file
        now, changed, heard = taken_up(
            parse_experiment({"search": named}), State(was, config_overrides={}), said, settings
        )
        assert (now.search.max_usd, now.search.max_wall_s, now.search.llm.prices, now.search.llm.effort) == (
            None,
            90.5,
            None,
            "low",
        )
        assert changed == told and heard == said


def test_a_run_of_an_older_version_keeps_what_it_knew():
    was = dumped(max_calls=4)
    del was["search"]["patience"], was["search"]["llm"]["share"]
    # It does not tell what its file said: --set alone names anything, and from here on it is known.
    now, changed, heard = taken_up(
        parse_experiment({"search": {"patience": 2, "max_calls": 9}}),
        State(was),
        {"search.max_calls": 9},
        ["search.patience=2"],
    )
    assert (now.search.max_calls, now.search.patience, now.search.llm.share, changed) == (4, 2, 0.5, [])
    assert heard == {"search.max_calls": 9}


def test_the_end_tells_the_blocks_that_were_done():
    exp = experiment(n_blocks=1)  # lowered in the second block
    assert next_nodes(exp, fold(events(experiment(), 6)), 0.0) == (0, "2 blocks done")


def test_what_is_left_is_counted_as_the_loop_counts():
    exp = experiment()  # 2 blocks x 3 iterations x 3 candidates
    done = fold(events(exp, 2))
    assert left(exp, fold([])) == (18, 6) and left(exp, done) == (12, 4)
    training = fold(events(exp, 2)[:-1])  # a node of the second iteration is not done
    assert left(exp, training) == (13, 5)
    assert left(experiment(max_nodes=10), done) == (4, 2) and left(experiment(max_nodes=6), done) == (0, 0)
    assert left(experiment(target=0.5), done) == (0, 0) and left_text(experiment(target=0.5), done) == ""
    assert left(experiment(n_blocks=1), fold(events(exp, 4))) == (6, 2), "a block that has begun goes to its end"
    assert left(exp, fold(events(exp, 6))) == (0, 0)
    # events() are a second apart: two iterations are done, four are left.
    assert seconds_left(exp, done) == pytest.approx(4 * done.wall_s / 2)
    assert seconds_left(experiment(max_wall_s=done.wall_s + 6), done) == pytest.approx(6)
    assert seconds_left(exp, fold([])) is None
    assert left_text(exp, done).startswith("at most 12 nodes in 4 iterations left, about ")


def test_money_is_told_where_a_model_was_asked():
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
