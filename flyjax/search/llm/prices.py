"""What a call costs: a dated table, an estimate before the call, the bill after it.

Prices are US dollars per million tokens as published by the provider, read on `CHECKED`. A model
that is not in the table has no price: its cost is "not reported", never 0. `search.llm.prices` of
the config overrides the table, for a model it does not know or a price that has changed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from flyjax.config import LLM

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
    long: Price | None = None

    def at(self, prompt_tokens: int) -> Price:
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
