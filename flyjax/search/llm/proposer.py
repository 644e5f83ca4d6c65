"""The proposer that asks a language model: one structured call of the Messages API for each step.

The model is untrusted. Its answer is cleaned once, where it arrives, read (`schema.read`) and then validated
by the caller, which returns errors through `Context.feedback`. It has no files, no code, no seeds, no secrets.

    proposer = LLMProposer(experiment)      # UserError where no key is set
    step = proposer.step(context)           # BadAnswer: ask again; Paused: stop, resumably
"""

import json
import time
from dataclasses import replace
from typing import Any

from flyjax.config import Experiment
from flyjax.search.llm.budget import at_most, check_budget, plus, usage_of
from flyjax.search.llm.client import FREE, MAX_ANSWER_BYTES, RESUME, CallFailed, api_key, make_client, send
from flyjax.search.llm.prompt import Prompt, build
from flyjax.search.llm.schema import read
from flyjax.search.proposals.types import BadAnswer, Context, Paused, Problem, Step
from flyjax.search.sanitize import clean, clean_text
from flyjax.utils.secrets import redact

#: A model that thinks refuses a forced tool, and two calls in one answer would be paid for in vain.
TOOL_CHOICE = {"type": "auto", "disable_parallel_tool_use": True}
MAX_UNUSABLE_STEPS = 3  # steps in a row that were paid for and gave nothing; then the run pauses


class LLMProposer:
    """Asks the model of `experiment.search.llm`.

    **Raises:** `UserError` on construction where no key is set.
    """

    name = "llm"

    def __init__(self, experiment: Experiment, run_dir=None, client: Any = None):
        key = api_key()
        self._client = client if client is not None else make_client(experiment, key)
        self._previous: tuple[tuple[int, int], str] | None = None  # (step, the refused answer), for feedback
        self._unusable: set[int] = set()  # iterations since the last usable answer whose paid step was the rules'

    def step(self, context: Context) -> Step:
        """One call, read.

        **Raises:** `BadAnswer` where the answer cannot be read (its `usage` is what the call cost); `Paused`
        where the run has to stop: budget, key, service.
        """
        if context.iter_in_block == 0 and context.n_proposals == 0:
            return Step(())  # K = 1: the root is all that the first iteration trains
        self._check_use(context)
        where, previous = (context.block, context.iter_in_block), ""
        if context.feedback and self._previous and self._previous[0] == where:
            previous = self._previous[1]
        self._previous = None  # an unreadable answer is not shown as the one before it
        prompt = build(context, previous)
        body, paid = self._call(context, prompt)
        data, error = self._decode(body)
        usage = plus(paid, usage_of(data, context.experiment, prompt.tokens))
        if error:
            raise BadAnswer([error], data, usage)
        raw = {k: data.get(k) for k in ("model", "stop_reason", "stop_details", "content")}
        if isinstance(raw["content"], list):  # without its thoughts: long, signed, and read by nothing
            thoughts = ("thinking", "redacted_thinking")
            raw["content"] = [b for b in raw["content"] if not (isinstance(b, dict) and b.get("type") in thoughts)]
        self._previous = (where, json.dumps(raw["content"], ensure_ascii=False, separators=(",", ":")))
        try:
            step = merge(read(data, context), context, self.name)
        except BadAnswer as unreadable:
            raise BadAnswer(unreadable.errors, raw, usage) from None
        return replace(step, usage=usage, raw=raw)

    def _check_use(self, context: Context) -> None:
        """**Raises:** `Paused` where steps in a row were paid for and nothing of them could be used."""
        last = context.state.step
        if context.feedback or last is None:
            return
        if last.get("by") == "rules" and (last.get("usage") or {}).get("calls"):
            self._unusable.add(last["iteration"])
        else:
            self._unusable.clear()
        if len(self._unusable) >= MAX_UNUSABLE_STEPS:
            first = (last.get("fallbacks") or [""])[0][:200]
            raise Paused(
                f"{MAX_UNUSABLE_STEPS} steps in a row were paid for and no answer could be used (the last: {first}): "
                "choose another search.llm.model, or raise search.llm.max_tokens, or run the same command again to go "
                f"on regardless, or {FREE}"
            )

    def _call(self, context: Context, prompt: Prompt) -> tuple[bytes, dict[str, Any]]:
        """(body of the answer, what failed attempts may have cost).

        **Raises:** `Paused` where another attempt would not help or not be paid for, with what was spent.
        """
        llm = context.experiment.search.llm
        paid: dict[str, Any] = {}
        once = at_most(context.experiment, prompt.tokens) | {"model": llm.model}
        request = {
            "model": llm.model,
            "max_tokens": llm.max_tokens,
            "system": redact(prompt.system),
            "tools": prompt.tools,
            "tool_choice": TOOL_CHOICE,
            "messages": redact(prompt.messages),
        }
        if llm.effort:
            request["output_config"] = {"effort": llm.effort}
        attempts, in_flight = 0, {}
        try:
            while True:
                attempts += 1
                check_budget(context, prompt.tokens, paid)
                in_flight = plus(paid, once)
                context.on_call(in_flight)  # journaled first: a kill during the call loses no cost
                try:
                    return send(self._client, request, llm.timeout_s), paid
                except CallFailed as failed:
                    in_flight = paid = plus(paid, once) if failed.billed else paid
                    delay = failed.delay(attempts)
                    if delay is None or attempts > llm.max_retries:
                        count = f" after {attempts} attempts" * failed.billed + " (they may be billed)" * bool(paid)
                        remedy = f"{failed.remedy}, {RESUME}".removeprefix(", ")
                        raise Paused(f"{failed.reason}{count}: {remedy}, or {FREE}") from None
                time.sleep(delay)
        except Paused as pause:
            raise Paused(str(pause), paid) from None
        except KeyboardInterrupt as interrupt:
            interrupt.usage = in_flight  # type: ignore[attr-defined]  # the loop journals it
            raise

    def _decode(self, body: bytes) -> tuple[Any, str]:
        """(the message, "") or (what the journal keeps of the body, why it is no message); clean, without the key."""
        error = f"the answer was longer than {MAX_ANSWER_BYTES / 1e6:g} MB; keep every text short"
        if len(body) <= MAX_ANSWER_BYTES:
            try:
                data = clean(json.loads(body))
                if isinstance(data, dict):
                    return data, ""
                error = "the answer was not a message"
            except (ValueError, RecursionError):
                error = "the answer was not JSON"
        return {"unreadable": clean_text(body.decode("utf-8", "replace"))[:2_000]}, error


def merge(step: Step, context: Context, by: str) -> Step:
    """The drafts with the step's proposals in the slots that they name.

    A proposal without a place is a warning: it goes back to the model, and if that does not help the draft stays.
    """
    if context.drafts is None:
        return step
    slots, n, warnings = list(context.drafts), len(context.drafts), list(step.warnings)
    taken: set[int] = set()
    for number, proposal in enumerate(step.proposals, 1):
        slot, why = proposal.slot, ""
        if isinstance(slot, bool) or not isinstance(slot, int) or not 1 <= slot <= n:
            why = f"slot {str(slot)[:20]} is none of the drafts, 1 to {n}"
        elif slot in taken:
            why = f"slot {slot} is overridden twice"
        elif len(taken) == context.overrides:
            why = f"at most {context.overrides} of the {n} drafts may be overridden"
        else:
            taken.add(slot)
            slots[slot - 1] = replace(proposal, by=by)
        if why:
            warnings.append(Problem("overrides", f"number {number}: {why}", remedy="the optimiser's draft stays"))
    return replace(step, proposals=tuple(slots), warnings=tuple(warnings))
