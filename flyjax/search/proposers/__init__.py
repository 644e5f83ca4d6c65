"""Proposers behind one interface (`flyjax.search.proposals.types.Proposer`), by name."""

from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.journal.journal import FILE_NAME, read_journal
from flyjax.search.proposals.types import Proposer
from flyjax.utils import environment, registry

NAMES = registry.proposer.built_in


def resolve_name(name: str, run_dir: str | Path | None = None) -> str:
    """`auto` is the proposer of a run that has begun; else llm where ANTHROPIC_API_KEY is set, else rules.

    So a key that is set or removed between two calls neither costs money nor changes a run.
    """
    if name != "auto":
        return name
    if run_dir is not None and (Path(run_dir) / FILE_NAME).is_file():
        sessions = [e for e in read_journal(run_dir) if e["event"] in ("run_started", "run_resumed")]
        if sessions and sessions[-1].get("proposer") in registry.proposer:
            return sessions[-1]["proposer"]
    return "llm" if environment.api_key() else "rules"


def make_proposer(name: str, experiment: Experiment, run_dir: str | Path | None = None) -> Proposer:
    """The proposer called `name` (or what `auto` stands for).

    **Raises:** `UserError` for an unknown name, or one whose key or package is missing.
    """
    return registry.proposer[resolve_name(name, run_dir)](experiment, run_dir)
