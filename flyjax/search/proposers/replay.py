"""A recorded transcript, played again: no key, no cost, the same reading and the same validation.

`search.transcript` names the journal of an earlier run (or a JSONL file of its `proposal` and
`proposal_rejected` lines). An answer of a language model is read again from its raw form, refused
attempts included; a step of another proposer is taken as it was accepted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.errors import UserError
from flyjax.search.interface import BadAnswer, Context, Proposal, ProtocolEdit, Step
from flyjax.search.proposers.llm import complete
from flyjax.search.proposers.tools import line, read, text

EVENTS = ("proposal_rejected", "proposal")
INSTEAD = "name a journal.jsonl with --set search.transcript=FILE, or use --proposer rules"


def load_transcript(path: str | Path) -> dict[int, list[dict[str, Any]]]:
    """Iteration -> the answers given after it, in order.

    **Raises:** `UserError` where the file is missing, is not JSONL, or holds no answer.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "journal.jsonl"
    if not path.is_file():
        raise UserError(f"no transcript {path}: {INSTEAD}")
    out: dict[int, list[dict[str, Any]]] = {}
    for number, entry in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            event = json.loads(entry) if entry.strip() else {}
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number} is not JSON; restore the file, or {INSTEAD}") from None
        if isinstance(event, dict) and event.get("event") == "run_resumed":
            # A step that was cut off was asked for from the beginning.
            out = {k: answers for k, answers in out.items() if answers[-1]["event"] == "proposal"}
        if not isinstance(event, dict) or event.get("event") not in EVENTS:
            continue
        if type(event.get("iteration")) is not int:
            raise UserError(f"{path}: line {number} names no iteration; restore the file, or {INSTEAD}")
        answers = out.setdefault(event["iteration"], [])
        if answers and answers[-1]["event"] == "proposal":
            answers.clear()  # the step was taken once more: the later one counts
        answers.append(event)
    if not out:
        raise UserError(f"{path} holds no answers: {INSTEAD}")
    return out


def accepted_step(event: dict[str, Any], context: Context) -> Step:
    """The step of a `proposal` event that has no raw answer: as it was carried out."""
    try:
        edit = event.get("protocol_edit")
        simulation = event["simulation"]
        spans = context.experiment.search.simulation_ranges
        return Step(
            proposals=tuple(
                Proposal(p["parent"], dict(p["changes"]), line(p["strategy"]), line(p.get("hypothesis"))) for p in event["proposals"]
            ),
            chosen=event["chosen"],
            reason=line(event["reason"]),
            activity={int(n): line(t) for n, t in event["activity"].items()},
            observation={int(n): line(t) for n, t in event["observation"].items()},
            notes=text(event["notes"]),
            block_summary=line(event["block_summary"]),
            next_simulation={k: simulation[k] for k in spans if k in simulation} if context.next_opens_block and context.new_nodes else {},
            protocol_edit=ProtocolEdit(text(edit["old"]), text(edit["new"]), line(edit["reason"])) if edit else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer([f"the transcript's step is damaged: {type(error).__name__}"]) from None


class ReplayProposer:
    """Plays `search.transcript`.

    **Raises:** `UserError` on construction where there is none, in `step` where it is at its end.
    """

    name = "replay"

    def __init__(self, experiment: Experiment, run_dir=None, transcript: str | Path | None = None):
        source = transcript or experiment.search.transcript
        if not source:
            raise UserError(f"replay needs a transcript: {INSTEAD}")
        self._answers = load_transcript(source)
        self._asked: tuple[int, int] = (-1, 0)  # iteration, which attempt

    def step(self, context: Context) -> Step:
        iteration = context.state.iteration.number if context.state.iteration else 0
        attempt = self._asked[1] + 1 if context.feedback and self._asked[0] == iteration else 0
        self._asked = (iteration, attempt)
        answers = self._answers.get(iteration)
        if not answers:
            raise UserError(f"the transcript has no answer after iteration {iteration}: go on with --proposer rules")
        event = answers[min(attempt, len(answers) - 1)]
        raw = event.get("raw")
        if event.get("by") == "llm" or (isinstance(raw, dict) and "content" in raw) or event["event"] == "proposal_rejected":
            if not isinstance(raw, dict):
                raise BadAnswer(["the transcript's answer is not a message"], raw)
            try:
                step = complete(read(raw, context), context)
            except BadAnswer as error:
                raise BadAnswer(error.errors, raw) from None
        else:
            step = accepted_step(event, context)
        return replace(step, raw=raw)
