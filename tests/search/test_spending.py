"""What proposers cost, whatever interrupts the call."""

from dataclasses import replace

import pytest
from support.search_landscape import experiment
from support.search_runs import SMALL, Killed, Scripted, facts, go, killed_after

from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.journal.state import fold
from flyjax.search.llm.budget import check_budget
from flyjax.search.proposals.types import Paused
from flyjax.utils.errors import UserError


def test_a_pause_is_journaled_with_what_it_cost_and_the_run_goes_on(uninterrupted, tmp_path):
    proposer = Scripted(None, None, Paused("the service is down: wait", {"usd": 0.1}))
    with pytest.raises(UserError, match="the service is down"):
        go(tmp_path, experiment(**SMALL), proposer)
    paused = read_journal(tmp_path)[-1]
    assert paused["event"] == "run_paused" and paused["reason"] == "the service is down: wait"
    state = go(tmp_path, experiment(**SMALL)).state
    assert state.spent.usd == pytest.approx(0.1)
    assert facts(tmp_path)[0] == facts(uninterrupted)[0]


class Limited(Scripted):
    """Asks only while the budgets allow it, as a language model's client does."""

    def step(self, context):
        check_budget(context, prompt_tokens=0)
        return replace(super().step(context), usage={"calls": 1, "usd": 0.4})


def test_spending_limits_are_recomputed_from_the_journal(tmp_path):
    for calls in (3, 3, 4):  # the second time nothing more is asked
        with pytest.raises(Paused, match=f"all {calls} calls of search.max_calls"):
            go(tmp_path, experiment(**SMALL, max_calls=calls), Limited())
        spent = fold(read_journal(tmp_path)).spent
        assert spent.usd == pytest.approx(0.4 * calls) and spent.calls == calls
    free = go(tmp_path, experiment(**SMALL, max_calls=4))
    assert free.status == "finished", "the rules cost nothing"


class Calling(Scripted):
    """Says before each call what it may cost, as a language model's client does; its bill is lower."""

    def step(self, context):
        context.on_call({"calls": 1, "usd": 0.5})
        return replace(super().step(context), usage={"calls": 1, "usd": 0.1})


def test_killed_at_every_event_boundary_no_call_is_forgotten(tmp_path, monkeypatch):
    exp = experiment(**{**SMALL, "n_blocks": 1, "n_iter_block": 2})
    go(tmp_path / "whole", exp, Calling())
    expected, total = facts(tmp_path / "whole"), len(read_journal(tmp_path / "whole"))
    paid = fold(read_journal(tmp_path / "whole")).spent
    for events in range(total):
        run_dir = tmp_path / str(events)
        with monkeypatch.context() as patch:
            killed_after(patch, events, torn=events % 2 * 9)
            with pytest.raises(Killed):
                go(run_dir, exp, Calling())
        state = go(run_dir, exp, Calling()).state
        assert facts(run_dir) == expected, f"killed after event {events}"
        names = [e["event"] for e in read_journal(run_dir)][:events]
        cut = bool(names) and names[-1] == "call_started"
        assert state.spent.calls == paid.calls + cut and state.spent.usd == pytest.approx(paid.usd + 0.5 * cut)


@pytest.mark.parametrize(
    "stop",
    [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("RESOURCE_EXHAUSTED: a\nlong story")],
)
def test_a_call_answered_but_not_journaled_is_paid(tmp_path, monkeypatch, stop):
    append = Journal.append

    def failing(self, event, **fields):
        if event == "proposal" and fields["iteration"] == 1:
            raise stop
        return append(self, event, **fields)

    exp = experiment(**SMALL, max_nodes=4)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", failing)
        with pytest.raises((KeyboardInterrupt, UserError, RuntimeError)):
            go(tmp_path, exp, Calling())
    last = read_journal(tmp_path)[-1]
    assert last["event"] == "run_paused" and last["usage"] is None
    spent = fold(read_journal(tmp_path)).spent
    assert spent.calls == 2 and spent.usd == pytest.approx(0.1 + 0.5), (
        "the answer's bill was lost: it counts as the most it can be"
    )
    assert go(tmp_path, exp, Calling()).status == "finished"
