"""A recorded transcript, played again: no key, no cost, the same reading and the same validation.

`search.transcript` names the journal of an earlier run, or a JSONL file of its `proposal` and
`proposal_rejected` events (`write_transcript`). An answer of a language model is read again from its raw form,
refused attempts included; a step of another proposer is taken as it was carried out, and so is one of
`hybrid`, whose answer holds a part of the proposals only.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.search.iteration import IterationPlan
from flyjax.search.journal.journal import FILE_NAME, read_journal
from flyjax.search.journal.state import Node, fold
from flyjax.search.llm.schema import objects, read
from flyjax.search.proposals.types import BadAnswer, Context, Proposal, ProtocolEdit, Step
from flyjax.search.proposals.validation import check_step
from flyjax.search.sanitize import clean, clean_text, one_line
from flyjax.utils import metric_names
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import finite

EVENTS = ("proposal_rejected", "proposal")
INSTEAD = "name a journal.jsonl with --set search.transcript=FILE, or use --proposer rules"
#: What a step needs that is taken as it was carried out.
STEP_FIELDS = (
    "chosen", "reason", "activity", "observation", "proposals", "simulation", "notes", "block_summary", "protocol_edit",
)  # fmt: skip


def load_transcript(path: str | Path) -> dict[int, list[dict[str, Any]]]:
    """Iteration -> the answers given after it, in order.

    **Raises:** `UserError` where the file is missing, is not JSONL, or holds no answer.
    """
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"no transcript {path}: {INSTEAD}")
    out: dict[int, list[dict[str, Any]]] = {}
    for number, entry in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            event = json.loads(entry) if entry.strip() else {}
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number} is not JSON; restore the file, or {INSTEAD}") from None
        kind = event.get("event") if isinstance(event, dict) else None
        if kind == "run_resumed":  # an interrupted step was requested from the beginning
            out = {k: answers for k, answers in out.items() if answers[-1]["event"] == "proposal"}
        if kind not in EVENTS:
            continue
        if type(event.get("iteration")) is not int:
            raise UserError(f"{path}: line {number} names no iteration; restore the file, or {INSTEAD}")
        answers = out.setdefault(event["iteration"], [])
        if answers and answers[-1]["event"] == "proposal":
            answers.clear()  # the step was taken again: the later one counts
        answers.append(event)
    if not out:
        raise UserError(f"{path} holds no answers: {INSTEAD}")
    return out


def _is_answer(event: dict[str, Any]) -> bool:
    """Whether the event's step is read again from the language model's answer."""
    if event["event"] == "proposal_rejected":
        return True
    raw, by = event.get("raw"), event.get("by")
    return by != "hybrid" and (by == "llm" or (isinstance(raw, dict) and "content" in raw))


def _transcript_line(event: dict[str, Any]) -> dict[str, Any]:
    """What a transcript keeps of an event: the tool calls of an answer, or the step."""
    out, raw = {k: event.get(k) for k in ("event", "iteration", "by")}, event.get("raw")
    if not _is_answer(event):
        return out | {"raw": None} | {k: event.get(k) for k in STEP_FIELDS}
    calls = [
        {k: block.get(k) for k in ("type", "name", "input")}
        for block in objects(raw.get("content") if isinstance(raw, dict) else None)
        if block.get("type") == "tool_use"
    ]
    if isinstance(raw, dict) and calls:
        raw = {"stop_reason": raw.get("stop_reason"), "content": calls}
    return out | {"raw": raw}


def _result_line(node: Node, started: dict[str, Any]) -> dict[str, Any]:
    searched = started["experiment"]["search"]["ranges"]
    known = {k: round(v, 6) for k in metric_names.TRANSCRIPT if (v := finite((node.metrics or {}).get(k))) is not None}
    return {
        "event": "result", "node": node.id, "parent": node.parent, "strategy": node.strategy,
        "config": {k: node.config[k] for k in searched}, "seeds": list(node.seeds), "metrics": known or None,
        "spread": {k: round(v, 6) for k, v in node.spread.items()}, "reason": node.reason, "activity": node.activity,
    }  # fmt: skip


def recorded_results(path: str | Path) -> Callable[[IterationPlan], dict[int, dict[str, Any]]]:
    """The `evaluate` of `run_loop` that gives a transcript's results instead of training; means over seeds only.

    **Raises:** `UserError` where the plan asks for another node than the recorded run trained.
    """
    events = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    results = {e["node"]: e for e in events if e.get("event") == "result"}

    def evaluate(plan: IterationPlan) -> dict[int, dict[str, Any]]:
        for node in plan.nodes:
            known = results.get(node.id, {"config": None, "seeds": None})
            config = {k: node.config[k] for k in known["config"] or ()}
            if config != known["config"] or list(node.seeds) != known["seeds"]:
                raise UserError(f"{path} has no result for node {node.id} as it is proposed now; train it: {INSTEAD}")
        return {n.id: {k: results[n.id][k] for k in ("metrics", "reason", "activity")} for n in plan.nodes}

    return evaluate


def write_transcript(run: str | Path, path: str | Path) -> Path:
    """The answers of a run as a small JSONL file for `search.transcript`.

    Its first line describes the run, its last lines are the nodes with their results (see `recorded_results`).

    **Raises:** `UserError` where the run has no journal, or no answers.
    """
    answers, state = load_transcript(run), fold(read_journal(run))
    started = state.started or {}
    about = {
        "event": "transcript",
        "experiment": started.get("name"),
        "proposer": started.get("proposer"),
        "model": state.experiment.get("search", {}).get("llm", {}).get("model") if state.spent.calls else None,
        "date": time.strftime("%Y-%m-%d", time.gmtime(started.get("time", 0))),
        "nodes": len(state.nodes),
    }
    # The steps of hybrid are taken as they were carried out: refused answers are not needed.
    events = EVENTS[1:] if started.get("proposer") == "hybrid" else EVENTS
    lines = [about, *(_transcript_line(e) for k in sorted(answers) for e in answers[k] if e["event"] in events)]
    lines += [_result_line(node, started) for node in state.all_nodes if node.status != "running"]
    write_atomic(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in lines))
    return Path(path)


def _as_proposed(entry: dict[str, Any], context: Context) -> tuple[int | str, dict[str, Any]]:
    """(parent, changes) before the reversion check set another parent."""
    if "proposed_from" not in entry:
        return entry["parent"], dict(entry["changes"])
    start = context.state.nodes[entry["proposed_from"]]
    return start.id, {k: v for k, v in entry["config"].items() if v != start.config[k]}


def accepted_step(event: dict[str, Any], context: Context) -> Step:
    """The step of a `proposal` event that has no raw answer, as it was carried out.

    **Raises:** `BadAnswer` for a damaged event.
    """

    def line(value: Any) -> str:
        return one_line(clean_text(value or ""))

    try:
        edit, simulation = event.get("protocol_edit"), event["simulation"]
        names = context.experiment.search.simulation_ranges if context.next_opens_block and context.new_nodes else ()
        return Step(
            proposals=tuple(
                Proposal(*_as_proposed(p, context), line(p["strategy"]), line(p.get("hypothesis")), line(p.get("by")))
                for p in event["proposals"]
            ),
            chosen=event["chosen"],
            reason=line(event["reason"]),
            activity={int(n): line(t) for n, t in event["activity"].items()},
            observation={int(n): line(t) for n, t in event["observation"].items()},
            notes=clean_text(event["notes"]),
            block_summary=line(event["block_summary"]),
            next_simulation={k: simulation[k] for k in names if k in simulation},
            protocol_edit=edit and ProtocolEdit(clean_text(edit["old"]), clean_text(edit["new"]), line(edit["reason"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer([f"the transcript's step is damaged: {type(error).__name__}"]) from None


class ReplayProposer:
    """Plays `search.transcript`.

    **Raises:** `UserError` on construction where there is none, in `step` where it is at its end.
    """

    name = "replay"
    reads_instructions = False  # recorded answers fit no new instruction

    def __init__(self, experiment: Experiment, run_dir=None, transcript: str | Path | None = None):
        source = transcript or experiment.search.transcript
        if not source:
            raise UserError(f"replay needs a transcript: {INSTEAD}")
        self._answers = load_transcript(source)
        self.corrects_answers = any(_is_answer(event) for answers in self._answers.values() for event in answers)
        self._last: tuple[int, int] = (-1, 0)  # iteration, attempt

    def step(self, context: Context) -> Step:
        iteration = context.state.number
        attempt = self._last[1] + 1 if context.feedback and self._last[0] == iteration else 0
        self._last = (iteration, attempt)
        answers = self._answers.get(iteration)
        if not answers:
            raise UserError(f"the transcript has no answer after iteration {iteration}: go on with --proposer rules")
        event = answers[min(attempt, len(answers) - 1)]
        raw = clean(event.get("raw"))
        if not _is_answer(event):
            return replace(accepted_step(event, context), raw=raw)
        try:
            if not isinstance(raw, dict):
                raise BadAnswer(["the transcript's answer is not a message"])
            step = replace(read(raw, context), raw=raw)
            if event["event"] == "proposal_rejected" and not (checked := check_step(context, step)).problems:
                # Earlier versions refused more; what follows in the transcript is the answer that was carried out.
                raise BadAnswer(checked.reversions or ("the recorded run refused this answer",))
            return step
        except BadAnswer as error:
            raise BadAnswer(error.errors, raw) from None
