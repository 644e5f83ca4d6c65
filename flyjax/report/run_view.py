"""What a report shows of a run, collected from its directory. Nothing here draws or writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flyjax.config import Range, ranges
from flyjax.report import tables
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import Node, State, fold, objective_metric
from flyjax.search.llm.prices import NOT_REPORTED, dollars
from flyjax.search.policy import measures
from flyjax.utils.errors import UserError
from flyjax.utils.format import finite, plural

#: What a journal records of answers that were not used as given, and how the report names it.
CORRECTIONS = {
    "errors": "refused, another answer requested",
    "fallbacks": "replaced by the rules",
    "reversions": "parent set by the reversion check",
    "demoted": "principles that name fewer than 3 nodes, listed as open questions",
}
#: Errors of values that do not fit their range.
_MISFIT = (KeyError, ValueError, TypeError, ZeroDivisionError)


@dataclass(frozen=True)
class Pool:
    """All trainings of one configuration in one simulation: nodes, and the metrics of every seed."""

    nodes: tuple[Node, ...]
    trainings: tuple[dict[str, Any], ...]

    def stats(self, name: str) -> dict[str, float | int | None]:
        """n, mean, min, std and CV of a metric; std and CV are None for fewer than two values."""
        values = [v for m in self.trainings if (v := finite(m.get(name))) is not None]
        if not values:
            return {"n": 0, "mean": None, "min": None, "std": None, "cv": None}
        mean = sum(values) / len(values)
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        cv = std / abs(mean) if std is not None and mean else None
        return {"n": len(values), "mean": mean, "min": min(values), "std": std, "cv": cv}


class RunView:
    """A run directory, read once.

    **Raises:** `UserError` where there is no journal, it is damaged, or no run has begun in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.events = read_journal(self.folder)
        self.state: State = fold(self.events)
        if self.state.started is None:
            raise UserError(f"{self.folder}: the journal holds no run yet; start one with scripts/meta_loop.py")

    def text(self, name: str, limit: int = 2_000_000) -> str:
        """A text file of the run; empty where it is absent."""
        try:
            with open(self.folder / name, encoding="utf-8", errors="replace") as file:
                out = file.read(limit + 1)
        except OSError:
            return ""
        return out if len(out) <= limit else out[:limit] + "\n… (truncated)\n"

    def events_named(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] in names]

    @property
    def name(self) -> str:
        return str(self.state.experiment.get("name") or self.folder.resolve().name)

    @property
    def search(self) -> dict[str, Any]:
        """The search section of the experiment."""
        return self.state.experiment.get("search") or {}

    @property
    def objective(self) -> str:
        return self.state.objective

    @property
    def metric(self) -> str:
        """The metric that the search maximises."""
        return objective_metric(self.objective)

    @property
    def truth_metric(self) -> str:
        """The ground-truth metric that charts show, also where the search was blind to it."""
        return "connectivity_R2" if self.objective == "blind" else self.metric

    @property
    def status(self) -> tuple[str, str]:
        """(finished | paused | running, a reason or an explanation)."""
        last = self.events[-1]
        if self.state.finished is not None:
            return "finished", self.state.finished
        if last["event"] == "run_paused":
            return "paused", str(last.get("reason") or "")
        return "running", "in progress or stopped when this page was written; the same command continues it"

    @property
    def proposer(self) -> str:
        """The proposers of the accepted steps; before the first, the one that the run was started with."""
        names = list(dict.fromkeys(str(e["by"]) for e in self.events_named("proposal") if e.get("by")))
        configured = (self.state.started or {}).get("proposer") or self.search.get("proposer") or "auto"
        return ", ".join(names) or str(configured)

    @property
    def task(self) -> str:
        """The task in one sentence."""
        simulation, model, search = (self.state.experiment.get(k) or {} for k in ("simulation", "model", "search"))
        return (
            f"recover the circuit of extent {simulation.get('extent', '?')} "
            f"(ground truth: {simulation.get('parameters', '?')}) with a network of variant "
            f"{model.get('variant', '?')} and width {model.get('width', '?')}; {search.get('n_blocks', '?')} blocks of "
            f"{search.get('n_iter_block', '?')} iterations with {search.get('n_candidates', '?')} candidates each; "
            f"UCB with c = {search.get('ucb_c', '?')}; run seed {search.get('seed', '?')}"
        )

    @property
    def cost(self) -> str:
        """What the calls of a language model cost, as far as it was reported."""
        spent = self.state.spent
        if not spent.calls:
            return f"$0 ({self.proposer})"
        calls = plural(spent.calls, "call")
        if spent.unpriced_calls >= spent.calls:
            return f"{NOT_REPORTED} ({calls})"
        rest = f", {spent.unpriced_calls} of them {NOT_REPORTED}" if spent.unpriced_calls else ""
        return f"{dollars(spent.usd)} ({calls}{rest})"

    @property
    def made_with(self) -> dict[str, str]:
        """Versions, devices and commit of the newest session, one line of text each."""
        return {
            str(key).replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else str(value)
            for key, value in self.state.made_with.items()
            if value not in (None, "")
        }

    @cached_property
    def per_seed(self) -> dict[int, list[dict[str, Any]]]:
        """Metrics of every training of a node."""
        out = {}
        for event in self.events_named("node_finished"):
            trainings = [m for m in event.get("per_seed") or [] if isinstance(m, dict)]
            out[event["node"]] = trainings or [event.get("metrics") or {}]
        return out

    @property
    def nodes(self) -> list[Node]:
        return sorted(self.state.nodes.values(), key=lambda n: n.id)

    @cached_property
    def chosen(self) -> set[int]:
        """Ids of the nodes that the steps chose."""
        return {choice.chosen for choice in self.state.choices.values()}

    def value(self, node: Node, name: str) -> float | None:
        """A metric of a node; None where it has no finite value."""
        return finite((node.metrics or {}).get(name))

    @cached_property
    def best(self) -> Node | None:
        return measures.best_node(self.state)

    @cached_property
    def pools(self) -> list[Pool]:
        """Configurations with a finished node, pooled over nodes of the same simulation; most trainings first."""
        groups: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.status == "finished":
                simulation = self.state.blocks[node.block].simulation
                groups.setdefault(json.dumps([simulation, node.config], sort_keys=True), []).append(node)
        pools = [Pool(tuple(ns), tuple(m for n in ns for m in self.per_seed.get(n.id, []))) for ns in groups.values()]
        return sorted(pools, key=lambda p: (-len(p.trainings), p.nodes[0].id))

    def pool_of(self, node: Node) -> Pool | None:
        return next((p for p in self.pools if any(n.id == node.id for n in p.nodes)), None)

    def root_of(self, block: int) -> Node | None:
        """The block's baseline."""
        nodes = (self.state.nodes[i] for i in self.state.blocks[block].nodes)
        return next((n for n in nodes if n.strategy == "root"), None)

    @cached_property
    def search_ranges(self) -> dict[str, Range]:
        """Ranges of the tunable parameters by name, as the run's config gives them."""
        out = {}
        for name, span in (self.search.get("ranges") or {}).items():
            try:
                out[name] = Range(**span)
            except (UserError, TypeError):
                continue
        return out

    @cached_property
    def varied(self) -> list[str]:
        """Parameters with more than one value among the nodes, those with a range first."""
        names = dict.fromkeys([*self.search_ranges, *(k for n in self.nodes for k in n.config)])
        return [k for k in names if len({json.dumps(n.config.get(k)) for n in self.nodes}) > 1]

    def noise_levels(self) -> list[float]:
        """Values of noise_model_level among the nodes, ascending."""
        return sorted({v for n in self.nodes if (v := finite(n.config.get("noise_model_level"))) is not None})

    def step_sizes(self) -> list[tuple[Node, float | None]]:
        """Distance of every node but the roots from its parent, in unit places of the ranges; None where undefined."""
        out = []
        for node in self.nodes:
            if node.strategy == "root":
                continue
            try:
                size = ranges.distance(self.search_ranges, node.config, tables.parent_config(self.state, node))
            except _MISFIT:
                size = math.nan
            out.append((node, size if math.isfinite(size) else None))
        return out

    def n_cells(self, n_parts: int = 4) -> int:
        """Number of distinct cells that nodes lie in, every range divided into `n_parts`."""
        cells = set()
        for node in self.nodes:
            try:
                unit = [ranges.unit(span, node.config[name]) for name, span in self.search_ranges.items()]
            except _MISFIT:
                continue
            cells.add(tuple(min(n_parts - 1, int(n_parts * u)) for u in unit))
        return len(cells)

    def diversity(self) -> dict[str, Any]:
        """Unique configurations and cells, parents, step sizes, changes per step."""
        sizes = [size for _, size in self.step_sizes() if size]
        changes = [len(n.changes) for n in self.nodes if n.changes]
        return {
            "nodes": len(self.nodes),
            "unique": len({json.dumps(n.config, sort_keys=True) for n in self.nodes}),
            "cells": self.n_cells(),
            "parents": len({(n.block, n.parent) for n in self.nodes}),
            "median": float(np.median(sizes)) if sizes else None,
            "largest": max(sizes, default=None),
            "changes": sum(changes) / len(changes) if changes else None,
        }

    def corrections(self) -> list[dict[str, Any]]:
        """Answers that were refused, parts of steps that the rules replaced, parents that the code set."""
        return [
            {
                "iteration": event.get("iteration"),
                "by": event.get("by", ""),
                "kind": kind,
                "lines": list(map(str, event[key])),
            }
            for event in self.events_named("proposal", "proposal_rejected")
            for key, kind in CORRECTIONS.items()
            if event.get(key)
        ]
