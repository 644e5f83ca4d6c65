"""The nodes in the prompt: the history of all, and the new ones with their metrics and the course of their training."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from flyjax.search.journal.state import Node
from flyjax.search.policy.measures import comparable_rewards
from flyjax.search.proposals.types import ROOT, Context
from flyjax.search.proposers.rules import observe
from flyjax.utils import metric_names
from flyjax.utils.format import finite
from flyjax.utils.history import HISTORY, read_history

#: Of about a hundred in metrics.json, those that a choice of training settings can rest on.
NODE_METRICS = (
    "connectivity_R2", "connectivity_R2_slope", "tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2", "test_pearson",
    "one_step_R2", "external_input_R2", "connectivity_R2_refit", "connectivity_R2_ceiling", "final_loss", "n_steps",
    "wall_s",
)  # fmt: skip
LEGEND = {
    "connectivity_R2_refit": "W by least squares on the learned functions",
    "connectivity_R2_ceiling": "W by least squares on the data: what any training could reach",
    "final_loss": "rises with noise_model_level, compare at equal levels",
    "wall_s": "of the program that trained the node together with others, in s",
}

OWN = ("", "llm")  # proposers of the model's own nodes, and of roots
MAX_WORDS = 400  # characters of a text that is repeated from a block's end
MAX_ROWS = 400  # nodes in the history: 64 candidates an iteration would fill a context window
COURSE = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the steps


def number(value) -> str:
    value = finite(value)
    return "null" if value is None else f"{value:.4g}"


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else number(value)  # 16000, not 1.6e+04
    return "null" if value is None else str(value)


def pairs(mapping: dict[str, Any]) -> str:
    return ", ".join(f"{k}={shown(v)}" for k, v in mapping.items())


def is_blind(context: Context) -> bool:
    return context.experiment.search.objective == "blind"


def _seeds(node: Node) -> str:
    """How the seeds of a node differ; the mean alone hides that one may have failed."""
    if "std" not in node.spread:
        return ""
    return f", {node.spread['n']} seeds: worst {number(node.spread['min'])}, std {number(node.spread['std'])}"


def _table_row(context: Context, node: Node) -> str:
    metrics, wanted = node.metrics or {}, metric_names.PREDICTION if is_blind(context) else metric_names.HISTORY
    result = (", ".join(f"{k}={number(metrics[k])}" for k in wanted if k in metrics) or node.status) + _seeds(node)
    if node.status == "failed":
        result = f"failed: {node.reason[:120]}"
    root, names = context.experiment.training, context.experiment.search.ranges
    against_root = {k: node.config[k] for k in names if k in node.config and node.config[k] != getattr(root, k)}
    config = pairs(against_root) or "root configuration"
    by = "" if node.by in OWN else f" (by {node.by})"
    return f"{node.id} | {node.block}.{node.iter_in_block} | {node.parent} | {node.strategy}{by} | {config} | {result}"


def _block_end(context: Context, block: int) -> list[str]:
    """How a past block ended, in the model's own words if there are any: the result of its edits of the rules."""
    ended = context.state.blocks[block].ended
    if ended is None:
        return []
    made = [e["by"] for e in context.state.edits if e["block"] == block and e["by"] != "user"]
    edit = "protocol edited" + " by the rules" * (made[-1] == "rules") if made else "protocol not edited"
    reason = str((ended.get("edit") or {}).get("reason") or "")[:MAX_WORDS]
    summary, measures = str(ended["summary"])[:MAX_WORDS], ended["measures"]["text"]
    return [f"-> end of block {block}: {summary}; {measures}; {edit}: {reason}"]


def _listed(context: Context) -> set[int]:
    """The nodes that the history has room for: the new ones, the roots, the best of this block, the best of all."""
    nodes, rewards = context.state.nodes, comparable_rewards(context.state.nodes.values())

    def rank(node: Node):
        return node.id not in context.new_nodes, node.strategy != ROOT, node.block != context.block, -rewards[node.id]

    return {n.id for n in sorted(nodes.values(), key=rank)[:MAX_ROWS]}


def history_text(context: Context) -> str:
    """Every node of the run, a line each; of a very large run those that matter most."""
    state, listed = context.state, _listed(context)
    if not state.nodes:
        return "History: no node yet."
    what = "all nodes" if len(listed) == len(state.nodes) else f"{len(listed)} of {len(state.nodes)} nodes, the best"
    lines = [f"History of {what} (id | block.iteration | parent | strategy | config against the root | result):"]
    for block in state.blocks.values():
        names = [k for k in context.experiment.search.simulation_ranges if k in block.simulation]
        simulation = pairs({k: block.simulation[k] for k in names}) or "the only one"
        lines.append(f"Block {block.number}, simulation: {simulation}")
        lines += [_table_row(context, state.nodes[i]) for i in block.nodes if i in listed]
        if omitted := sum(i not in listed for i in block.nodes):
            lines.append(f"(and {omitted} of lower R2)")
        lines += [
            f"-> iteration {state.iterations[i].iter_in_block}: chosen node {state.choices[i].chosen}"
            for i in block.iterations
            if i in state.choices
        ]
        lines += _block_end(context, block.number)
    return "\n".join(lines)


def _course(context: Context, node: Node, lanes: dict[str, list[dict[str, float]]]) -> list[str]:
    """A line per seed: the loss along the way, and connectivity_R2 where it was evaluated."""
    out = []
    for seed in node.seeds:
        entries = [e for e in lanes.get(f"node_{node.id:04d}/seed_{seed}", ()) if isinstance(e.get("step"), int)]
        losses = [(e["step"], e["loss"]) for e in entries if finite(e.get("loss")) is not None]
        if not losses:
            continue
        steps = [step for step, _ in losses]
        picked = {losses[int(np.argmin(np.abs(np.subtract(steps, share * steps[-1]))))] for share in COURSE}
        line = "loss " + ", ".join(f"{number(loss)} ({step:,})" for step, loss in sorted(picked))
        r2 = [(e["connectivity_R2"], e["step"]) for e in entries if finite(e.get("connectivity_R2")) is not None]
        if r2 and not is_blind(context):
            line += "; connectivity_R2 " + ", ".join(f"{number(value)} ({step:,})" for value, step in r2[-5:])
        out.append(f"  course (after steps): {line}")
    return out


def new_nodes_text(context: Context) -> str:
    """The nodes just trained: what was asked, what came out, how it came about."""
    if not context.new_nodes:
        return ""
    lanes: dict[str, list[dict[str, float]]] = {}
    with contextlib.suppress(OSError, ValueError):  # a search without trainings, or a damaged file
        lanes = read_history(Path(context.run_dir) / HISTORY)
    wanted, shown_metrics = metric_names.BLIND if is_blind(context) else NODE_METRICS, set()
    lines = [f"New nodes: {', '.join(map(str, context.new_nodes))}"]
    for node in (context.state.nodes[i] for i in context.new_nodes):
        known = node.metrics or {}
        values, reasons = {k: known[k] for k in wanted if k in known}, known.get("reasons") or {}
        shown_metrics |= set(values)
        changes = pairs(node.changes) or "none"
        lines += [
            f"Node {node.id}: parent={node.parent}, strategy={node.strategy}, changes: {changes}",
            *([f"  hypothesis: {node.hypothesis}"] if node.hypothesis else []),
            f"  result: {observe(context.state, node)}",
            f"  metrics: {pairs(values) or 'none'}{_seeds(node)}",
            *(f"  {k} is null: {reasons[k]}" for k in wanted if k in reasons),
            *([f"  activity: {node.activity}"] if node.activity else []),
            *_course(context, node, lanes),
        ]
    legend = "; ".join(f"{k}: {text}" for k, text in LEGEND.items() if k in shown_metrics)
    return "\n".join([*lines, *([f"({legend})"] if legend else [])])
