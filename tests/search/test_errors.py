"""Errors in the middle of a run: one line where the user can act, the traceback otherwise; the run is resumable."""

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, Scripted, go

from flyjax.search.journal.journal import read_journal
from flyjax.search.run import render
from flyjax.utils.errors import UserError


def test_a_full_disk_anywhere_is_one_line(tmp_path, monkeypatch):
    exp, write = experiment(**SMALL), render.write
    expected = go(tmp_path / "expected", exp, Scripted()).state

    def full(run_dir, state):
        if len(state.nodes) > 3:
            raise OSError(28, "No space left on device", str(run_dir / "analysis.md"))
        write(run_dir, state)

    with monkeypatch.context() as patch:
        patch.setattr(render, "write", full)
        with pytest.raises(UserError, match="disk is full .*analysis.md") as caught:
            go(tmp_path / "run", exp, Scripted())
    assert "\n" not in str(caught.value)
    again = go(tmp_path / "run", exp, Scripted()).state
    assert {i: (n.parent, n.config, n.reward) for i, n in again.nodes.items()} == {
        i: (n.parent, n.config, n.reward) for i, n in expected.nodes.items()
    }


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "movie.npy"),
        BlockingIOError(11, "busy"),
        OSError("image file is truncated"),
    ],
)
def test_an_error_that_is_not_of_the_disk_keeps_its_traceback(tmp_path, error):
    def broken(plan):
        raise error

    with pytest.raises(type(error)) as caught:
        go(tmp_path, experiment(**SMALL), trainer=broken)
    assert caught.value is error
    assert read_journal(tmp_path)[-1]["reason"] == f"stopped by {type(error).__name__}: {error}"


UNFORESEEN = [RuntimeError("INTERNAL: sk-secret-0123456789\nallocating"), TimeoutError("no answer"), AssertionError()]


@pytest.mark.parametrize("error", UNFORESEEN)
def test_an_error_nobody_foresaw_pauses_the_run_and_is_shown(tmp_path, monkeypatch, error):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-0123456789")

    def failing(plan):
        if plan.number == 2:
            raise error
        return evaluate(plan)

    with pytest.raises(type(error)):
        go(tmp_path, experiment(**SMALL), trainer=failing)
    last = read_journal(tmp_path)[-1]
    assert (
        last["event"] == "run_paused"
        and last["reason"].startswith(f"stopped by {type(error).__name__}: ")
        and "\n" not in last["reason"]
    )
    assert b"sk-secret-0123456789" not in (tmp_path / "journal.jsonl").read_bytes()
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


def test_no_key_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-0123456789")

    def refusing(plan):
        raise PermissionError(13, "Permission denied", "at/sk-secret-0123456789")

    with pytest.raises(UserError, match="cannot use at/.redacted. .Permission denied"):
        go(tmp_path, experiment(**SMALL), trainer=refusing)
    assert b"sk-secret" not in (tmp_path / "journal.jsonl").read_bytes()
