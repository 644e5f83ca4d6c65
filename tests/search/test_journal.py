"""The journal: what is written is read back; a torn end is dropped; anything else is an error."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyjax.search.journal.journal import Journal, clean, fold, read_journal
from flyjax.utils.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def same(a, b):
    """Equal, where a number that is not finite has become None."""
    if isinstance(a, float):
        return b is None if not math.isfinite(a) else a == b
    if isinstance(a, dict):
        return isinstance(b, dict) and list(map(str, a)) == list(b) and all(same(v, b[str(k)]) for k, v in a.items())
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


@settings(max_examples=60, deadline=None)
@given(value=VALUES)
def test_what_is_appended_is_read_back_as_strict_json(tmp_path_factory, value):
    run = tmp_path_factory.mktemp("run")
    with Journal(run) as journal:
        journal.append("anything", value=value)
    line = (run / "journal.jsonl").read_text()
    assert line.count("\n") == 1 and line.endswith("\n")

    def refuse(token):
        raise AssertionError(token)

    assert same(value, json.loads(line, parse_constant=refuse)["value"])
    assert read_journal(run)[0]["event"] == "anything"


def test_arrays_are_numbers_and_strange_things_are_refused():
    import numpy as np

    assert clean({"a": np.float32(1.5), "b": np.array([1.0, np.nan]), "c": 10**400}) == {
        "a": 1.5,
        "b": [1.0, None],
        "c": None,
    }
    with pytest.raises(TypeError):
        clean(object())


@pytest.fixture
def written(tmp_path):
    with Journal(tmp_path, clock=lambda: 7.0) as journal:
        for k in range(3):
            journal.append("e", k=k, text="é\n" * 3)
    return tmp_path


def test_a_torn_last_line_is_dropped_at_every_byte_and_goes_with_the_next_append(written):
    path = written / "journal.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(written) as journal:
            assert [e["k"] for e in journal.events] == [0, 1]
            assert len(journal.warnings) == 1 and "line 3" in journal.warnings[0]
            if cut % 7 == 0:
                journal.append("e", k=9)
                assert [e["k"] for e in read_journal(written)] == [0, 1, 9]
    path.write_bytes(whole[:start])
    with Journal(written) as journal:
        assert len(journal.events) == 2 and not journal.warnings


@pytest.mark.parametrize(
    "damage", [b'{"schema": 1, "ev', b"\x00\xff\xfe", b"[1, 2]", b'{"schema":1,"event":"e","time":NaN}', b""]
)
def test_damage_in_the_middle_names_its_line(written, damage):
    path = written / "journal.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match="line 2 is damaged") as error:
        Journal(written)
    assert "\n" not in str(error.value)
    lines[1] = b'{"schema": 99, "event": "e", "time": 1}'
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match="schema 99"):
        Journal(written)
    # The lock is free again after a refusal.
    path.unlink()
    Journal(written).close()


def test_a_second_process_refuses_in_one_line(tmp_path):
    code = "import sys\nfrom flyjax.search.journal import Journal\ntry:\n Journal(sys.argv[1])\nexcept ValueError as e:\n print(e)"
    with Journal(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        with pytest.raises(UserError, match="in use"):
            Journal(tmp_path)
    assert "in use by another process" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    Journal(tmp_path).close()


def test_a_full_disk_is_one_line_and_loses_nothing(written, monkeypatch):
    journal = Journal(written)

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left"):
            journal.append("e", k=3)
    # What the failed write left behind goes with the next one.
    journal.append("e", k=4)
    journal.close()
    assert [e["k"] for e in read_journal(written)] == [0, 1, 2, 4]


def test_a_journal_shortened_or_removed_while_the_run_goes_is_written_again(written):
    path = written / "journal.jsonl"
    for k, harm in enumerate(
        (path.unlink, lambda: path.write_bytes(b""), lambda: path.write_bytes(path.read_bytes()[:50]))
    ):
        with Journal(written) as journal:
            before = list(journal.events)
            harm()
            journal.append("e", k=10 + k)
            assert "written again" in journal.warnings[0]
            journal.append("e", k=20 + k)
            assert len(journal.warnings) == 1
        assert read_journal(written)[: len(before)] == before and [e["k"] for e in read_journal(written)[-2:]] == [
            10 + k,
            20 + k,
        ]
        assert b"\0" not in path.read_bytes()


def test_another_writer_loses_nothing_and_is_told_apart(written):
    path = written / "journal.jsonl"
    with Journal(written) as journal:
        (written / ".lock").unlink()  # somebody helped himself
        with Journal(written) as other:
            other.append("theirs", k=3)
            with pytest.raises(UserError, match="written by another process") as error:
                journal.append("ours", k=3)
            assert "\n" not in str(error.value)
            other.append("theirs", k=4)
    assert [e["k"] for e in read_journal(written)] == [0, 1, 2, 3, 4]
    # Two that write in the same instant: both lines claim the same place.
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(True)[-1])
    with pytest.raises(UserError, match="line 6 says that it is line 5"):
        read_journal(written)


def test_a_line_lost_in_the_middle_is_noticed_and_old_journals_stay_readable(written):
    path = written / "journal.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(True)
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3] and all(
        "seq" not in e for e in read_journal(written)
    )
    for gone in (0, 1):
        path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
        with pytest.raises(UserError, match=f"line {gone + 1} says that it is line {gone + 2}: lines were lost"):
            read_journal(written)
    path.write_bytes(b"".join(line.replace(f'"seq": {k}, '.encode(), b"") for k, line in enumerate(lines, 1)))
    assert b"seq" not in path.read_bytes()
    with Journal(written) as journal:
        journal.append("e", k=3)
    assert [e["k"] for e in read_journal(written)] == [0, 1, 2, 3] and b'"seq": 4' in path.read_bytes()


def test_a_missing_or_inconsistent_journal_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no journal.jsonl"):
        read_journal(tmp_path)
    with pytest.raises(UserError, match="never began"):
        fold([{"schema": 1, "event": "node_finished", "time": 1.0, "node": 4, "metrics": {}}])
    with pytest.raises(UserError, match="iteration_started"):
        fold([{"schema": 1, "event": "iteration_started", "time": 1.0}])


def test_wall_time_leaves_out_the_pause():
    start = {"event": "run_started", "time": 100.0, "experiment": {}, "protocol": ""}
    events = [
        start,
        {"event": "x", "time": 110.0},
        {"event": "run_resumed", "time": 1000.0},
        {"event": "x", "time": 1005.0},
    ]
    assert fold(events).wall_s == 15.0
    assert fold([*events, {"event": "run_resumed", "time": 9000.0, "unseen_s": 100.0}]).wall_s == 115.0, (
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
    resumed = {"event": "run_resumed", "time": 500.0, "unseen_s": 30.0}
    done = {"event": "node_finished", "time": 520.0, "node": 1, "metrics": {}}
    assert fold([begun, resumed, done, {"event": "x", "time": 600.0}]).iterations[1].wall_s == 50.0


GARBLED = [
    {"event": "run_started", "experiment": {}, "protocol": 5},
    {"event": "protocol_edited", "block": 1, "by": "user", "reason": "", "protocol": 5, "diff": ""},
    {"event": "proposal", "iteration": 0, "observation": {"abc": "x"}},
    {"event": "proposal", "iteration": 0, "observation": ["x"]},
    {"event": "proposal", "iteration": 0, "usage": {"calls": []}, "notes": 7},
    {"event": "block_ended", "block": 1, "summary": "", "edit": {"reason": ""}, "measures": None},
    {"event": "block_ended", "block": 1, "summary": "", "edit": {"reason": 3}, "measures": {}},
    {"event": "iteration_started", "iteration": "x", "block": 1, "iter_in_block": 1, "simulation": {}, "nodes": []},
    {"event": "iteration_started", "iteration": 1, "block": 1, "iter_in_block": 1, "simulation": {}, "nodes": None},
    {"event": "run_paused", "usage": 3},
    {"event": "node_finished", "node": [], "metrics": {}},
]


@pytest.mark.parametrize("event", GARBLED)
def test_a_garbled_field_is_one_line(event):
    with pytest.raises(UserError, match="journal") as error:
        fold([{"time": 1.0, **event}])
    assert "\n" not in str(error.value) and "restore the file" in str(error.value)


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
    assert fold([started, more, resumed]).spent.usd == 1.0, "a later try tells the sum"
