"""What the calls of a language model cost: before a run, before each call, and as billed."""

from __future__ import annotations

from typing import Any

from flyjax.config import Experiment
from flyjax.search.llm.client import FREE
from flyjax.search.llm.prices import BILLED, CHECKED, NOT_REPORTED, cost, dollars, most, price_of
from flyjax.search.llm.prompt import Prompt
from flyjax.search.proposals.types import Context, Paused

TRIES = 3  # calls per step at most: an answer and two corrections


def plus(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two usages as one."""
    if not a or not b:
        return {**a, **b}
    out = {**a, **b}
    for key in ("calls", "input_tokens", "output_tokens"):
        out[key] = a.get(key, 0) + b.get(key, 0)
    out["usd"] = NOT_REPORTED if NOT_REPORTED in (a["usd"], b["usd"]) else a["usd"] + b["usd"]
    return out


def usage_of(data: Any, experiment: Experiment, prompt: Prompt) -> dict[str, Any]:
    """What one call used and cost.

    `input_tokens` counts the whole prompt, its cached part included. A bill that cannot be read is
    charged at the most the call can cost and marked `estimated`, so that no budget is exceeded through it.
    """
    bill = data.get("usage") if isinstance(data, dict) else None
    counts = {kind: bill.get(kind) if isinstance(bill, dict) else None for kind in BILLED}
    known = {kind: n for kind, n in counts.items() if type(n) is int and 0 <= n < 10**9}
    model = {"calls": 1, "model": experiment.search.llm.model}
    if not {"input_tokens", "output_tokens"} <= set(known):
        return model | at_most(experiment, prompt, 1)
    read = sum(n for kind, n in known.items() if kind != "output_tokens")
    usd = cost(price_of(experiment.search.llm), known)
    return model | known | {"input_tokens": read, "usd": NOT_REPORTED if usd is None else usd}


def at_most(experiment: Experiment, prompt: Prompt, calls: int) -> dict[str, Any]:
    """The usage of so many calls of a prompt, each at the most it can cost."""
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
    """Check the next call, at the most it can use, against the budgets; `paid` is not journaled yet.

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
                f"search.max_usd={search.max_usd:g} cannot be checked: no price is known for model {llm.model!r}; "
                f"set search.llm.prices, or drop the limit with --set search.max_usd=null, or {FREE}"
            )
        if spent.unpriced_calls:
            raise Paused(
                f"search.max_usd={search.max_usd:g} cannot be checked: the cost of {spent.unpriced_calls} calls of "
                f"this run is {NOT_REPORTED}; limit it with search.max_tokens or max_calls and "
                f"--set search.max_usd=null, or {FREE}"
            )
        if spent.usd + ahead_usd > search.max_usd:
            raise Paused(
                f"{dollars(spent.usd)} of search.max_usd={search.max_usd:g} are spent and the next call may cost "
                f"{dollars(ahead_usd)}: raise it with --set search.max_usd={search.max_usd + 2:g}, or {FREE}"
            )


def _plan(experiment: Experiment) -> tuple[int, float, int]:
    """(steps, tokens of a typical prompt, of a late one)."""
    search = experiment.search
    steps = search.n_blocks * search.n_iter_block + 1
    nodes = search.n_candidates * (steps - 1)
    images = min(20, 2 * search.n_candidates) * 1_500 if search.llm.images else 0
    fixed = 9_000 + 250 * search.n_candidates + images  # tools, protocol, space, new nodes
    return steps, fixed + 60 * nodes / 2, fixed + 60 * nodes


def announce(experiment: Experiment) -> str:
    """What is printed before the first call: the model, its expected and highest cost, how to run free."""
    search, llm = experiment.search, experiment.search.llm
    steps, typical, late = _plan(experiment)
    price = price_of(llm)
    lines = [f"Proposer llm: model {llm.model}, about {steps} calls (at most {TRIES * steps}), one for each iteration."]
    if price is None:
        lines.append(
            f"Cost: {NOT_REPORTED}, no price is known for this model; set search.llm.prices to have it counted."
        )
    else:
        at = price.at(int(typical))
        about = steps * (typical * at.input + min(4_000, llm.max_tokens) * at.output) / 1e6
        worst = TRIES * steps * (most(price, int(2 * late), llm.max_tokens) or 0.0)
        limit = worst if search.max_usd is None else min(worst, search.max_usd)
        why = (
            "search.max_usd, enforced before each call"
            if limit != worst
            else "all answers of full length, three calls for every step"
        )
        source = "search.llm.prices" if llm.prices is not None else f"prices of {CHECKED}"
        lines.append(f"Cost: about {dollars(min(about, limit))}, at most {dollars(limit)} ({why}); {source}.")
    lines.append("To run free, without a language model: --proposer rules")
    return "\n".join(lines)
