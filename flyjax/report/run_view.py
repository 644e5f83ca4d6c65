"""What a report says about a run, gathered from its directory. Nothing here draws or writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from flyjax.config import Experiment, Range, read_yaml
from flyjax.report import tables
from flyjax.search import ranges as moves
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import Node, State, fold, objective_metric
from flyjax.search.llm.prices import NOT_REPORTED, dollars
from flyjax.search.policy import measures
from flyjax.utils.errors import UserError
from flyjax.utils.format import finite


@dataclass(frozen=True)
class Pool:
    """All trainings of one configuration in one simulation: nodes, and the objective of every seed."""

    nodes: tuple[Node, ...]
    trainings: tuple[dict[str, Any], ...]  # metrics, one per seed

    def stats(self, name: str) -> dict[str, float | int | None]:
        """n, mean, min, std and CV of a metric; std and CV None for fewer than two values."""
        values = [v for v in (finite(m.get(name)) for m in self.trainings) if v is not None]
        if not values:
            return {"n": 0, "mean": None, "min": None, "std": None, "cv": None}
        mean = sum(values) / len(values)
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        cv = std / abs(mean) if std is not None and mean else None
        return {"n": len(values), "mean": mean, "min": min(values), "std": std, "cv": cv}


@dataclass(frozen=True)
class Step:
    """How far a node went from its parent, in unit places of the ranges; None where that has no meaning."""

    node: Node
    size: float | None


class Run:
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
        return out if len(out) <= limit else out[:limit] + "\n… (cut here)\n"

    def events_named(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] in names]

    # --- the run as a whole ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self.state.experiment.get("name") or self.folder.resolve().name)

    @property
    def search(self) -> dict[str, Any]:
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
        """(finished | paused | running, why or since when)."""
        last = self.events[-1]
        if self.state.finished is not None:
            return "finished", self.state.finished
        if last["event"] == "run_paused":
            return "paused", str(last.get("reason") or "")
        return "running", "in progress when this page was drawn, or stopped: the same command resumes it"

    @property
    def proposer(self) -> str:
        """Who proposed: as each accepted step says, else as the run was started."""
        names = list(dict.fromkeys(str(e["by"]) for e in self.events_named("proposal") if e.get("by")))
        asked = (self.state.started or {}).get("proposer") or self.search.get("proposer") or "auto"
        return ", ".join(names) or str(asked)

    @property
    def asked(self) -> str:
        """The task in one sentence, from the experiment as it ran."""
        simulation, model, search = (self.state.experiment.get(k) or {} for k in ("simulation", "model", "search"))
        return (
            f"recover the circuit of extent {simulation.get('extent', '?')} "
            f"(ground truth: {simulation.get('parameters', '?')}) "
            f"with {model.get('variant', '?')}, width {model.get('width', '?')}; "
            f"blocks: {search.get('n_blocks', '?')}, iterations in each: {search.get('n_iter_block', '?')}, "
            f"candidates in each: {search.get('n_candidates', '?')}; "
            f"UCB with c = {search.get('ucb_c', '?')}, run seed {search.get('seed', '?')}"
        )

    @property
    def cost(self) -> str:
        spent = self.state.spent
        if not spent.calls:
            return f"$0 ({self.proposer})"
        calls = f"{spent.calls} call{'s' if spent.calls > 1 else ''}"
        if spent.unpriced_calls >= spent.calls:
            return f"{NOT_REPORTED} ({calls})"
        rest = f", {spent.unpriced_calls} of them {NOT_REPORTED}" if spent.unpriced_calls else ""
        return f"{dollars(spent.usd)} ({calls}{rest})"

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """Versions, devices, commit: whatever the run says of itself beside its experiment."""
        try:
            stated = read_yaml(self.text("config.yaml"))
        except yaml.YAMLError:
            stated = None
        beside = (
            {k: v for k, v in stated.items() if k not in Experiment.model_fields} if isinstance(stated, dict) else {}
        )
        own = {"schema", "event", "time", "name", "experiment", "protocol", "proposer", "stimulus_fallbacks"}
        out = {**{k: v for k, v in (self.state.started or {}).items() if k not in own}, **beside}
        inner = out.pop("made_with", None)
        return _flat({**out, **inner} if isinstance(inner, dict) else out)

    # --- nodes ----------------------------------------------------------------------------------

    @cached_property
    def per_seed(self) -> dict[int, list[dict[str, Any]]]:
        """Metrics of every training of a node."""
        out = {}
        for event in self.events_named("node_finished"):
            told = [m for m in event.get("per_seed") or [] if isinstance(m, dict)]
            out[event["node"]] = told or [event.get("metrics") or {}]
        return out

    @property
    def nodes(self) -> list[Node]:
        return sorted(self.state.nodes.values(), key=lambda n: n.id)

    def value(self, node: Node, name: str) -> float | None:
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
        return next(
            (self.state.nodes[i] for i in self.state.blocks[block].nodes if self.state.nodes[i].strategy == "root"),
            None,
        )

    # --- the space ------------------------------------------------------------------------------

    @cached_property
    def spans(self) -> dict[str, Range]:
        """Ranges of the tunable parameters, as the run's config states them."""
        out = {}
        for name, span in (self.search.get("ranges") or {}).items():
            try:
                out[name] = Range(**span)
            except (ValidationError, TypeError):
                continue
        return out

    @cached_property
    def varied(self) -> list[str]:
        """Parameters with more than one value among the nodes, the protocol's order first."""
        names = [*self.spans, *(k for n in self.nodes for k in n.config if k not in self.spans)]
        seen = {k: {json.dumps(n.config.get(k)) for n in self.nodes} for k in dict.fromkeys(names)}
        return [k for k, values in seen.items() if len(values) > 1]

    def noise_levels(self) -> list[float]:
        levels = (finite(n.config.get("noise_model_level")) for n in self.nodes)
        return sorted({v for v in levels if v is not None})

    def steps(self) -> list[Step]:
        """Step sizes of all nodes that changed something against their parent."""
        out = []
        for node in self.nodes:
            if node.strategy == "root":
                continue
            try:
                size = moves.distance(self.spans, node.config, tables.parent_config(self.state, node))
            except (KeyError, ValueError, TypeError, ZeroDivisionError):
                size = None
            out.append(Step(node, size if size is not None and math.isfinite(size) else None))
        return out

    def cells(self, parts: int = 4) -> int:
        """Distinct cells visited, every range cut into `parts`."""
        places = set()
        for node in self.nodes:
            try:
                unit = [moves.unit(span, node.config[name]) for name, span in self.spans.items()]
            except (KeyError, ValueError, TypeError, ZeroDivisionError):
                continue
            places.add(tuple(min(parts - 1, int(parts * u)) for u in unit))
        return len(places)

    def diversity(self) -> dict[str, Any]:
        """Unique configurations and cells, step sizes, parents, changes per step."""
        steps = [s.size for s in self.steps() if s.size]
        unique = {json.dumps(n.config, sort_keys=True) for n in self.nodes}
        changes = [len(n.changes) for n in self.nodes if n.changes]
        return {
            "nodes": len(self.nodes),
            "unique": len(unique),
            "cells": self.cells(),
            "parents": len({(n.block, n.parent) for n in self.nodes}),
            "median": float(np.median(steps)) if steps else None,
            "largest": max(steps, default=None),
            "changes": sum(changes) / len(changes) if changes else None,
        }

    # --- blocks ---------------------------------------------------------------------------------

    def fallbacks(self) -> list[dict[str, Any]]:
        """Answers that were refused, parts of steps that the rules replaced, parents that code set."""
        kinds = {
            "errors": "refused, asked again",
            "fallbacks": "replaced by the rules",
            "reversions": "parent set by the reversion check",
            "demoted": "principles that name fewer than 3 nodes, kept as open questions",
        }
        return [
            {
                "iteration": event.get("iteration"),
                "by": event.get("by", ""),
                "kind": kind,
                "lines": list(map(str, event[key])),
            }
            for event in self.events_named("proposal", "proposal_rejected")
            for key, kind in kinds.items()
            if event.get(key)
        ]


def _flat(value: dict[str, Any]) -> dict[str, str]:
    """Facts as one line each; what is grouped in the config is joined."""
    out: dict[str, str] = {}
    for key, item in list(value.items())[:60]:
        if isinstance(item, dict):
            item = ", ".join(f"{k} {v}" for k, v in list(item.items())[:40])
        elif isinstance(item, (list, tuple)):
            item = ", ".join(str(v) for v in item[:40])
        if item is not None and item != "":
            out[str(key).replace("_", " ")] = str(item)
    return out
