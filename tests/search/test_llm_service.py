"""A service that fails, in every way, between the real client and a local server: a retry, or a pause in one line."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.messages_api_server import KEY, MessagesServer, Player, Reply, error, text
from support.search_contexts import context, experiment

from flyjax.search.llm import client
from flyjax.search.llm import proposer as llm_proposer
from flyjax.search.proposals.types import Paused
from flyjax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("key")


def test_transport_failures_are_retried_by_the_client(ask, tmp_path):
    player = Player()
    failures = [error(429, "rate_limit_error"), error(500), error(503), error(529, "overloaded_error")]
    step, requests = ask(lambda r, n: failures[n] if n < len(failures) else player(r, n), context(tmp_path))
    assert len(requests) == 5 and step.usage["calls"] == 1


@pytest.mark.parametrize(
    ("status", "kind", "calls", "why"),
    [
        (400, "invalid_request_error", 1, "refused the request"),
        (401, "authentication_error", 1, "set a valid ANTHROPIC_API_KEY"),
        (402, "billing_error", 1, "cannot pay"),
        (403, "permission_error", 1, "set a valid ANTHROPIC_API_KEY"),
        (404, "not_found_error", 1, "search.llm.model"),
        (413, "request_too_large", 1, "search.llm.images=false"),
        (422, "invalid_request_error", 1, "refused the request"),
        (429, "rate_limit_error", 2, "limits the request rate"),
        (500, "api_error", 2, "down or overloaded"),
        (503, "api_error", 2, "down or overloaded"),
        (529, "overloaded_error", 2, "down or overloaded"),
    ],
)
def test_a_failing_service_pauses_the_run_in_one_line(ask, tmp_path, status, kind, calls, why):
    ctx = context(tmp_path, experiment(llm={"max_retries": 1}))
    caught, requests = ask(error(status, kind, f"first\nsecond {KEY}"), ctx)
    assert isinstance(caught, Paused) and isinstance(caught, UserError) and len(requests) == calls
    assert why in str(caught) and "--proposer rules" in str(caught) and "\n" not in str(caught)
    assert KEY not in str(caught) and caught.usage == {} and caught.__cause__ is None


@pytest.mark.parametrize(
    ("reply", "calls", "why"),
    [
        (replace(error(500), cut=9), 2, "down or overloaded, HTTP 500"),
        (replace(error(429), cut=0), 2, "limits the request rate"),
        (replace(error(401), cut=9), 1, "set a valid ANTHROPIC_API_KEY"),
        (replace(error(502), drip=0.02), 2, "down or overloaded, HTTP 502"),
        (
            Reply(b"no gzip", 502, {"content-encoding": "gzip", "retry-after-ms": "1"}),
            2,
            "down or overloaded, HTTP 502",
        ),
        (Reply(b"no gzip", 200, {"content-encoding": "gzip"}), 2, "cut off after 2 attempts (they may be billed)"),
        (
            error(429, **{"retry-after-ms": "x", "retry-after": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}),
            2,
            "limits the request rate",
        ),
        (error(429, **{"retry-after-ms": "nan"}), 2, "limits the request rate"),
        (error(400, words="\x1b[31mred\u202e\u200b\n"), 1, "HTTP 400 ([31mred)"),
        (Reply(b'{"error": {"message": 5}}', 400), 1, "HTTP 400: check"),
        (Reply(b"[" * 100_000, 400), 1, "HTTP 400: check"),
    ],
)
def test_an_error_counts_whatever_becomes_of_its_words(ask, monkeypatch, tmp_path, reply, calls, why):
    monkeypatch.setattr(client, "ERROR_S", 0.1)
    caught, requests = ask(reply, context(tmp_path, experiment(llm={"max_retries": 1})))
    assert isinstance(caught, Paused) and why in str(caught) and len(requests) == calls
    assert str(caught).isprintable() and "--proposer rules" in str(caught)
    assert bool(caught.usage) == ("billed" in why)


def test_an_error_is_read_within_limits():
    read = []

    def chunks():
        for k in range(10_000):
            read.append(k)
            yield b"x" * 10_000

    response = SimpleNamespace(is_success=False, status_code=500, headers={}, iter_bytes=chunks)
    with pytest.raises(client.CallFailed) as caught:
        client.raise_for_status(response)
    assert "HTTP 500" in caught.value.reason and not caught.value.billed and len(read) < 10


def test_a_header_that_drips_is_late(ask, monkeypatch, tmp_path):
    monkeypatch.setattr(client, "GRACE_S", 0.1)
    start = time.monotonic()
    caught, _ = ask(
        Reply(b"", drip=0.05, drip_head=True), context(tmp_path, experiment(llm={"timeout_s": 0.3, "max_retries": 0}))
    )
    assert isinstance(caught, Paused) and "no answer within 0.3 s" in str(caught) and caught.usage["usd"] > 0
    assert time.monotonic() - start < 3


def test_steps_that_are_paid_for_and_of_no_use_end(ask, tmp_path):
    """Three in a row; one that is of use starts the count anew, and so does the next start of the program."""
    ctx = context(tmp_path, iterations=2)
    proposer = llm_proposer.LLMProposer(ctx.experiment, client=object())

    def after(iteration, by="rules", calls=3):
        last = {
            "iteration": iteration,
            "block": 1,
            "by": by,
            "time": 1.0,
            "usage": {"calls": calls},
            "fallbacks": ["answer: talk; replaced"],
        }
        proposer._check_use(replace(ctx, state=replace(ctx.state, step=last)))

    for iteration, by, calls in (
        (1, "rules", 3),
        (2, "rules", 3),
        (3, "llm", 1),
        (4, "rules", 3),
        (5, "rules", 3),
        (5, "rules", 3),
        (6, "rules", 0),
    ):
        after(iteration, by, calls)
    after(7), after(8)
    with pytest.raises(Paused, match="3 steps in a row.*answer: talk.*search.llm.model.*--proposer rules"):
        after(9)


def test_a_service_that_asks_for_a_day_is_not_slept_for(ask, tmp_path):
    start = time.monotonic()
    reply = Reply(b"{}", 429, {"retry-after": "86400"})
    caught, requests = ask(reply, context(tmp_path))
    assert isinstance(caught, Paused) and "wait 86400 s" in str(caught) and len(requests) == 1
    assert time.monotonic() - start < 5


def test_a_slow_service_times_out_and_may_have_been_paid(ask, tmp_path):
    ctx = context(tmp_path, experiment(llm={"timeout_s": 0.2, "max_retries": 1}))
    caught, requests = ask(replace(text("late"), delay=0.6), ctx)
    assert isinstance(caught, Paused) and "no answer within 0.2 s after 2 attempts" in str(caught)
    assert caught.usage["calls"] == 2 == len(requests) and caught.usage["usd"] > 0


def test_an_answer_that_drips_is_late_as_a_whole(ask, tmp_path):
    start = time.monotonic()
    ctx = context(tmp_path, experiment(llm={"timeout_s": 0.3, "max_retries": 0}))
    caught, requests = ask(replace(text("drop by drop"), drip=0.05), ctx)  # no single wait is long
    assert (
        isinstance(caught, Paused)
        and "no answer within 0.3 s after 1 attempts" in str(caught)
        and caught.usage["usd"] > 0
    )
    assert len(requests) == 1 and time.monotonic() - start < 5


def test_each_try_is_announced_with_what_the_step_may_cost_by_then(ask, tmp_path):
    announced = []
    ctx = context(tmp_path, experiment(llm={"timeout_s": 0.2, "max_retries": 1}), on_call=announced.append)
    caught, requests = ask(replace(text("late"), delay=0.6), ctx)
    assert [t["calls"] for t in announced] == [1, 2] and announced[1]["usd"] == pytest.approx(
        2 * announced[0]["usd"]
    ) == caught.usage["usd"]
    assert len(requests) == 2


def test_retries_are_paid_for_and_checked_against_the_budgets(ask, tmp_path):
    late = replace(text("late"), delay=0.6)
    caught, requests = ask(
        late, context(tmp_path / "a", experiment(max_calls=1, llm={"timeout_s": 0.2, "max_retries": 4}))
    )
    assert isinstance(caught, Paused) and "max_calls" in str(caught) and len(requests) == 1 == caught.usage["calls"]
    ctx = context(tmp_path / "b", experiment(max_usd=0.5, llm={"timeout_s": 0.2, "max_retries": 9}))
    caught, requests = ask(late, ctx)
    assert isinstance(caught, Paused) and "max_usd" in str(caught)
    assert 0 < caught.usage["usd"] <= 0.5 and caught.usage["calls"] == len(requests) < 10


def test_a_cut_connection_and_a_closed_port_pause(ask, tmp_path, monkeypatch):
    ctx = context(tmp_path, experiment(llm={"max_retries": 1}))
    caught, _ = ask(replace(text("never whole"), cut=20), ctx)
    assert (
        isinstance(caught, Paused)
        and "cut off after 2 attempts (they may be billed)" in str(caught)
        and caught.usage["calls"] == 2
    )
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(Paused, match="cannot be reached"):
        llm_proposer.LLMProposer(ctx.experiment).step(ctx)


def test_a_key_is_taken_out_before_a_text_is_cut(ask, tmp_path):
    long = Reply(b"x" * (2_000 - len(KEY) // 2) + KEY.encode() + b"y" * 50, 200, {})
    caught, _ = ask(long, context(tmp_path / "a"))
    assert KEY[: len(KEY) // 2] not in json.dumps(caught.raw)
    caught, _ = ask(error(400, "invalid_request_error", "x" * (200 - len(KEY) // 2) + KEY), context(tmp_path / "b"))
    assert KEY[: len(KEY) // 2] not in str(caught)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_follows_no_redirect(ask, tmp_path, status):
    with MessagesServer(Player()) as other:
        headers = {"location": f"{other.url}/v1/messages"}
        caught, requests = ask(Reply(b"", status, headers), context(tmp_path))
        assert isinstance(caught, Paused) and f"HTTP {status}" in str(caught)
        assert len(requests) == 1 and other.requests == [] and caught.usage == {}
