"""The state as a fold over events: time, spending, nodes, and events that do not fit together."""

import pytest

from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.utils.errors import UserError


def test_a_missing_or_inconsistent_journal_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no journal.jsonl"):
        read_journal(tmp_path)
    for event in (
        {"event": "node_finished", "node": 4, "metrics": {}},
        {"event": "node_failed", "node": 4},
        {"event": "choice", "iteration": 1, "chosen": 4, "next_parents": []},
        {"event": "block_ended", "block": 4, "summary": "", "edit": {}},
    ):
        with pytest.raises(UserError, match=f"{event['event']}.* 4, which never began") as error:
            fold([{"time": 1.0, **event}])
        assert "\n" not in str(error.value)


def test_wall_time_leaves_out_the_pause():
    start = {"event": "run_started", "time": 100.0, "experiment": {}, "protocol": ""}
    events = [
        start,
        {"event": "x", "time": 110.0},
        {"event": "run_resumed", "time": 1000.0},
        {"event": "x", "time": 1005.0},
    ]
    assert fold(events).wall_s == 15.0
    assert fold([*events, {"event": "run_resumed", "time": 9000.0, "crashed_session_s": 100.0}]).wall_s == 115.0, (
        "a killed session's training"
    )


def test_a_clock_that_is_set_back_loses_no_work_and_an_edit_between_sessions_is_none():
    start = {"event": "run_started", "time": 5000.0, "experiment": {}, "protocol": ""}
    events = [start, *({"event": "x", "time": t} for t in (5010.0, 1000.0, 1020.0))]
    assert fold(events).wall_s == 30.0
    undone = {
        "event": "protocol_edited",
        "time": 90_000.0,
        "block": 0,
        "by": "user",
        "reverts": 0,
        "reason": "",
        "protocol": "",
        "diff": "",
    }
    state = fold([*events, undone])
    assert state.wall_s == 30.0 and len(state.edits) == 1
    assert (
        fold([*events, undone, {"event": "run_resumed", "time": 99_000.0}, {"event": "x", "time": 99_001.0}]).wall_s
        == 31.0
    )


def test_an_iteration_knows_how_long_its_training_took():
    node = {"node": 1, "parent": "root", "changes": {}, "config": {}, "strategy": "root", "seeds": [1]}
    begun = {
        "event": "iteration_started",
        "time": 10.0,
        "iteration": 1,
        "block": 1,
        "iter_in_block": 1,
        "simulation": {},
        "nodes": [node],
    }
    resumed = {"event": "run_resumed", "time": 500.0, "crashed_session_s": 30.0}
    done = {"event": "node_finished", "time": 520.0, "node": 1, "metrics": {}}
    assert fold([begun, resumed, done, {"event": "x", "time": 600.0}]).iterations[1].wall_s == 50.0


def test_spending_is_summed_and_an_unknown_price_is_not_zero():
    events = [
        {
            "event": "proposal_rejected",
            "time": 1.0,
            "usage": {"calls": 1, "input_tokens": 10, "output_tokens": 2, "usd": 0.5},
        },
        {"event": "run_paused", "time": 1.0, "usage": {"usd": None, "input_tokens": 5}},
        {"event": "run_paused", "time": 1.0, "usage": {}},
    ]
    spent = fold(events).spent
    assert (spent.calls, spent.input_tokens, spent.usd, spent.unpriced_calls) == (2, 15, 0.5, 1)


def test_a_call_that_a_kill_cut_off_counts_at_what_it_may_have_cost():
    started = {"event": "call_started", "time": 2.0, "usage": {"calls": 1, "output_tokens": 9, "usd": 0.5}}
    answered = {"event": "proposal_rejected", "time": 3.0, "usage": {"calls": 1, "output_tokens": 2, "usd": 0.1}}
    resumed = {"event": "run_resumed", "time": 9.0}
    paused = {"event": "run_paused", "time": 3.0, "usage": {}}
    interrupted = {"event": "run_paused", "time": 3.0, "usage": None}
    assert fold([started]).in_flight["usd"] == 0.5 and fold([started]).spent.calls == 0
    assert fold([started, answered, resumed]).spent.usd == 0.1, "the answer brought the bill"
    assert fold([started, paused, resumed]).spent.calls == 0, "it never reached the service"
    assert fold([started, interrupted, resumed]).spent.usd == 0.5, (
        "stopped between the answer and the journal, without a bill"
    )
    cut = fold([started, resumed])
    assert cut.spent.usd == 0.5 and cut.spent.output_tokens == 9 and cut.in_flight is None
    assert fold([started, resumed, resumed]).spent.calls == 1, "once"
    more = {"event": "call_started", "time": 2.5, "usage": {"calls": 2, "output_tokens": 18, "usd": 1.0}}
    assert fold([started, more, resumed]).spent.usd == 1.0, "a later attempt reports the sum"


def test_a_wait_is_never_more_than_the_time_that_went_by():
    start = {"event": "run_started", "time": 100.0, "experiment": {}, "protocol": ""}
    for waited, worked in ((4.0, 6.0), (99.0, 0.0), (-5.0, 10.0)):
        assert fold([start, {"event": "run_paused", "time": 110.0, "waited_s": waited}]).wall_s == worked
