"""The answer of a language model: the tools that ask for it, and reading it as untrusted input.

Reading keeps plain values as they came (a wrong type or a number out of range is the validator's
to refuse, by name) and takes everything else away: containers where values belong, control
and invisible characters, line breaks in one-line fields, unknown fields, whatever does not fit into UTF-8.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from flyjax.config import Experiment
from flyjax.search.proposals.types import ROOT, STRATEGIES, BadAnswer, Context, Proposal, ProtocolEdit, Step
from flyjax.search.ranges import coerce
from flyjax.search.sanitize import line, text

FIRST, STEP, BLOCK_END = "propose", "submit_step", "end_block"

MAX_RAW = 110_000  # characters of one text kept in the journal: any lawful field whole
MAX_ITEMS = 1_000

_TEXT = {"type": "string"}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    # Strict mode wants every field required and no others; bounds in a schema are refused by the service.
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _array(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": _object(properties)}


def _tool(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "description": description, "strict": True, "input_schema": _object(properties)}


def _json_type(span) -> str:
    if span.scale == "choice":
        if all(isinstance(v, str) for v in span.values):
            return "string"
        return "integer" if all(type(v) is int for v in span.values) else "number"
    return "integer" if span.scale == "int" else "number"


def tools(experiment: Experiment, drafted: bool = False) -> list[dict[str, Any]]:
    """The three strict tools, the same bytes in every call of a run; the request says which to call.

    `drafted`: an optimiser fills the slots, a proposal names the one that it overrides.
    """
    search = experiment.search
    change = {"name": {"type": "string", "enum": sorted(search.ranges)}, "value": {"type": "number"}}
    proposal = {
        "parent": {"type": "string", "description": f'a node number such as "3", or "{ROOT}"'},
        "changes": {**_array(change), "description": "against the parent; empty for a robustness-test"},
        "strategy": {"type": "string", "enum": [s for s in STRATEGIES if s != ROOT]},
        "hypothesis": {"type": "string", "description": "one line: what this should show"},
    }
    if drafted:
        proposal = {"slot": {"type": "integer", "description": "number of the draft that it overrides"}, **proposal}
    ask = {"proposals": _array(proposal), "notes": {"type": "string", "description": "memory notes, or empty"}}
    entry = {
        "node": {"type": "integer"},
        "activity": {"type": "string", "description": "one line on the dynamics, from figure and numbers"},
        "observation": {"type": "string", "description": "one line on the result"},
    }
    read = {
        "log": {**_array(entry), "description": "one entry for each new node"},
        "chosen": {"type": "integer", "description": "the new node that this iteration continues with"},
        "reason": {"type": "string", "description": "one line: why, and the parent rule applied"},
    }
    simulation = {name: {"type": _json_type(span)} for name, span in sorted(search.simulation_ranges.items())}
    end = {
        "block_summary": {"type": "string", "description": "one line: what worked and failed in this simulation"},
        "next_simulation": _object(simulation),
        "edit_old": {"type": "string", "description": "exact text between the markers to replace; empty: no edit"},
        "edit_new": {"type": "string", "description": "its replacement; empty together with edit_old"},
        "edit_reason": {
            "type": "string",
            "description": "why this edit, or why no changes are needed, by what was measured",
        },
    }
    return [
        _tool(FIRST, "The first proposals of a run, before anything is trained.", ask),
        _tool(STEP, "Read the new nodes, choose, propose the next iteration.", {**read, **ask}),
        _tool(BLOCK_END, "The same at the end of a block, with its duties.", {**read, **ask, **end}),
    ]


def expected_tool(context: Context) -> str:
    if context.iter_in_block == 0:
        return FIRST
    return BLOCK_END if context.is_block_end else STEP


def plain(value: Any) -> Any:
    """A scalar as it came; a container becomes a short text that no range contains."""
    if isinstance(value, str):
        return text(value)[:200]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return f"({type(value).__name__})"


def _items(value: Any) -> list[dict[str, Any]]:
    return [v for v in value[:MAX_ITEMS] if isinstance(v, dict)] if isinstance(value, list) else []


def _parent(value: Any) -> Any:
    """The schema wants a string; "12" is node 12."""
    value = plain(value)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value.strip() if isinstance(value, str) else value


def _changes(value: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in _items(value):
        name, new = line(item.get("name"))[:80], plain(item.get("value"))
        # One parameter with two values has none: the text is refused as a value, by name.
        out[name] = f"given twice: {out[name]}, {new}" if name in out else new
    return out


def _proposal(item: dict[str, Any]) -> Proposal:
    changes = item.get("changes")
    if not isinstance(changes, list) or any(not isinstance(c, dict) for c in changes):
        # Not readable is not "no changes": that would be a robustness-test nobody asked for.
        changes = [{"name": "changes", "value": "must be a list of {name, value}"}]
    return Proposal(
        parent=_parent(item.get("parent")),
        changes=_changes(changes),
        strategy=line(item.get("strategy")),
        hypothesis=line(item.get("hypothesis")),
        slot=_node(item.get("slot")),
    )


def _node(value: Any) -> Any:
    value = plain(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def _log(value: Any, key: str) -> dict[int, str]:
    entries = ((_node(i.get("node")), line(i.get(key))) for i in _items(value))
    return {n: words for n, words in entries if isinstance(n, int) and not isinstance(n, bool)}


def _simulation(value: dict[str, Any], context: Context) -> dict[str, Any]:
    spans, out = context.experiment.search.simulation_ranges, {}
    for name, new in list(value.items())[:50]:
        name, new = line(name)[:80], plain(new)
        try:
            # 64000.0 and 64000 are one simulation, and have to make one recording.
            new = coerce(spans[name], new)
        except (KeyError, ValueError):
            pass  # the validator says what is wrong
        out[name] = new
    return out


def call_of(answer: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The input of the one tool call of an answer.

    **Raises:** `BadAnswer` with what to tell the model where there is no complete call of the tool.
    """
    stop = answer.get("stop_reason")
    if stop == "refusal":
        raise BadAnswer([f"the answer was a refusal; this is a search over training settings, call {wanted}"])
    if stop == "max_tokens":
        raise BadAnswer(
            [
                "the answer was cut off at its length limit, which thinking counts against: think less, keep every text short"
            ]
        )
    if stop == "model_context_window_exceeded":
        raise BadAnswer(["the answer ran over the context window; keep every text short"])
    calls = [b for b in _items(answer.get("content")) if b.get("type") == "tool_use"]
    if not calls:
        # end_turn, stop_sequence, pause_turn or anything new: text is not an answer.
        raise BadAnswer([f"there was no tool call (stop reason {line(stop)[:40] or 'none'}); call {wanted} once"])
    if len(calls) > 1:
        raise BadAnswer([f"there were {len(calls)} tool calls; call {wanted} once"])
    name, arguments = calls[0].get("name"), calls[0].get("input")
    if name != wanted:
        raise BadAnswer([f"the tool was {line(name)[:40]!r}; this step needs {wanted}"])
    if not isinstance(arguments, dict):
        raise BadAnswer([f"the input of {wanted} was not an object"])
    return arguments


def read(answer: dict[str, Any], context: Context) -> Step:
    """The step that an answer describes, not yet validated.

    **Raises:** `BadAnswer` where nothing can be read.
    """
    data = call_of(answer, expected_tool(context))
    if not isinstance(data.get("proposals"), list):
        raise BadAnswer(["`proposals` must be a list of objects"])
    proposals = tuple(_proposal(p if isinstance(p, dict) else {}) for p in data["proposals"][:MAX_ITEMS])
    if context.iter_in_block == 0:
        return Step(proposals=proposals, notes=text(data.get("notes")))
    end: dict[str, Any] = {}
    if context.is_block_end:
        simulation = data.get("next_simulation")
        simulation = simulation if isinstance(simulation, dict) else {"next_simulation": "must be an object"}
        end = {
            "block_summary": line(data.get("block_summary")),
            # Where no block follows there is no next simulation, whatever the schema made the model write.
            "next_simulation": _simulation(simulation, context) if context.next_opens_block else {},
            "protocol_edit": ProtocolEdit(
                text(data.get("edit_old")), text(data.get("edit_new")), line(data.get("edit_reason"))
            ),
        }
    return Step(
        proposals=proposals,
        chosen=_node(data.get("chosen")),
        reason=line(data.get("reason")),
        activity=_log(data.get("log"), "activity"),
        observation=_log(data.get("log"), "observation"),
        notes=text(data.get("notes")),
        **end,
    )


def keepable(value: Any, depth: int = 0) -> Any:
    """A copy for the journal: JSON, bounded in size and depth."""
    if depth > 12:
        return "(deeper)"
    if isinstance(value, str):
        out = text(value)
        return out if len(out) <= MAX_RAW else f"{out[:MAX_RAW]} ... ({len(value):,} characters)"
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ITEMS]
        return {keepable(str(k))[:200]: keepable(v, depth + 1) for k, v in items}
    if isinstance(value, (list, tuple)):
        return [keepable(v, depth + 1) for v in value[:MAX_ITEMS]]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 1024 else "(huge integer)"
    return f"({type(value).__name__})"


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
