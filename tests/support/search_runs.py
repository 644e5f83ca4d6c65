"""Whole searches on the landscape of `search_landscape`: played, killed, compared."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.journal.state import fold
from flyjax.search.loop import SearchCallbacks, run_loop
from flyjax.search.proposers.rules import RulesProposer
from flyjax.search.protocol import revision
from flyjax.utils.run_directory import MARKER
from support.search_landscape import TEMPLATE, evaluate

#: Two blocks of three iterations of two candidates, each block with a simulation of its own.
SMALL: dict[str, Any] = {
    "n_candidates": 2,
    "n_iter_block": 3,
    "n_blocks": 2,
    "simulations": ({"visual_input_type": "DAVIS"}, {"delta_t": 0.01}),
}

#: A row of the strategy table that holds wherever anything was trained.
FORCE_BRANCH_ROW = "| 1+ consecutive successes (R2 >= 0.1) | **force-branch** | one of the top 3 UCB |"


class EagerRules(RulesProposer):
    """The rules, but a measure need not be beyond chance to edit the protocol: so short blocks have edits, too."""

    def step(self, context):
        with patch.object(revision, "CHANCE", 1.0):
            return super().step(context)


def go(run_dir, exp, proposer=None, trainer=evaluate, **kwargs):
    """Run, or go on with, a search; by default as the rules propose. Callbacks are given by name."""
    callbacks = SearchCallbacks(**{f.name: kwargs.pop(f.name) for f in fields(SearchCallbacks) if f.name in kwargs})
    proposer = proposer or EagerRules(exp)
    return run_loop(exp, run_dir, trainer, proposer, protocol_template=TEMPLATE, callbacks=callbacks, **kwargs)


def constant(value: float):
    """A trainer that measures the same for every node."""
    return lambda plan: {n.id: {"metrics": {"connectivity_R2": value}} for n in plan.nodes}


def facts(run_dir):
    """Everything a run decided, without times."""
    state = fold(read_journal(run_dir))
    ended = {b.number: b.ended and {k: v for k, v in b.ended.items() if k != "time"} for b in state.blocks.values()}
    edits = [{k: v for k, v in e.items() if k != "time"} for e in state.edits]
    return state.nodes, state.iterations, state.choices, state.protocol, state.notes, ended, edits, state.finished


def renderings(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run but its journal."""
    paths = [p for p in run_dir.rglob("*") if p.is_file() and p.name not in ("journal.jsonl", ".lock", MARKER)]
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in paths}


class Killed(BaseException):
    """The process is gone."""


def killed_after(monkeypatch, events: int, torn: int = 0) -> None:
    """The process dies when so many events are written, `torn` bytes into the next one."""
    append, count = Journal.append, [0]

    def dying(self, event, **fields):
        if count[0] == events:
            if torn:
                with open(self.path, "ab") as file:
                    file.write(json.dumps({"schema": 1, "event": event, "time": 1.0}).encode()[:torn])
            raise Killed
        count[0] += 1
        return append(self, event, **fields)

    monkeypatch.setattr(Journal, "append", dying)


class Scripted:
    """Answers from a list, then as the rules; keeps every context that it was given."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.contexts = list(answers), []

    def step(self, context):
        self.contexts.append(context)
        step = EagerRules(context.experiment).step(replace(context, feedback=()))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return step if answer is None else answer(step) if callable(answer) else answer

    @property
    def instructions(self) -> list[str]:
        """The instructions of users that were given, one per call that had any."""
        return [c.user_input for c in self.contexts if c.user_input]


def propose(*proposals):
    """An answer with these proposals, a price and a raw text."""
    return lambda step: replace(
        step, proposals=proposals, usage={"usd": 0.25, "input_tokens": 10}, raw={"answer": "this"}
    )
