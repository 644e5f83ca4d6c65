"""The journal's file: what is written is read back; a line that was cut off is dropped; other damage is an error."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_landscape import experiment
from support.search_runs import go

from flyjax.search.journal.journal import EVENTS, Journal, clean, read_journal
from flyjax.utils.errors import UserError
from flyjax.utils.event_lines import OLD_NAMES

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


def test_a_last_line_cut_off_at_any_byte_is_dropped_and_goes_with_the_next_append(written):
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
    code = """
import sys
from flyjax.search.journal.journal import Journal
try:
    Journal(sys.argv[1])
except ValueError as error:
    print(error)
"""
    with Journal(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        with pytest.raises(UserError, match="in use"):
            Journal(tmp_path)
    assert "in use" in done.stdout and str(tmp_path) in done.stdout and done.stdout.count("\n") == 1, done.stderr
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


def test_another_writer_is_noticed_and_loses_nothing(written):
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
    {"event": "choice", "iteration": 1, "chosen": "2", "next_parents": []},
    {"event": "run_paused", "waited_s": "x"},
    {"event": "anything", "time": "now"},
    {"event": "anything", "time": 1e300},
    {"event": "anything", "time": -1.0},
    {"event": "run_started", "experiment": {"search": [1]}, "protocol": ""},
    {"event": "run_resumed", "experiment": {"simulation": None}},
    {"event": "iteration_started", "iteration": 1, "block": 1, "iter_in_block": 1, "simulation": {}, "nodes": []},
    {"event": "node_finished", "node": 1, "metrics": {"reasons": 5}},
    {"event": "node_finished", "node": 1, "per_seed": [{"reasons": []}]},
]


def write_lines(run_dir, *events):
    lines = [json.dumps({"schema": 1, "time": 1.0, **event}) + "\n" for event in events]
    (run_dir / "journal.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("event", GARBLED)
def test_a_garbled_field_names_its_event_and_the_remedy(tmp_path, event):
    write_lines(tmp_path, event)
    with pytest.raises(UserError, match=f"damaged.*{event['event']}.*restore the file") as error:
        read_journal(tmp_path)
    assert "\n" not in str(error.value)


def test_fields_of_other_versions_are_kept_and_renamed_fields_have_their_new_names(tmp_path):
    first = {"event": "run_started", "experiment": {}, "protocol": "", "said": {"a": 1}, "of_tomorrow": [2]}
    resumed = {"event": "run_resumed", "unseen_s": 5.0}
    write_lines(tmp_path, first, resumed, {"event": "of_tomorrow", "iteration": "x"})
    started, again, unknown = read_journal(tmp_path)
    assert started["config_overrides"] == {"a": 1} and started["of_tomorrow"] == [2] and "said" not in started
    assert again["crashed_session_s"] == 5.0 and unknown["iteration"] == "x"
    with Journal(tmp_path) as journal:
        journal.append("run_paused", usage={})
        (tmp_path / "journal.jsonl").unlink()  # what is written again has today's names
        journal.append("run_paused", usage={})
    assert all(set(OLD_NAMES).isdisjoint(e) for e in read_journal(tmp_path))
    assert "said" not in (tmp_path / "journal.jsonl").read_text()


def test_every_kind_of_event_of_a_run_is_described(tmp_path):
    """What the loop writes passes its own description, and is described: no event is accepted unread."""
    go(tmp_path, experiment(n_candidates=1, n_iter_block=2, n_blocks=1))
    events = read_journal(tmp_path)
    assert {e["event"] for e in events} <= set(EVENTS) and len(events) > 5
