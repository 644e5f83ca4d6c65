"""The search loop: train K candidates, take one step, journal both, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.journal.journal import Journal
from flyjax.search.proposals.types import Proposer
from flyjax.search.run.opening import check_free, has_begun, stimuli
from flyjax.search.run.session import Evaluate, Outcome, Provenance, SearchCallbacks, Session
from flyjax.utils.errors import UserError, user_message
from flyjax.utils.run_directory import check
from flyjax.utils.secrets import redact

__all__ = ["Evaluate", "Outcome", "Provenance", "SearchCallbacks", "run_loop"]


def run_loop(
    experiment: Experiment,
    run_dir: str | Path,
    evaluate: Evaluate,
    proposer: Proposer,
    *,
    protocol_template: str | Path,
    earlier_protocol: str | Path | None = None,
    available_stimuli: tuple[str, ...] | None = None,
    provenance: Provenance | None = None,
    callbacks: SearchCallbacks | None = None,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Run the search in `run_dir`, or go on with it.

    **Arguments:**

    - `evaluate`: trains a plan's nodes. Called again with the same plan after a kill, it has to resume by itself.
    - `protocol_template`: path of protocol.md.
    - `earlier_protocol`: path of the protocol of an earlier run, whose rules carry over.
    - `available_stimuli`: names of the stimuli on this machine; by default all of the range.
    - `clock`: gives unix seconds.

    **Raises:** `UserError` in one line for a run in use, a damaged journal, a changed config, a bad protocol, a full
    disk, a directory of another kind, and for what stops the proposer; any other error unchanged. The run stays
    resumable.
    """
    check(run_dir, "search")
    if not has_begun(run_dir):
        check_free(run_dir)
    with Journal(run_dir, clock) as journal:
        session = Session(
            experiment, Path(run_dir), evaluate, proposer, journal, clock,
            available_stimuli=stimuli(experiment, available_stimuli),
            provenance=provenance or Provenance(),
            callbacks=callbacks or SearchCallbacks(),
        )  # fmt: skip
        try:
            session.report_damage()
            if session.state.started is None:
                session.start(protocol_template, earlier_protocol)
            else:
                session.resume()
            session.write_files()
            while session.outcome is None:
                session.advance()
        except KeyboardInterrupt as interrupt:
            session.pause(str(interrupt) or "interrupted", interrupt)
            raise
        except Exception as error:
            message = user_message(error) or ""
            session.pause(message or _unexpected(error), error)
            if not message or isinstance(error, UserError):
                raise
            raise UserError(message) from None
        finally:
            session.heartbeat.stop()
        return session.outcome


def _unexpected(error: Exception) -> str:
    """An unexpected error in one line."""
    first = next(iter(redact(str(error)).strip().splitlines()), "")
    return f"stopped by {type(error).__name__}: {first[:500]}"
