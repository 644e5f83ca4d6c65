"""Proposers behind one interface (`flyjax.search.interface.Proposer`), by name."""

from __future__ import annotations

import os
from pathlib import Path

from flyjax.config import Experiment
from flyjax.errors import UserError, nearest

SAMPLERS = {"random": "RandomProposer", "tpe": "TPEProposer", "cmaes": "CMAESProposer", "hybrid": "HybridProposer"}
NAMES = ("llm", "rules", *SAMPLERS, "replay")


def resolve_name(name: str) -> str:
    """`auto` is llm where ANTHROPIC_API_KEY is set, else rules."""
    if name != "auto":
        return name
    return "llm" if os.environ.get("ANTHROPIC_API_KEY", "").strip() else "rules"


def make_proposer(name: str, experiment: Experiment, run_dir: str | Path | None = None):
    """The proposer called `name` (or what `auto` stands for).

    **Raises:** `UserError` for an unknown name, or one whose key or package is missing.
    """
    name = resolve_name(name)
    if name == "llm":
        # Imports the SDK, which the other proposers do without.
        from flyjax.search.proposers.llm import LLMProposer

        return LLMProposer(experiment, run_dir)
    if name == "rules":
        from flyjax.search.proposers.rules import RulesProposer

        return RulesProposer(experiment, run_dir)
    if name in SAMPLERS:
        from flyjax.search.proposers import samplers

        return getattr(samplers, SAMPLERS[name])(experiment, run_dir)
    if name == "replay":
        from flyjax.search.proposers.replay import ReplayProposer

        return ReplayProposer(experiment, run_dir)
    raise UserError(f"no proposer {name!r}; there are: {', '.join(NAMES)}, auto.{nearest(name, NAMES)}")
