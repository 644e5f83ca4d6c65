"""What the calls of a language model cost: a dated table, an estimate before each call, the bill after it.

Prices are US dollars per million tokens as published by the provider, read on `CHECKED`. A model
that is not in the table has no price: its cost is "not reported", never 0. `search.llm.prices` of
the config overrides the table, for a model it does not know or a price that has changed.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Self

from flyjax.config import LLM, Experiment
from flyjax.search.llm.client import FREE
from flyjax.search.proposals.types import Context, Paused

CHECKED = "2026-10-24"

NOT_REPORTED = "not reported"

#: Kinds of token, as the Messages API names them in `usage`, and the price each is billed at.
BILLED = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_creation_input_tokens": "cache_write",
    "cache_read_input_tokens": "cache_read",
}


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens; `long` applies to a whole call whose prompt exceeds `long_from` tokens."""

    input: float
    output: float
    cache_write: float  # kept five minutes
    cache_read: float
    long_from: int | None = None
    long: Self | None = None

    def at(self, prompt_tokens: int) -> Self:
        return self.long if self.long and prompt_tokens > (self.long_from or 0) else self


_OPUS = Price(5, 25, 6.25, 0.50)
_SONNET = Price(3, 15, 3.75, 0.30)
_LARGE = Price(10, 50, 12.50, 1.00)

#: By model name; a date after the name is the same model, any other ending is another one.
PRICES = {
    "claude-opus-5-5": Price(4, 20, 5.00, 0.20),
    "claude-opus-5": _OPUS,
    "claude-opus-4-8": _OPUS,
    "claude-opus-4-7": _OPUS,
    "claude-opus-4-6": _OPUS,
    "claude-opus-4-5": _OPUS,
    "claude-sonnet-5-5": Price(2, 10, 2.50, 0.10),
    "claude-sonnet-5": Price(2, 10, 2.50, 0.20),
    "claude-sonnet-4-6": _SONNET,
    "claude-sonnet-4-5": _SONNET,
    "claude-haiku-5-5": Price(0.10, 0.50, 0.125, 0.01, 100_000, Price(0.50, 2.50, 0.625, 0.05)),
    "claude-haiku-4-5": Price(1, 5, 1.25, 0.10),
    "claude-fable-5-1": Price(10, 50, 12.50, 0.25),
    "claude-fable-5": _LARGE,
    "claude-mythos-5-1": Price(10, 50, 12.50, 0.25),
    "claude-mythos-5": _LARGE,
}


def price_of(llm: LLM) -> Price | None:
    """The price of the configured model, None where none is known."""
    if llm.prices is not None:
        return Price(**llm.prices.model_dump())
    name = re.sub(r"[-@]20\d{6}$", "", llm.model)
    return PRICES.get(name)


def cost(price: Price | None, usage: dict[str, int]) -> float | None:
    """Dollars for the token counts of one call; None (not reported) without a price or without counts."""
    if price is None or not usage:
        return None
    price = price.at(sum(n for kind, n in usage.items() if kind != "output_tokens"))
    return sum(n * getattr(price, BILLED[kind]) for kind, n in usage.items()) / 1e6


def text_tokens(text: str) -> int:
    """At most how many tokens a text is likely to be: digits and signs come at about two bytes a token."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 2)


def image_tokens(width: int, height: int) -> int:
    """At most how many tokens an image is: area / 700, larger ones are scaled down by the service."""
    return min(math.ceil(width * height / 700) + 20, 5_000)


def most(price: Price | None, prompt_tokens: int, answer_tokens: int) -> float | None:
    """The most one call can cost, dollars: a prompt written to the cache and an answer of full length."""
    if price is None:
        return None
    price = price.at(prompt_tokens)
    return (prompt_tokens * max(price.input, price.cache_write) + answer_tokens * price.output) / 1e6


def dollars(usd: float | None) -> str:
    return NOT_REPORTED if usd is None else f"${usd:.4f}" if usd < 0.1 else f"${usd:.2f}"


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


def usage_of(data: Any, experiment: Experiment, prompt_tokens: int) -> dict[str, Any]:
    """What one call used and cost.

    `input_tokens` counts the whole prompt, its cached part included. A bill that cannot be read is
    charged at the most the call can cost and marked `estimated`, so that no budget is exceeded through it.
    """
    bill = data.get("usage") if isinstance(data, dict) else None
    counts = {kind: bill.get(kind) if isinstance(bill, dict) else None for kind in BILLED}
    known = {kind: n for kind, n in counts.items() if type(n) is int and 0 <= n < 10**9}
    model = {"calls": 1, "model": experiment.search.llm.model}
    if not {"input_tokens", "output_tokens"} <= set(known):
        return model | at_most(experiment, prompt_tokens)
    read = sum(n for kind, n in known.items() if kind != "output_tokens")
    usd = cost(price_of(experiment.search.llm), known)
    return model | known | {"input_tokens": read, "usd": NOT_REPORTED if usd is None else usd}


def at_most(experiment: Experiment, prompt_tokens: int) -> dict[str, Any]:
    """The usage of one call at the most it can cost."""
    llm = experiment.search.llm
    usd = most(price_of(llm), prompt_tokens, llm.max_tokens)
    return {
        "calls": 1,
        "input_tokens": prompt_tokens,
        "output_tokens": llm.max_tokens,
        "usd": NOT_REPORTED if usd is None else usd,
        "estimated": True,
    }


def check_budget(context: Context, prompt_tokens: int, paid: dict[str, Any] | None = None) -> None:
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
        used, ahead = spent.input_tokens + spent.output_tokens, prompt_tokens + llm.max_tokens
        if used + ahead > search.max_tokens:
            raise Paused(
                f"{used:,} of search.max_tokens={search.max_tokens:,} are used and the next call may need {ahead:,}: "
                f"raise it with --set search.max_tokens={used + 10 * ahead}, or {FREE}"
            )
    if search.max_usd is not None:
        ahead_usd = most(price_of(llm), prompt_tokens, llm.max_tokens)
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


def announce(experiment: Experiment) -> str:
    """What is printed before the first call: the model, its expected and highest cost, how to run free."""
    search, llm = experiment.search, experiment.search.llm
    steps, price = search.n_blocks * search.n_iter_block + 1, price_of(llm)
    lines = [f"Proposer llm: model {llm.model}, about {steps} calls (at most {TRIES * steps}), one for each iteration."]
    if price is None:
        lines.append(
            f"Cost: {NOT_REPORTED}, no price is known for this model; set search.llm.prices to have it counted."
        )
    else:
        images = min(20, 2 * search.n_candidates) * 1_500 if llm.images else 0
        fixed = 9_000 + 250 * search.n_candidates + images  # tools, protocol, space, new nodes
        late = fixed + 60 * search.n_candidates * (steps - 1)
        typical = (fixed + late) / 2
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
