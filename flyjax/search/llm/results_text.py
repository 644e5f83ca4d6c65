"""What a prompt tells of the nodes: the history of all, and the new ones with their metrics and the course
of their training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyjax.search.journal.state import Node
from flyjax.search.policy.measures import comparable_rewards
from flyjax.search.proposals.types import ROOT, Context
from flyjax.search.proposers.rules import observe
from flyjax.utils.format import finite

#: What a search may look at when its objective is `blind`: nothing that needs the ground truth.
BLIND_METRICS = ("test_R2", "test_pearson", "one_step_R2", "final_loss", "n_steps", "wall_s")
TABLE_METRICS = ("connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2")
#: Of about a hundred in metrics.json, those that a choice of training settings can rest on.
NODE_METRICS = (
    "connectivity_R2", "connectivity_R2_slope", "tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2", "test_pearson",
    "one_step_R2", "external_input_R2", "connectivity_R2_refit", "connectivity_R2_ceiling", "final_loss", "n_steps", "wall_s",
)  # fmt: skip
LEGEND = {
    "connectivity_R2_refit": "W by least squares on the learned functions",
    "connectivity_R2_ceiling": "W by least squares on the data: what any training could reach",
    "final_loss": "rises with noise_model_level, compare at equal levels",
    "wall_s": "of the program that trained the node together with others, in s",
}

OWN = ("", "llm")  # who proposed a node that is the model's own, or the block's root
MAX_WORDS = 400  # characters of what is told again of a block's end
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


def _against_root(context: Context, node: Node) -> dict[str, Any]:
    root = context.experiment.training
    names = context.experiment.search.ranges
    return {k: node.config[k] for k in names if k in node.config and node.config[k] != getattr(root, k)}


def is_blind(context: Context) -> bool:
    return context.experiment.search.objective == "blind"


def _seeds(node: Node) -> str:
    """How the seeds of a node differ; the mean alone hides that one may have failed."""
    if "std" not in node.spread:
        return ""
    return f", {node.spread['n']} seeds: worst {number(node.spread['min'])}, std {number(node.spread['std'])}"


def _table_row(context: Context, node: Node) -> str:
    names = [k for k in (BLIND_METRICS[:2] if is_blind(context) else TABLE_METRICS) if k in (node.metrics or {})]
    if node.status == "failed":
        result = f"failed: {node.reason[:120]}"
    else:
        result = (", ".join(f"{k}={number(node.metrics[k])}" for k in names) or node.status) + _seeds(node)
    config = pairs(_against_root(context, node)) or "root configuration"
    by = "" if node.by in OWN else f" (by {node.by})"
    return f"{node.id} | {node.block}.{node.iter_in_block} | {node.parent} | {node.strategy}{by} | {config} | {result}"


def _ended(context: Context, number: int) -> list[str]:
    """How a past block ended, in the model's own words where it had them: what its edits of the rules are judged by."""
    ended, edits = context.state.blocks[number].ended, context.state.edits
    if ended is None:
        return []
    made = [e for e in edits if e["block"] == number and e["by"] != "user"]
    reason = str((ended.get("edit") or {}).get("reason") or "")[:MAX_WORDS]
    edit = (
        f"protocol edited{' by the rules' if made[-1]['by'] == 'rules' else ''}: {reason}"
        if made
        else f"protocol not edited: {reason}"
    )
    return [f"-> end of block {number}: {str(ended['summary'])[:MAX_WORDS]}; {ended['measures']['text']}; {edit}"]


def _kept(context: Context) -> set[int]:
    """The nodes that the history has room for: the new ones, each block's root and best three, then this block's
    best, then the best of all."""
    state = context.state
    if len(state.nodes) <= MAX_ROWS:
        return set(state.nodes)

    worth = comparable_rewards(state.nodes.values())

    def best_first(nodes):
        return sorted(nodes, key=lambda n: (-worth[n.id], n.id))

    first = [state.nodes[i] for i in context.new_nodes]
    for block in state.blocks:
        nodes = state.block_nodes(block)
        first += [n for n in nodes if n.strategy == ROOT] + best_first(nodes)[:3]
    order = [*first, *best_first(state.block_nodes(context.block)), *best_first(state.nodes.values())]
    return set(list(dict.fromkeys(n.id for n in order))[:MAX_ROWS])


def history_text(context: Context) -> str:
    """Every node of the run, a line each; of a very large run those that matter most."""
    state = context.state
    if not state.nodes:
        return "History: no node yet."
    kept = _kept(context)
    what = "all nodes" if len(kept) == len(state.nodes) else f"{len(kept)} of {len(state.nodes)} nodes, the best"
    lines = [f"History of {what} (id | block.iteration | parent | strategy | config against the root | result):"]
    for block in state.blocks.values():
        simulation = {
            k: block.simulation[k] for k in context.experiment.search.simulation_ranges if k in block.simulation
        }
        lines.append(f"Block {block.number}, simulation: {pairs(simulation) or 'the only one'}")
        lines += [_table_row(context, state.nodes[i]) for i in block.nodes if i in kept]
        if left := sum(i not in kept for i in block.nodes):
            lines.append(f"(and {left} of lower R2)")
        lines += [
            f"-> iteration {state.iterations[i].iter_in_block}: chosen node {state.choices[i].chosen}"
            for i in block.iterations
            if i in state.choices
        ]
        lines += _ended(context, block.number)
    return "\n".join(lines)


def node_folder(context: Context, node: int) -> Path:
    return Path(context.run_dir) / "nodes" / f"{node:04d}"


def _course(context: Context, node: Node, lanes: dict[str, list[dict[str, float]]]) -> list[str]:
    """A line per seed: the loss along the way, and connectivity_R2 where it was read."""
    out = []
    for seed in node.seeds:
        entries = [e for e in lanes.get(f"node_{node.id:04d}/seed_{seed}", ()) if isinstance(e.get("step"), int)]
        losses = [(e["step"], e["loss"]) for e in entries if finite(e.get("loss")) is not None]
        if not losses:
            continue
        last = losses[-1][0]
        picked = dict(min(losses, key=lambda e, at=share * last: abs(e[0] - at)) for share in COURSE)
        told = "loss " + ", ".join(f"{number(loss)} ({step:,})" for step, loss in picked.items())
        r2 = [] if is_blind(context) else [e for e in entries if finite(e.get("connectivity_R2")) is not None]
        if r2:
            told += "; connectivity_R2 " + ", ".join(f"{number(e['connectivity_R2'])} ({e['step']:,})" for e in r2[-5:])
        out.append(f"  course (after steps): {told}")
    return out


def _lanes(context: Context) -> dict[str, list[dict[str, float]]]:
    from flyjax.training.loggers import HISTORY, read_history  # loads JAX

    try:
        return read_history(Path(context.run_dir) / HISTORY)
    except (OSError, ValueError):  # a search without trainings, or a file somebody else wrote
        return {}


def new_nodes_text(context: Context) -> str:
    """The nodes just trained: what was asked, what came out, how it came about."""
    if not context.new_nodes:
        return ""
    wanted = BLIND_METRICS if is_blind(context) else NODE_METRICS
    nodes, lanes = [context.state.nodes[i] for i in context.new_nodes], _lanes(context)
    lines = [f"New nodes: {', '.join(map(str, context.new_nodes))}"]
    for node in nodes:
        known = node.metrics or {}
        lines.append(
            f"Node {node.id}: parent={node.parent}, strategy={node.strategy}, changes: {pairs(node.changes) or 'none'}"
        )
        if node.hypothesis:
            lines.append(f"  hypothesis: {node.hypothesis}")
        lines.append(f"  result: {observe(context.state, node)}")
        lines.append(
            "  metrics: " + (", ".join(f"{k}={shown(known[k])}" for k in wanted if k in known) or "none") + _seeds(node)
        )
        reasons = known.get("reasons") or {}
        lines += [f"  {k} is null: {reasons[k]}" for k in wanted if k in reasons]
        if node.activity:
            lines.append(f"  activity: {node.activity}")
        lines += _course(context, node, lanes)
    told = [f"{k}: {text}" for k, text in LEGEND.items() if k in wanted and any(k in (n.metrics or {}) for n in nodes)]
    return "\n".join([*lines, *(["(" + "; ".join(told) + ")"] if told else [])])
