"""The answer of a language model: the tools that ask for it, and reading it.

Pydantic models define both. Reading is tolerant: it keeps scalars as they came (the validation refuses a
wrong type or a number out of range, by name), ignores unknown fields and never fails on a known one, so that
a bad field costs no other. Texts are cleaned before they get here (`sanitize.clean`).
"""

import contextlib
import copy
import functools
import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from flyjax.config import Experiment, Range
from flyjax.config.ranges import coerce
from flyjax.search.proposals.types import ROOT, STRATEGIES, BadAnswer, Context, Problem, Proposal, ProtocolEdit, Step
from flyjax.search.sanitize import one_line

#: Why there is no complete tool call, by stop reason.
_STOPPED = {
    "refusal": "the answer was a refusal; this is a search over training settings, call the tool",
    "max_tokens": "the answer was cut off at its length limit, which includes thinking: think less, keep texts short",
    "model_context_window_exceeded": "the answer exceeded the context window; keep every text short",
}


# --- the fields ---------------------------------------------------------------------------------


def _scalar(value: Any) -> Any:
    """A scalar as it came; a container becomes a short text that no range contains."""
    if isinstance(value, str):
        return value[:200]
    return value if value is None or isinstance(value, (bool, int, float)) else f"({type(value).__name__})"


def _whole(value: Any) -> Any:
    """3.0 is 3: JSON writers differ."""
    value = _scalar(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def _parent(value: Any) -> Any:
    """The schema asks for a string; "12" is node 12."""
    value = _whole(value)
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else value
    return value


def objects(value: Any) -> list[dict]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


Text = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "")]
Line = Annotated[str, BeforeValidator(lambda value: one_line(value) if isinstance(value, str) else "")]
Number = Annotated[Any, BeforeValidator(_scalar), WithJsonSchema({"type": "number"})]
Node = Annotated[Any, BeforeValidator(_whole), WithJsonSchema({"type": "integer"})]
Parent = Annotated[Any, BeforeValidator(_parent), WithJsonSchema({"type": "string"})]


# --- the models ---------------------------------------------------------------------------------


class Change(BaseModel):
    name: Line = ""
    value: Number = None


#: Unreadable is not "no changes": that would be a robustness-test that nobody asked for.
_NO_LIST = [{"name": "changes", "value": "must be a list of {name, value}"}]


def _change_list(value: Any) -> list[dict]:
    return value if isinstance(value, list) and len(objects(value)) == len(value) else _NO_LIST


class Candidate(BaseModel):
    slot: Node = Field(None, description="number of the draft that it overrides")
    parent: Parent = Field(None, description=f'a node number such as "3", or "{ROOT}"')
    changes: Annotated[list[Change], BeforeValidator(_change_list)] = Field(
        _NO_LIST, validate_default=True, description="against the parent; empty for a robustness-test"
    )
    strategy: Line = Field("", json_schema_extra={"enum": [s for s in STRATEGIES if s != ROOT]})
    hypothesis: Line = Field("", description="one line: what this should show")

    def proposal(self) -> Proposal:
        changes: dict[str, Any] = {}
        for name, value in ((c.name[:80], c.value) for c in self.changes):
            # A parameter with two values has none: the text is refused as a value, by name.
            changes[name] = f"given twice: {changes[name]}, {value}" if name in changes else value
        return Proposal(self.parent, changes, self.strategy, self.hypothesis, slot=self.slot)


class Entry(BaseModel):
    node: Node = None
    activity: Line = Field("", description="one line on the dynamics, from figure and numbers")
    observation: Line = Field("", description="one line on the result")


class Answer(BaseModel):
    """All that an answer may hold; each tool asks for a part of it. Results are read before proposing."""

    log: Annotated[list[Entry], BeforeValidator(objects)] = Field([], description="one entry for each new node")
    chosen: Node = Field(None, description="the new node that this iteration continues with")
    reason: Line = Field("", description="one line: why, and the parent rule applied")
    proposals: Annotated[list[Candidate], BeforeValidator(lambda v: [p if isinstance(p, dict) else {} for p in v])]
    notes: Text = Field("", description="memory notes, or empty")
    block_summary: Line = Field("", description="one line: what worked and failed in this simulation")
    next_simulation: Any = None
    edit_old: Text = Field("", description="exact text between the markers to replace; empty: no edit")
    edit_new: Text = Field("", description="its replacement; empty together with edit_old")
    edit_reason: Line = Field("", description="why this edit, or why no changes are needed, by what was measured")

    def step(self, context: Context) -> Step:
        entries = [e for e in self.log if type(e.node) is int]
        edit = ProtocolEdit(self.edit_old, self.edit_new, self.edit_reason)
        simulation = _simulation(self.next_simulation, context)
        wanted = (
            context.experiment.search.simulation_ranges if context.is_block_end and context.next_opens_block else ()
        )
        return Step(
            tuple(p.proposal() for p in self.proposals),
            chosen=self.chosen,
            reason=self.reason,
            activity={e.node: e.activity for e in entries},
            observation={e.node: e.observation for e in entries},
            notes=self.notes,
            block_summary=self.block_summary,
            next_simulation=simulation,
            protocol_edit=edit if context.is_block_end else None,
            warnings=tuple(
                Problem("next_simulation", f"{name} is missing, every field is wanted", remedy="it keeps its value")
                for name in wanted
                if name not in simulation
            ),
        )


def _simulation(given: Any, context: Context) -> dict[str, Any]:
    """The next simulation; where no block follows there is none, whatever the schema made the model write."""
    if not (context.is_block_end and context.next_opens_block):
        return {}
    if not isinstance(given, dict):
        return {"next_simulation": "must be an object"}
    out, spans = {}, context.experiment.search.simulation_ranges
    for name, value in list(given.items())[:50]:
        name, value = one_line(name, 80), _scalar(value)
        with contextlib.suppress(KeyError, ValueError):  # the validation reports them
            value = coerce(spans[name], value)  # 64000.0 and 64000 are one simulation, with one recording
        out[name] = value
    return out


_FIELDS = list(Answer.model_fields)
#: Tool -> (its description, the fields that it asks for).
TOOLS = {
    "propose": ("The first proposals of a run, before anything is trained.", _FIELDS[3:5]),
    "submit_step": ("Read the new nodes, choose, propose the next iteration.", _FIELDS[:5]),
    "end_block": ("The same at the end of a block, with its duties.", _FIELDS),
}


# --- the tools ----------------------------------------------------------------------------------


def _json_type(span: Range) -> str:
    kinds = {type(v) for v in span.values or ()}
    return "string" if kinds == {str} else "integer" if span.scale == "int" or kinds == {int} else "number"


def _strict(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema as strict mode wants it: no references, titles or defaults, every field required and no others."""
    if isinstance(schema, list):
        return [_strict(s, definitions) for s in schema]
    if not isinstance(schema, dict):
        return schema
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    out = {k: _strict(v, definitions) for k, v in schema.items() if k not in ("title", "default", "$defs")}
    if out.get("type") == "object":
        out |= {"required": list(out["properties"]), "additionalProperties": False}
    return out


@functools.cache
def _answer_schema() -> dict[str, Any]:
    return Answer.model_json_schema()


def tools(experiment: Experiment, drafted: bool = False) -> list[dict[str, Any]]:
    """The three strict tools, the same bytes in every call of a run; the request names the one to call.

    **Arguments:** `drafted` is whether an optimiser fills the slots: a proposal names the one it overrides.
    """
    search = experiment.search
    simulation = {name: {"type": _json_type(span)} for name, span in sorted(search.simulation_ranges.items())}
    schema = copy.deepcopy(_answer_schema())
    definitions, properties = schema["$defs"], schema["properties"]
    definitions["Change"]["properties"]["name"]["enum"] = sorted(search.ranges)
    if not drafted:
        del definitions["Candidate"]["properties"]["slot"]
    properties["next_simulation"] = {"type": "object", "properties": simulation}
    schemas = {
        name: {"properties": {k: properties[k] for k in fields}, "required": fields, "type": "object"}
        for name, (_, fields) in TOOLS.items()
    }
    return [
        {"name": name, "description": TOOLS[name][0], "strict": True, "input_schema": _strict(wanted, definitions)}
        for name, wanted in schemas.items()
    ]


# --- reading ------------------------------------------------------------------------------------


def expected_tool(context: Context) -> str:
    if context.iter_in_block == 0:
        return "propose"
    return "end_block" if context.is_block_end else "submit_step"


def call_of(answer: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The input of the one tool call of an answer.

    **Raises:** `BadAnswer`, with the reason for the model, where there is no complete call of the tool.
    """
    stop = answer.get("stop_reason")
    if isinstance(stop, str) and stop in _STOPPED:
        raise BadAnswer([_STOPPED[stop]])
    calls = [b for b in objects(answer.get("content")) if b.get("type") == "tool_use"]
    if not calls:
        raise BadAnswer([f"there was no tool call (stop reason {one_line(str(stop), 40)}); call {wanted} once"])
    if len(calls) > 1:
        raise BadAnswer([f"there were {len(calls)} tool calls; call {wanted} once"])
    name, arguments = calls[0].get("name"), calls[0].get("input")
    if name != wanted:
        raise BadAnswer([f"the tool was {one_line(str(name), 40)!r}; this step needs {wanted}"])
    if not isinstance(arguments, dict):
        raise BadAnswer([f"the input of {wanted} was not an object"])
    if not isinstance(arguments.get("proposals"), list):
        raise BadAnswer(["`proposals` must be a list of objects"])
    return arguments


def read(answer: dict[str, Any], context: Context) -> Step:
    """The step that an answer describes, not yet validated.

    **Raises:** `BadAnswer` where nothing can be read.
    """
    wanted = expected_tool(context)
    given = call_of(answer, wanted)
    return Answer.model_validate({k: given[k] for k in TOOLS[wanted][1] if k in given}).step(context)
