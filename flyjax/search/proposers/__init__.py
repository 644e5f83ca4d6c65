"""Proposers behind one interface (`flyjax.search.proposals.types.Proposer`), by name."""

from __future__ import annotations

from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.journal.journal import FILE_NAME, read_journal
from flyjax.utils import environment
from flyjax.utils.errors import UserError, nearest

SAMPLERS = {"random": "RandomProposer", "tpe": "TPEProposer", "cmaes": "CMAESProposer", "hybrid": "HybridProposer"}
NAMES = ("llm", "rules", *SAMPLERS, "replay")


def last_proposer(run_dir: str | Path) -> str | None:
    """Who proposes in a run that has begun, None where it has not."""
    if not (Path(run_dir) / FILE_NAME).is_file():
        return None
    events = [e for e in read_journal(run_dir) if e["event"] in ("run_started", "run_resumed")]
    return events[-1].get("proposer") if events else None


def resolve_name(name: str, run_dir: str | Path | None = None) -> str:
    """`auto` is whoever proposes in a run that has begun; else llm where ANTHROPIC_API_KEY is set, else rules.

    So a key that comes or goes between two calls neither costs money nor changes a run unasked.
    """
    if name != "auto":
        return name
    known = last_proposer(run_dir) if run_dir is not None else None
    if known in NAMES:
        return known
    return "llm" if environment.api_key() else "rules"


def make_proposer(name: str, experiment: Experiment, run_dir: str | Path | None = None):
    """The proposer called `name` (or what `auto` stands for).

    **Raises:** `UserError` for an unknown name, or one whose key or package is missing.
    """
    name = resolve_name(name, run_dir)
    if name == "llm":
        # Imports the SDK, which the other proposers do without.
        from flyjax.search.llm.proposer import LLMProposer

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
