"""What a report shows of a run, collected from its directory. Nothing here draws or writes."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flyjax.config import Range, Simulation, dump_yaml, parse_experiment, ranges
from flyjax.landscape.trainings import is_score
from flyjax.report import tables
from flyjax.report.charts import Axis, Curves, ScoreAxis
from flyjax.report.run_events import run_events
from flyjax.search.journal.state import Node, fold, objective_metric
from flyjax.search.llm.budget import NOT_REPORTED, dollars
from flyjax.search.policy import measures
from flyjax.utils.errors import UserError
from flyjax.utils.format import finite, plural
from flyjax.utils.history import HISTORY, read_history
from flyjax.utils.run_directory import JOURNAL

#: What a journal records of answers that were not used as given, and how the report names it.
CORRECTIONS = {
    "errors": "refused, another answer requested",
    "fallbacks": "replaced by the rules",
    "reversions": "parent set by the reversion check",
    "demoted": "principles that name fewer than 3 nodes, listed as open questions",
}


def node_of(lane: str) -> int | None:
    """The node of `node_0001/seed_7`; None for another name."""
    found = re.fullmatch(r"node_(\d+)/seed_\d+", lane)
    return int(found[1]) if found else None


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
        self.events = run_events(self.folder)
        self.state = fold(self.events)
        #: Whether a tree was searched; else the nodes are the configurations of a sweep.
        self.is_search = (self.folder / JOURNAL).is_file()
        if self.state.started is None:
            raise UserError(f"{self.folder}: the journal holds no run yet; start one with scripts/meta_loop.py")
        whole = parse_experiment(self.state.experiment, str(self.folder / JOURNAL))
        self.state = replace(self.state, experiment=whole.model_dump(mode="json"))
        self.name = str(self.state.experiment.get("name") or self.folder.resolve().name)
        self.search: dict[str, Any] = self.state.experiment.get("search") or {}
        #: The metric that the search maximises.
        self.metric = objective_metric(self.state.objective)
        #: The ground-truth metric that charts show, also where the search was blind to it.
        self.truth_metric = "connectivity_R2" if self.state.objective == "blind" else self.metric
        self.nodes = sorted(self.state.nodes.values(), key=lambda n: n.id)
        #: The file of a recording of one's own; without true weights, charts show the blind metric.
        self.recording: str | None = (self.state.experiment.get("simulation") or {}).get("recording")
        self.has_truth = not self.recording or any("connectivity_R2" in (n.metrics or {}) for n in self.nodes)
        if not self.has_truth:
            self.truth_metric = self.metric
        #: Where each node stands in a row of all of them, 0 to 1.
        self.place = {n.id: (k + 0.5) / len(self.nodes) for k, n in enumerate(self.nodes)}
        #: Ids of the nodes that the steps chose.
        self.chosen = {choice.chosen for choice in self.state.choices.values()}
        self.best = measures.best_node(self.state)
        self._sections: dict[int, str] = {}
        self.search_ranges = {name: Range(**span) for name, span in (self.search.get("ranges") or {}).items()}
        #: Metrics of every training of a node.
        self.per_seed = {
            event["node"]: event.get("per_seed") or [event.get("metrics") or {}]
            for event in self.events_named("node_finished")
        }

    def text(self, name: str, limit: int = 2_000_000) -> str:
        """A text file of the run; empty where it is absent."""
        try:
            with open(self.folder / name, encoding="utf-8", errors="replace") as file:
                out = file.read(limit + 1)
        except OSError:
            return ""
        return out if len(out) <= limit else out[:limit] + "\n… (truncated)\n"

    @cached_property
    def history(self) -> dict[str, list[dict[str, float]]]:
        """What was logged during training: by `node_0001/seed_7`, its entries in the order of steps."""
        path = self.folder / HISTORY
        return read_history(path) if path.is_file() else {}

    def curves(self, name: str, node: Node | None = None) -> Curves | None:
        """The curves of a logged quantity, of all trainings or of a node's."""
        return Curves.of(self.history if node is None else self._lanes.get(node.id, {}), name, is_score(name))

    @cached_property
    def _lanes(self) -> dict[int | None, dict[str, list[dict[str, float]]]]:
        """The history by node."""
        out: dict[int | None, dict[str, list[dict[str, float]]]] = {}
        for lane, entries in self.history.items():
            out.setdefault(node_of(lane), {})[lane] = entries
        return out

    def parallel(
        self, names: Sequence[str]
    ) -> tuple[dict[str, Axis | ScoreAxis], list[tuple[Node, list[tuple[float, float]]]]]:
        """Axes of settings, then of the ground-truth metric, and the places of every finished node on them."""
        axes: dict[str, Axis | ScoreAxis] = {name: self.axis(name) for name in names}
        axes[self.truth_metric] = self.score_axis
        lines = []
        for node in (n for n in self.ranked if n.status == "finished"):
            values = node.config | {self.truth_metric: self.value(node, self.truth_metric)}
            places = [axis.place(values.get(name)) for name, axis in axes.items()]
            lines.append((node, [(k / len(names), y) for k, y in enumerate(places) if y is not None]))
        return axes, [(node, points) for node, points in lines if points]

    @cached_property
    def score_axis(self) -> ScoreAxis:
        """The axis of the ground-truth metric, with every training."""
        trainings = [m.get(self.truth_metric) for per_seed in self.per_seed.values() for m in per_seed]
        return ScoreAxis(map(finite, trainings))

    def as_yaml(self, node: Node) -> str:
        """A node's configuration as an experiment file."""
        if node.block not in self._sections:  # the same for all nodes of a block
            simulation = self.state.blocks[node.block].simulation
            self._sections[node.block] = dump_yaml(
                {"simulation": simulation, "model": self.state.experiment.get("model") or {}}
            )
        head = dump_yaml({"name": f"{self.name}-node-{node.id}"})
        # The default ranges of a search need not hold this configuration.
        tail = dump_yaml({"training": node.config, "search": {"ranges": {}, "simulation_ranges": {}}})
        return head + self._sections[node.block] + tail

    def simulation_changes(
        self, simulation: Mapping[str, Any], before: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The settings of a simulation that differ from another one's, by default from the defaults."""
        before = Simulation().model_dump(mode="json") if before is None else before
        return {name: value for name, value in simulation.items() if name not in before or before[name] != value}

    def events_named(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] in names]

    @property
    def proposer(self) -> str:
        """The proposers of the accepted steps; before the first, the one that the run was started with."""
        names = list(dict.fromkeys(str(e["by"]) for e in self.events_named("proposal") if e.get("by")))
        configured = (self.state.started or {}).get("proposer") or self.search.get("proposer") or "auto"
        return ", ".join(names) or str(configured)

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

    def value(self, node: Node, name: str) -> float | None:
        """A metric of a node; None where it has no finite value."""
        return finite((node.metrics or {}).get(name))

    def seed_values(self, node: Node) -> list[float]:
        """The ground-truth metric of each of the node's seeds that has it."""
        return [v for m in self.per_seed.get(node.id, []) if (v := finite(m.get(self.truth_metric))) is not None]

    @property
    def ranked(self) -> list[Node]:
        """Nodes by the ground-truth metric, the best last."""
        return sorted(self.nodes, key=lambda n: self.value(n, self.truth_metric) or 0)

    def best_so_far(self, name: str) -> list[Node]:
        """Every node with a ground-truth metric whose `name` exceeds that of all nodes before it."""
        best, out = -math.inf, []
        for node in self.nodes:
            value = self.value(node, name)
            if value is not None and value > best and self.value(node, self.truth_metric) is not None:
                best = value
                out.append(node)
        return out

    def best_value(self, block: int, name: str) -> float | None:
        """The highest value of a metric in a block."""
        values = (self.value(n, name) for n in self.state.block_nodes(block))
        return max((v for v in values if v is not None), default=None)

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

    def pool_of(self, node: Node) -> Pool:
        """The pool of a finished node."""
        return next(p for p in self.pools if any(n.id == node.id for n in p.nodes))

    def root_of(self, block: int) -> Node | None:
        """The block's baseline."""
        nodes = (self.state.nodes[i] for i in self.state.blocks[block].nodes)
        return next((n for n in nodes if n.strategy == "root"), None)

    def axis(self, name: str) -> Axis:
        """The axis of a setting, with all its values."""
        return Axis([n.config.get(name) for n in self.nodes], self.search_ranges.get(name))

    @property
    def varied(self) -> list[str]:
        """Parameters with more than one value among the nodes, those with a range first."""
        names = dict.fromkeys([*self.search_ranges, *(k for n in self.nodes for k in n.config)])
        return [k for k in names if len({json.dumps(n.config.get(k)) for n in self.nodes}) > 1]

    def noise_levels(self) -> list[float]:
        """Values of noise_model_level among the nodes, ascending."""
        return sorted({v for n in self.nodes if (v := finite(n.config.get("noise_model_level"))) is not None})

    def _unit_place(self, config: dict[str, Any]) -> np.ndarray | None:
        """Where a configuration lies in the ranges, 0 to 1 each; None where a value does not fit its range."""
        try:
            return np.array([ranges.unit(span, config[name]) for name, span in self.search_ranges.items()])
        except (KeyError, ValueError, TypeError):
            return None

    def step_sizes(self) -> list[tuple[Node, float | None]]:
        """Distance of every node but the roots from its parent, in unit places of the ranges; None where undefined."""
        out = []
        for node in self.nodes:
            if node.strategy != "root":
                new, old = (self._unit_place(c) for c in (node.config, tables.parent_config(self.state, node)))
                out.append((node, None if new is None or old is None else float(np.linalg.norm(new - old))))
        return out

    def diversity(self, n_parts: int = 4) -> dict[str, Any]:
        """Unique configurations, cells (every range divided into `n_parts`), parents, step sizes, changes per step."""
        sizes = [size for _, size in self.step_sizes() if size]
        changes = [len(n.changes) for n in self.nodes if n.changes]
        places = [p for n in self.nodes if (p := self._unit_place(n.config)) is not None]
        return {
            "nodes": len(self.nodes),
            "unique": len({json.dumps(n.config, sort_keys=True) for n in self.nodes}),
            "cells": len({tuple(np.minimum(n_parts - 1, (n_parts * p).astype(int))) for p in places}),
            "parents": len({(n.block, n.parent) for n in self.nodes}),
            "median": float(np.median(sizes)) if sizes else None,
            "largest": max(sizes, default=None),
            "changes": sum(changes) / len(changes) if changes else None,
        }

    def corrections(self) -> list[tuple[dict[str, Any], str, list[Any]]]:
        """Answers that were refused, parts that the rules replaced, parents that the code set: event, what, why."""
        events = self.events_named("proposal", "proposal_rejected")
        return [(e, kind, e[key]) for e in events for key, kind in CORRECTIONS.items() if e.get(key)]
