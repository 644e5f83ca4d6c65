"""A recorded transcript, played again: no key, no cost, the same reading and the same validation.

`search.transcript` names the journal of an earlier run (or a JSONL file of its `proposal` and
`proposal_rejected` lines, which `write_transcript` makes). An answer of a language model is read again
from its raw form, refused attempts included; a step of another proposer is taken as it was accepted, and
so is one of `hybrid`, whose answer holds a part of the proposals only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.search.iteration import IterationPlan
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import Node, fold
from flyjax.search.llm.proposer import complete
from flyjax.search.llm.schema import read
from flyjax.search.proposals.types import BadAnswer, Context, Proposal, ProtocolEdit, Step
from flyjax.search.sanitize import line, text
from flyjax.utils.errors import UserError
from flyjax.utils.format import finite

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


def _is_answer(event: dict[str, Any]) -> bool:
    """Whether the event's step is read again from the language model's answer."""
    raw = event.get("raw")
    if event.get("by") == "hybrid" and event["event"] == "proposal":
        return False
    return (
        event.get("by") == "llm"
        or (isinstance(raw, dict) and "content" in raw)
        or event["event"] == "proposal_rejected"
    )


#: What a step needs that is taken as it was carried out.
STEP_FIELDS = (
    "chosen", "reason", "activity", "observation", "proposals", "simulation", "notes", "block_summary", "protocol_edit",
)  # fmt: skip


def _slim(event: dict[str, Any]) -> dict[str, Any]:
    out = {k: event.get(k) for k in ("event", "iteration", "by")}
    if not _is_answer(event):
        return out | {"raw": None} | {k: event.get(k) for k in STEP_FIELDS}
    raw = event.get("raw")
    content = raw.get("content") if isinstance(raw, dict) else None
    calls = (
        [b for b in content if isinstance(b, dict) and b.get("type") == "tool_use"] if isinstance(content, list) else []
    )
    if calls:  # what is read, without the thoughts before it
        raw = {
            "stop_reason": raw.get("stop_reason"),
            "content": [{k: b.get(k) for k in ("type", "name", "input")} for b in calls],
        }
    return out | {"raw": raw}


#: What a transcript keeps of a node's metrics.
METRICS = ("connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2", "test_pearson")


def _result(node: Node, started: dict[str, Any]) -> dict[str, Any]:
    searched = started["experiment"]["search"]["ranges"]
    known = {k: round(v, 6) for k in METRICS if (v := finite((node.metrics or {}).get(k))) is not None}
    return {
        "event": "result", "node": node.id, "parent": node.parent, "strategy": node.strategy,
        "config": {k: node.config[k] for k in searched}, "seeds": list(node.seeds), "metrics": known or None,
        "spread": {k: round(v, 6) for k, v in node.spread.items()}, "reason": node.reason, "activity": node.activity,
    }  # fmt: skip


def recorded_results(path: str | Path) -> Callable[[IterationPlan], dict[int, dict[str, Any]]]:
    """What stands in for the training when a transcript is shown and not trained again: the results it keeps.

    Give it to `run_loop` as `evaluate`; of the seeds of a node it gives the mean alone.

    **Raises:** `UserError` where the plan asks for another node than the recorded run trained.
    """
    events = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    known = {e["node"]: e for e in events if e.get("event") == "result"}

    def evaluate(plan: IterationPlan) -> dict[int, dict[str, Any]]:
        out = {}
        for node in plan.nodes:
            kept = known.get(node.id)
            if (
                kept is None
                or any(node.config[k] != v for k, v in kept["config"].items())
                or list(node.seeds) != kept["seeds"]
            ):
                raise UserError(f"{path} has no result for node {node.id} as it is proposed now; train it: {INSTEAD}")
            out[node.id] = {k: kept[k] for k in ("metrics", "reason", "activity")}
        return out

    return evaluate


def write_transcript(run: str | Path, path: str | Path) -> Path:
    """The answers of a run as a small JSONL file for `search.transcript`.

    Its first line says of what run, its last lines what every node was and scored (see `recorded_results`).

    **Raises:** `UserError` where the run has no journal, or no answers.
    """
    answers = load_transcript(run)
    state = fold(read_journal(run))
    started = state.started or {}
    about = {
        "event": "transcript",
        "experiment": started.get("name"),
        "proposer": started.get("proposer"),
        "model": state.experiment.get("search", {}).get("llm", {}).get("model") if state.spent.calls else None,
        "date": time.strftime("%Y-%m-%d", time.gmtime(started.get("time", 0))),
        "nodes": len(state.nodes),
    }
    results = [_result(node, started) for node in state.nodes.values() if node.status != "running"]
    kept = [e for k in sorted(answers) for e in answers[k]]
    if (
        started.get("proposer") == "hybrid"
    ):  # its steps are taken as they were carried out: what was refused is not needed
        kept = [e for e in kept if e["event"] == "proposal"]
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [about, *map(_slim, kept), *results]
        path.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in lines), "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a file that can be written") from None
    return path


def accepted_step(event: dict[str, Any], context: Context) -> Step:
    """The step of a `proposal` event that has no raw answer: as it was carried out."""
    try:
        edit = event.get("protocol_edit")
        simulation = event["simulation"]
        spans = context.experiment.search.simulation_ranges
        return Step(
            proposals=tuple(
                Proposal(
                    p["parent"], dict(p["changes"]), line(p["strategy"]), line(p.get("hypothesis")), line(p.get("by"))
                )
                for p in event["proposals"]
            ),
            chosen=event["chosen"],
            reason=line(event["reason"]),
            activity={int(n): line(t) for n, t in event["activity"].items()},
            observation={int(n): line(t) for n, t in event["observation"].items()},
            notes=text(event["notes"]),
            block_summary=line(event["block_summary"]),
            next_simulation={k: simulation[k] for k in spans if k in simulation}
            if context.next_opens_block and context.new_nodes
            else {},
            protocol_edit=ProtocolEdit(text(edit["old"]), text(edit["new"]), line(edit["reason"])) if edit else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer([f"the transcript's step is damaged: {type(error).__name__}"]) from None


class ReplayProposer:
    """Plays `search.transcript`.

    **Raises:** `UserError` on construction where there is none, in `step` where it is at its end.
    """

    name = "replay"
    reads_instructions = False  # recorded words answer no new instruction

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
        if _is_answer(event):
            if not isinstance(raw, dict):
                raise BadAnswer(["the transcript's answer is not a message"], raw)
            try:
                step = complete(read(raw, context), context)
            except BadAnswer as error:
                raise BadAnswer(error.errors, raw) from None
        else:
            step = accepted_step(event, context)
        return replace(step, raw=raw)
