"""The proposer that asks a language model: one structured call of the Messages API for each step.

The model is untrusted. What it answers is read (`tools.read`), then validated by the loop, which
sends errors back through `Context.feedback`; it has no files, no code, no seeds, no secrets.

    proposer = LLMProposer(experiment)      # UserError where no key is set
    print(announce(experiment))
    step = proposer.step(context)           # BadAnswer: ask again; Paused: stop, resumably
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

from flyjax.config import Experiment
from flyjax.errors import UserError
from flyjax.search.interface import BadAnswer, Context, Paused, Step
from flyjax.search.prices import BILLED, CHECKED, NOT_REPORTED, cost, dollars, most, price_of
from flyjax.search.proposers.drafts import merge
from flyjax.search.proposers.prompt import Prompt, build
from flyjax.search.proposers.rules import activity_line, observe
from flyjax.search.proposers.tools import compact, keepable, read
from flyjax.search.space import validate_step

KEY_NAME = "ANTHROPIC_API_KEY"
FREE = "go on free with --proposer rules"
RESUME = "then run the same command again"
UNREACHABLE = f"the service cannot be reached: check the network, {RESUME}, or {FREE}"

MAX_ANSWER_BYTES = 4_000_000  # far above any answer of max_tokens
MAX_WAIT_S = 120  # a service that asks for a longer wait before the next try pauses the run
CONNECT_S = 10  # an answer may take minutes, a connection may not
TRIES = 3  # calls per step at most: an answer and two corrections
BACKOFF_S, LONGEST_S = 2.0, 60.0  # before the first retry in transport; four times as long before each next, up to


def api_key() -> str:
    """The key from the environment.

    **Raises:** `UserError` where none is set or it cannot be one; the message does not show it.
    """
    key = os.environ.get(KEY_NAME, "").strip()
    if not key:
        raise UserError(f"no {KEY_NAME} is set: set it to your key, or {FREE}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{KEY_NAME} holds characters no key has: set it again, or {FREE}")
    return key


def scrub(value: Any, secret: str) -> Any:
    """A copy without the secret, should a service or a file have echoed it."""
    if isinstance(value, str):
        return value.replace(secret, "[redacted]")
    if isinstance(value, dict):
        return {scrub(k, secret): scrub(v, secret) for k, v in value.items()}
    if isinstance(value, list):
        return [scrub(v, secret) for v in value]
    return value


def _seconds(headers) -> float | None:
    """What a service asks to wait before the next try, s."""
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        return float(headers["retry-after"])
    except KeyError:
        return None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(headers["retry-after"])
        return (when - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def wait_before_retry(error, tries: int) -> float | None:
    """Seconds until a failed call is worth another try, None where it is not; `tries` were made."""
    import anthropic

    wait = min(LONGEST_S, BACKOFF_S * 4.0 ** (tries - 1))
    if isinstance(error, anthropic.APIStatusError):
        headers = error.response.headers
        told, asked = headers.get("x-should-retry"), _seconds(headers)
        if told == "false" or (told != "true" and error.status_code not in (408, 409, 429) and error.status_code < 500):
            return None
        if asked is not None:
            # Hours would be slept away without a word.
            return max(0.0, asked) if asked <= MAX_WAIT_S else None
        return wait
    return wait if isinstance(error, anthropic.APIConnectionError) else None


def may_be_billed(error) -> bool:
    """Whether a call that failed had reached the service: its answer was late, or was cut off."""
    import anthropic

    cause = type(error.__cause__).__name__
    return isinstance(error, anthropic.APIConnectionError) and cause not in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol")


def _body(answer, until: float) -> bytes:
    """The bytes of an answer, at most one more piece than `MAX_ANSWER_BYTES`.

    The client's own limit is on each piece: a service that drips would hold the run for ever.

    **Raises:** what the client raises for an answer that is late (at time.monotonic() `until`) or cut off.
    """
    import anthropic

    out, request = bytearray(), answer.http_response.request
    try:
        for piece in answer.iter_bytes():
            out += piece
            if time.monotonic() > until:
                raise anthropic.APITimeoutError(request=request)
            if len(out) > MAX_ANSWER_BYTES:
                break
    except anthropic.AnthropicError:
        raise
    except Exception as error:  # the transport's own, whose package differs between versions of the client
        if "Timeout" in type(error).__name__:
            raise anthropic.APITimeoutError(request=request) from error
        raise anthropic.APIConnectionError(request=request) from error
    return bytes(out)


def _plus(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two usages as one."""
    if not a or not b:
        return {**a, **b}
    out = {**a, **b}
    for key in ("calls", "input_tokens", "output_tokens"):
        out[key] = a.get(key, 0) + b.get(key, 0)
    out["usd"] = NOT_REPORTED if NOT_REPORTED in (a["usd"], b["usd"]) else a["usd"] + b["usd"]
    return out


def make_client(experiment: Experiment, key: str):
    """The SDK's client; it obeys ANTHROPIC_BASE_URL. Retries are ours: each is checked against the budgets.

    **Raises:** `UserError` where ANTHROPIC_BASE_URL is no address.
    """
    import anthropic

    llm = experiment.search.llm
    timeout = anthropic.Timeout(llm.timeout_s, connect=min(CONNECT_S, llm.timeout_s))
    try:
        return anthropic.Anthropic(api_key=key, timeout=timeout, max_retries=0)
    except Exception as error:  # httpx reads the address
        if type(error).__name__ == "InvalidURL":
            raise UserError("ANTHROPIC_BASE_URL is no address: set it again, or unset it for the service itself") from None
        raise


def usage_of(data: Any, experiment: Experiment, prompt: Prompt) -> dict[str, Any]:
    """What one call used and cost.

    `input_tokens` counts the whole prompt, its cached part included. A bill that cannot be read is
    charged at the most the call can cost and marked `estimated`, so that no budget leaks through it.
    """
    price, told = price_of(experiment.search.llm), data.get("usage") if isinstance(data, dict) else None
    counts = {}
    for kind in BILLED:
        n = told.get(kind) if isinstance(told, dict) else None
        counts[kind] = n if type(n) is int and 0 <= n < 10**9 else None
    usage = {"calls": 1, "model": experiment.search.llm.model}
    if counts["input_tokens"] is None or counts["output_tokens"] is None:
        return {**usage, **_at_most(experiment, prompt, 1)}
    counts = {kind: n or 0 for kind, n in counts.items()}
    usd = cost(price, counts)
    return {
        **usage,
        **counts,
        "input_tokens": sum(n for kind, n in counts.items() if kind != "output_tokens"),
        "usd": NOT_REPORTED if usd is None else usd,
    }


def _at_most(experiment: Experiment, prompt: Prompt, calls: int) -> dict[str, Any]:
    llm = experiment.search.llm
    usd = most(price_of(llm), prompt.tokens, llm.max_tokens)
    return {
        "calls": calls,
        "input_tokens": calls * prompt.tokens,
        "output_tokens": calls * llm.max_tokens,
        "usd": NOT_REPORTED if usd is None else calls * usd,
        "estimated": True,
    }


def check_budget(context: Context, prompt: Prompt, paid: dict[str, Any] | None = None) -> None:
    """Whether the next call fits into what is left, at the most it can use; `paid` is not journaled yet.

    **Raises:** `Paused`, naming the budget and how to raise it.
    """
    search, spent = context.experiment.search, context.state.spent.plus(paid or {})
    llm = search.llm
    if search.max_calls is not None and spent.calls + 1 > search.max_calls:
        raise Paused(
            f"all {search.max_calls} calls of search.max_calls are made: raise it with "
            f"--set search.max_calls={spent.calls + 10}, or {FREE}"
        )
    if search.max_tokens is not None:
        used, ahead = spent.input_tokens + spent.output_tokens, prompt.tokens + llm.max_tokens
        if used + ahead > search.max_tokens:
            raise Paused(
                f"{used:,} of search.max_tokens={search.max_tokens:,} are used and the next call may need {ahead:,}: "
                f"raise it with --set search.max_tokens={used + 10 * ahead}, or {FREE}"
            )
    if search.max_usd is not None:
        ahead_usd = most(price_of(llm), prompt.tokens, llm.max_tokens)
        if ahead_usd is None:
            raise Paused(
                f"search.max_usd={search.max_usd:g} cannot be kept: no price is known for model {llm.model!r}; "
                f"set search.llm.prices, or drop the limit with --set search.max_usd=null, or {FREE}"
            )
        if spent.unpriced_calls:
            raise Paused(
                f"search.max_usd={search.max_usd:g} cannot be kept: what {spent.unpriced_calls} calls of this run cost is "
                f"{NOT_REPORTED}; limit it with search.max_tokens or max_calls and --set search.max_usd=null, or {FREE}"
            )
        if spent.usd + ahead_usd > search.max_usd:
            raise Paused(
                f"{dollars(spent.usd)} of search.max_usd={search.max_usd:g} are spent and the next call may cost "
                f"{dollars(ahead_usd)}: raise it with --set search.max_usd={search.max_usd + 2:g}, or {FREE}"
            )


def _status_message(error, secret: str) -> str:
    """One line for an HTTP error, with its remedy."""
    status = error.status_code
    told = error.api_message if isinstance(getattr(error, "api_message", None), str) else ""
    told = scrub(told, secret)  # before it is cut: a part of a key is a leak as well
    told = f" ({' '.join(told.split())[:200]})" if told else ""
    if status in (401, 403):
        return f"the service refused the key, HTTP {status}{told}: set a valid {KEY_NAME}, {RESUME}, or {FREE}"
    if status == 402:
        return f"the account cannot pay, HTTP 402{told}: settle it, {RESUME}, or {FREE}"
    if status == 404:
        return f"the service does not know this model or address, HTTP 404{told}: set search.llm.model, {RESUME}, or {FREE}"
    if status == 413:
        return f"the request is too large, HTTP 413{told}: --set search.llm.images=false, {RESUME}, or {FREE}"
    if status == 429:
        wait = _seconds(error.response.headers)
        later = f"wait {wait:.0f} s" if wait and wait > 1 else "wait"
        return f"the service limits our rate, HTTP 429{told}: {later}, {RESUME}, or {FREE}"
    if status >= 500 or status in (408, 409):
        return f"the service is down or overloaded, HTTP {status}{told}: wait, {RESUME}, or {FREE}"
    return f"the service refused the request, HTTP {status}{told}: check search.llm, {RESUME}, or {FREE}"


class LLMProposer:
    """Asks the model of `experiment.search.llm`.

    **Raises:** `UserError` on construction where no key is set.
    """

    name = "llm"
    spends = True

    def __init__(self, experiment: Experiment, run_dir=None, client: Any = None):
        self._key = api_key()
        self._client = client if client is not None else make_client(experiment, self._key)
        self._previous: tuple[tuple[int, int], str] | None = None  # (where, the refused answer), for feedback

    def __repr__(self) -> str:
        return "LLMProposer()"  # never the key

    def _call(self, context: Context, prompt: Prompt) -> tuple[bytes, dict[str, Any]]:
        """(body of the answer, what tries before it may have cost).

        **Raises:** `Paused` for whatever trying again could not mend, with what it may have cost.
        """
        import anthropic

        llm, paid = context.experiment.search.llm, {}
        once = _at_most(context.experiment, prompt, 1) | {"model": llm.model}
        more = {"output_config": {"effort": llm.effort}} if llm.effort else {}
        for tries in range(1, 2 + llm.max_retries):
            try:
                check_budget(context, prompt, paid)
            except Paused as over:
                raise Paused(str(over), paid) from None
            context.calling(_plus(paid, once))  # journaled first: a kill in the middle of the call loses no cost
            try:
                # The response as bytes: they are untrusted and read with bounds. No tool_choice: a forced
                # tool is refused by models that think.
                began = time.monotonic()
                with self._client.messages.with_streaming_response.create(
                    model=llm.model,
                    max_tokens=llm.max_tokens,
                    system=scrub(prompt.system, self._key),
                    tools=prompt.tools,
                    messages=scrub(prompt.messages, self._key),
                    **more,
                ) as answer:
                    return _body(answer, began + llm.timeout_s), paid
            except KeyboardInterrupt as interrupt:
                interrupt.usage = _plus(paid, once)  # on its way: the loop journals it
                raise
            except anthropic.AnthropicError as error:
                paid = _plus(paid, once) if may_be_billed(error) else paid
                wait = wait_before_retry(error, tries)
                if wait is None or tries > llm.max_retries:
                    raise Paused(self._why(error, llm, tries, bool(paid)), paid) from None
            try:
                time.sleep(wait)
            except KeyboardInterrupt as interrupt:
                interrupt.usage = paid
                raise
        raise AssertionError("the last try returns or raises")

    def _why(self, error, llm, tries: int, billed: bool) -> str:
        import anthropic

        told = f", {tries} tries" + (" (they may be billed)" if billed else "")
        if isinstance(error, anthropic.APITimeoutError) and may_be_billed(error):
            return f"no answer within {llm.timeout_s:g} s{told}: wait, or raise search.llm.timeout_s, {RESUME}, or {FREE}"
        if isinstance(error, anthropic.APIStatusError):
            return _status_message(error, self._key)
        if isinstance(error, anthropic.APIConnectionError):
            return f"the answer was cut off{told}: check the network, {RESUME}, or {FREE}" if may_be_billed(error) else UNREACHABLE
        return f"the client stopped with {type(error).__name__}: {RESUME}, or {FREE}"

    def step(self, context: Context) -> Step:
        """One call, read.

        **Raises:** `BadAnswer` where the answer cannot be read (`usage` says what it cost); `Paused`
        where the run has to stop: budget, key, service.
        """
        if context.iter_in_block == 0 and context.n_proposals == 0:
            return Step(())  # K = 1: the root is all that the first iteration trains
        where = (context.block, context.iter_in_block)
        previous = self._previous[1] if context.feedback and self._previous and self._previous[0] == where else ""
        prompt = build(context, previous)
        body, paid = self._call(context, prompt)
        data = self._decode(body, context, prompt, paid)
        usage = _plus(paid, usage_of(data, context.experiment, prompt))
        kept = keepable({k: data.get(k) for k in ("model", "stop_reason", "stop_details")} | {"content": _said(data.get("content"))})
        self._previous = (where, compact(kept.get("content")))
        try:
            step = complete(merge(read(data, context), context, self.name), context)
        except BadAnswer as error:
            raise BadAnswer(error.errors, kept, usage) from None
        return replace(step, usage=usage, raw=kept)

    def _decode(self, body: bytes, context: Context, prompt: Prompt, paid: dict[str, Any]) -> dict[str, Any]:
        def unreadable(why):
            # Scrubbed before it is cut: a part of a key is a leak as well.
            shown = scrub(body.decode("utf-8", "replace"), self._key)[:2_000]
            return BadAnswer([why], keepable({"unreadable": shown}), _plus(paid, usage_of(None, context.experiment, prompt)))

        if len(body) > MAX_ANSWER_BYTES:
            raise unreadable(f"the answer was longer than {MAX_ANSWER_BYTES / 1e6:g} MB; keep every text short")
        try:
            data = scrub(json.loads(body), self._key)
        except (ValueError, RecursionError):
            raise unreadable("the answer was not JSON") from None
        if not isinstance(data, dict):
            raise unreadable("the answer was not a message")
        return data


def _said(content: Any) -> Any:
    """An answer without its thoughts: they are long, signed, and nothing reads them again."""
    if not isinstance(content, list):
        return content
    return [b for b in content if not (isinstance(b, dict) and b.get("type") in ("thinking", "redacted_thinking"))]


def missing_entries(step: Step, context: Context) -> list[str]:
    """Log lines that a complete answer has and this one lacks."""
    return [
        f"log: node {node} has no {key}"
        for node in context.new_nodes
        for key in ("activity", "observation")
        if not getattr(step, key).get(node)
    ]


def complete(step: Step, context: Context) -> Step:
    """The step with a line on every new node; the rules word what is missing after one correction.

    **Raises:** `BadAnswer` the first time, with everything else that is wrong, so that one correction
    can mend it all.
    """
    missing = missing_entries(step, context)
    if not missing:
        return step
    if not context.feedback:
        raise BadAnswer([*missing, *map(str, validate_step(context, step))])
    state = context.state
    return replace(
        step,
        activity={n: step.activity.get(n) or activity_line(state.nodes[n]) for n in context.new_nodes},
        observation={n: step.observation.get(n) or observe(state, state.nodes[n]) for n in context.new_nodes},
        fallbacks=tuple(f"{m}; replaced by the rules" for m in missing),
    )


def _plan(experiment: Experiment) -> tuple[int, float, int]:
    """(steps, tokens of a typical prompt, of a late one): what the prompt is made of, by count."""
    search = experiment.search
    steps = search.n_blocks * search.n_iter_block + 1
    nodes = search.n_candidates * (steps - 1)
    images = min(20, 2 * search.n_candidates) * 1_500 if search.llm.images else 0
    fixed = 9_000 + 250 * search.n_candidates + images  # tools, protocol, space, new nodes
    return steps, fixed + 60 * nodes / 2, fixed + 60 * nodes


def announce(experiment: Experiment) -> str:
    """What is printed before the first call: the model, what it will cost and at most, how to run free."""
    search, llm = experiment.search, experiment.search.llm
    steps, typical, late = _plan(experiment)
    price = price_of(llm)
    lines = [f"Proposer llm: model {llm.model}, about {steps} calls (at most {TRIES * steps}), one for each iteration."]
    if price is None:
        lines.append(f"Cost: {NOT_REPORTED}, no price is known for this model; set search.llm.prices to have it counted.")
    else:
        at = price.at(int(typical))
        about = steps * (typical * at.input + min(4_000, llm.max_tokens) * at.output) / 1e6
        worst = TRIES * steps * most(price, int(2 * late), llm.max_tokens)
        limit = worst if search.max_usd is None else min(worst, search.max_usd)
        why = "search.max_usd, enforced before each call" if limit != worst else "every answer at full length, every step asked thrice"
        source = "search.llm.prices" if llm.prices is not None else f"prices of {CHECKED}"
        lines.append(f"Cost: about {dollars(min(about, limit))}, at most {dollars(limit)} ({why}); {source}.")
    lines.append("To run free, without a language model: --proposer rules")
    return "\n".join(lines)
