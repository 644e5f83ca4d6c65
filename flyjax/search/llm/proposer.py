"""The proposer that asks a language model: one structured call of the Messages API for each step.

The model is untrusted. What it answers is read (`tools.read`), then validated by the loop, which
sends errors back through `Context.feedback`; it has no files, no code, no seeds, no secrets.

    proposer = LLMProposer(experiment)      # UserError where no key is set
    print(announce(experiment))
    step = proposer.step(context)           # BadAnswer: ask again; Paused: stop, resumably
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from flyjax.config import Experiment
from flyjax.search.llm.budget import announce, at_most, check_budget, plus, usage_of
from flyjax.search.llm.client import (  # fmt: skip
    FREE,
    KEY_NAME,
    MAX_ANSWER_BYTES,
    CallFailed,
    api_key,
    make_client,
    send,
    wait_before_retry,
    why,
)
from flyjax.search.llm.drafts import merge
from flyjax.search.llm.prompt import Prompt, build
from flyjax.search.llm.schema import compact, keepable, read
from flyjax.search.proposals.types import BadAnswer, Context, Paused, Problem, Step
from flyjax.search.proposers.rules import activity_line, observe
from flyjax.search.sanitize import scrub

__all__ = ["FREE", "KEY_NAME", "LLMProposer", "announce", "complete"]

#: Said with every call: a model that thinks refuses a forced tool, and two calls in one answer are paid for nothing.
TOOL_CHOICE = {"type": "auto", "disable_parallel_tool_use": True}
LOST = 3  # steps in a row of which nothing could be used, each paid for: then the run pauses


class LLMProposer:
    """Asks the model of `experiment.search.llm`.

    **Raises:** `UserError` on construction where no key is set.
    """

    name = "llm"
    is_paid = True

    def __init__(self, experiment: Experiment, run_dir=None, client: Any = None):
        self._key = api_key()
        self._client = client if client is not None else make_client(experiment, self._key)
        self._previous: tuple[tuple[int, int], str] | None = None  # (where, the refused answer), for feedback
        self._lost: set[int] = (
            set()
        )  # iterations whose step was the rules' after paid calls, since an answer was of use

    def __repr__(self) -> str:
        return "LLMProposer()"  # never the key

    def step(self, context: Context) -> Step:
        """One call, read.

        **Raises:** `BadAnswer` where the answer cannot be read (`usage` says what it cost); `Paused`
        where the run has to stop: budget, key, service.
        """
        if context.iter_in_block == 0 and context.n_proposals == 0:
            return Step(())  # K = 1: the root is all that the first iteration trains
        self._brake(context)
        where = (context.block, context.iter_in_block)
        previous = self._previous[1] if context.feedback and self._previous and self._previous[0] == where else ""
        self._previous = None  # an answer that cannot be read is not shown as the one before it
        prompt = build(context, previous)
        body, paid = self._call(context, prompt)
        data = self._decode(body, context, prompt, paid)
        usage = plus(paid, usage_of(data, context.experiment, prompt))
        kept = keepable(
            {k: data.get(k) for k in ("model", "stop_reason", "stop_details")} | {"content": _said(data.get("content"))}
        )
        self._previous = (where, compact(kept.get("content")))
        try:
            step = complete(merge(read(data, context), context, self.name), context)
        except BadAnswer as error:
            raise BadAnswer(error.errors, kept, usage) from None
        return replace(step, usage=usage, raw=kept)

    def _brake(self, context: Context) -> None:
        """**Raises:** `Paused` where steps in a row were paid for and nothing of them could be used."""
        last = context.state.step
        if context.feedback or last is None:
            return
        if last.get("by") == "rules" and (last.get("usage") or {}).get("calls"):
            self._lost.add(last["iteration"])
        else:
            self._lost.clear()
        if len(self._lost) >= LOST:
            first = (last.get("fallbacks") or [""])[0][:200]
            raise Paused(
                f"{LOST} steps in a row were paid for and no answer could be used (the last: {first}): choose another search.llm.model, or "
                f"raise search.llm.max_tokens, or run the same command again to go on as it is, or {FREE}"
            )

    def _call(self, context: Context, prompt: Prompt) -> tuple[bytes, dict[str, Any]]:
        """(body of the answer, what tries before it may have cost).

        **Raises:** `Paused` for whatever trying again could not mend, with what it may have cost.
        """
        llm, paid = context.experiment.search.llm, {}
        once = at_most(context.experiment, prompt, 1) | {"model": llm.model}
        request = {
            "model": llm.model,
            "max_tokens": llm.max_tokens,
            "system": scrub(prompt.system, self._key),
            "tools": prompt.tools,
            "tool_choice": TOOL_CHOICE,
            "messages": scrub(prompt.messages, self._key),
        }
        if llm.effort:
            request["output_config"] = {"effort": llm.effort}
        for tries in range(1, 2 + llm.max_retries):
            try:
                check_budget(context, prompt, paid)
            except Paused as over:
                raise Paused(str(over), paid) from None
            context.calling(plus(paid, once))  # journaled first: a kill in the middle of the call loses no cost
            try:
                return send(self._client, request, llm.timeout_s), paid
            except KeyboardInterrupt as interrupt:
                interrupt.usage = plus(paid, once)  # on its way: the loop journals it
                raise
            except CallFailed as failed:
                paid = plus(paid, once) if failed.billed else paid
                wait = wait_before_retry(failed, tries)
                if wait is None or tries > llm.max_retries:
                    raise Paused(why(failed, llm.timeout_s, tries, bool(paid), self._key), paid) from None
            try:
                time.sleep(wait)
            except KeyboardInterrupt as interrupt:
                interrupt.usage = paid
                raise
        raise AssertionError("the last try returns or raises")

    def _decode(self, body: bytes, context: Context, prompt: Prompt, paid: dict[str, Any]) -> dict[str, Any]:
        def unreadable(reason):
            # Scrubbed before it is cut: a part of a key is a leak as well.
            shown = scrub(body.decode("utf-8", "replace"), self._key)[:2_000]
            return BadAnswer(
                [reason], keepable({"unreadable": shown}), plus(paid, usage_of(None, context.experiment, prompt))
            )

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


def complete(step: Step, context: Context) -> Step:
    """The step with all that was asked for: a line on every new node, every field of the next simulation.

    What is missing is filled in, by the rules' words and the present simulation, and is a flaw: it goes back
    to the model before it is taken as it is.
    """
    nodes, flaws, lines = context.state.nodes, [*step.flaws], {}
    own = {"activity": activity_line, "observation": lambda node: observe(context.state, node)}
    for key, words in own.items():
        given = getattr(step, key)
        lines[key] = {**given, **{n: words(nodes[n]) for n in context.new_nodes if not given.get(n)}}
    for node in context.new_nodes:
        missing = [key for key in own if not getattr(step, key).get(node)]
        flaws += [Problem("log", f"node {node} has no {key}", remedy="replaced by the rules") for key in missing]
    if context.is_block_end and context.next_opens_block:
        left = [name for name in context.experiment.search.simulation_ranges if name not in step.next_simulation]
        flaws += [
            Problem("next_simulation", f"{name} is missing, every field is wanted", remedy="it stays as it is")
            for name in left
        ]
    return replace(step, flaws=tuple(flaws), **lines)
