"""The readable files of a run: renderings of the journal, rebuilt from it whenever it grows.

    analysis.md         the log, in the protocol's format        analysis.log      the newest nodes' metrics
    ucb_scores.txt      empty at block boundaries                memory.md         notes of the proposer
    config.yaml    the experiment, and the versions, devices and commit of the newest session
    protocol/block_NNN.md and .diff: the protocol after each block, and what changed

protocol.md itself is written by the session, which first reads what a user changed there.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from flyjax.config import dump_yaml
from flyjax.search.confirmation import summary_lines
from flyjax.search.journal.state import Node, State, objective_metric
from flyjax.search.policy.measures import best_node, noise_estimate, trained_iterations
from flyjax.search.policy.run_map import score_text
from flyjax.search.policy.ucb import ucb_lines
from flyjax.search.protocol.document import rules
from flyjax.utils import metric_names
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.format import finite

CONFIG = {
    "lr_W": "learning_rate_W_start",
    "lr": "learning_rate_start",
    "lr_emb": "learning_rate_embedding_start",
    "coeff_W_L1": "coeff_W_L1",
    "noise": "noise_model_level",
}
#: Mode/Strategy as the log format words them.
MODES = {
    "failure-probe": "failure-probe/boundary",
    "explore": "success-exploit/explore",
    "force-branch": "success-exploit/explore",
}


def number(value: Any) -> str:
    """A metric with three decimals; `null` where there is none."""
    value = finite(value)
    return "null" if value is None else f"{value:.3f}"


def setting(value: Any) -> str:
    """A parameter's value, short."""
    return f"{value:.6g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def config_line(config: dict[str, Any]) -> str:
    return ", ".join(f"{short}={setting(config[name])}" for short, name in CONFIG.items())


def mutation(state: State, node: Node) -> str:
    """`param: old -> new` for every change against the parent."""
    if isinstance(node.parent, int):
        old = state.nodes[node.parent].config
    else:
        old = state.experiment.get("training", {})
    changes = [f"{k}: {setting(old[k]) if k in old else '?'} -> {setting(v)}" for k, v in node.changes.items()]
    if changes:
        return ", ".join(changes)
    return "none (robustness-test)" if node.strategy == "robustness-test" else "none"


def entry(state: State, node: Node) -> str:
    """One node's log entry, exactly in the protocol's format."""
    metrics, choice = node.metrics or {}, state.choices[node.iteration]
    values = ", ".join(f"{name}={number(metrics.get(name))}" for name in metric_names.LOG)
    parents = choice.next_parents or (choice.chosen,)
    distinct = sorted(set(parents), key=lambda p: (-parents.count(p), str(p)))
    return (
        f"## Iter {node.id}: {node.classification}\n"
        f"Node: id={node.id}, parent={node.parent}\n"
        f"Mode/Strategy: {MODES.get(node.strategy, 'success-exploit/exploit')}\n"
        f"Config: {config_line(node.config)}\n"
        f"Metrics: {values}\n"
        f"Activity: {node.activity or 'not measured'}\n"
        f"Mutation: {mutation(state, node)}\n"
        f"Parent rule: {node.parent_rule or node.strategy}\n"
        f"Observation: {node.observation or node.reason or 'none'}\n"
        f"Next: parent={', '.join(map(str, distinct))}\n"
    )


def _simulation_line(simulation: dict[str, Any]) -> str:
    return ", ".join(f"{k}={setting(simulation.get(k))}" for k in ("visual_input_type", "n_frames", "delta_t"))


def block_summary(state: State, block: int) -> str:
    """The block's summary and the next simulation, exactly in the protocol's format; the documented edit after them."""
    info, nodes = state.blocks[block], state.block_nodes(block)
    best, ended = best_node(state, block), info.ended or {}

    def most(name):
        return number(max((v for n in nodes if (v := finite((n.metrics or {}).get(name))) is not None), default=None))

    optimum = config_line(best.config) if best else "none"
    text = (
        f"## Simulation Block {block} Summary (iters {info.nodes[0]}-{info.nodes[-1]})\n"
        f"Simulation: {_simulation_line(info.simulation)}\n"
        f"Best R2: {number(best.reward if best else None)} at iter {best.id if best else 'none'}\n"
        f"Best tau_R2: {most('tau_R2')}, V_rest_R2: {most('V_rest_R2')}, cluster_accuracy: {most('cluster_accuracy')}\n"
        f"Converged: {'Yes' if any(n.classification == 'converged' for n in nodes) else 'No'}\n"
        f"Observation: {ended['summary']}\n"
        f"Optimum training: {optimum}\n"
    )
    after = state.blocks.get(block + 1)
    if after is not None:
        text += (
            "\n--- NEW SIMULATION BLOCK ---\n"
            f"Next simulation: {_simulation_line(after.simulation)}\n"
            f"Node: id={after.nodes[0]}, parent=root\n"
        )
    else:
        text += f"\nNo simulation block follows: {state.finished or 'the next one has not begun'}\n"
    floor, freedom = noise_estimate(state, block)
    measured = "noise floor not measured (no repetition)"
    if floor is not None:
        measured = f"noise floor {floor:.3f} ({freedom} repetition{'' if freedom == 1 else 's'})"
    measures = ended.get("measures", {}).get("text", "not kept")
    text += f"\n### Protocol edit after block {block}\nMeasures: {measures}; {measured}\n"
    edit, made = ended["edit"], next((e for e in state.edits if e["block"] == block and e["by"] != "user"), None)
    if made:
        text += f"Changed: {made['reason']}\nBy: {made['by']}\n{_fenced(made['diff'])}"
    else:
        reason = edit.get("reason", "")
        text += (
            f"{reason}\n"
            if edit.get("refused") or reason.lower().startswith("no changes needed")
            else f"No changes needed: {reason}\n"
        )
    unread = rules(made["protocol"] if made else _version_at(state, block)).problems
    if unread:
        text += "Rows that code cannot follow, left to readers:\n" + "".join(f"- {line}\n" for line in unread)
    return text


def _fenced(diff: str) -> str:
    """A diff as a code block that nothing in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", diff)), default=0))
    return f"{fence}diff\n{diff}{fence}\n"


def analysis_md(state: State) -> str:
    """The whole log: an entry per node whose iteration had its step, summaries at block ends."""
    name = state.experiment.get("name", "run")
    r2 = "" if state.objective != "map" else "; the scores use connectivity_R2"
    parts = [f"# Log of {name}\n\nObjective (called R2 in scores): {state.objective}{r2}.\n"]
    for missing, used in ((state.started or {}).get("stimulus_fallbacks") or {}).items():
        parts.append(f"Stimulus {missing} is not on this machine: {used} stands in for it.\n")
    for block in sorted(state.blocks):
        for iteration in trained_iterations(state, block):
            if iteration in state.choices:
                parts += [entry(state, state.nodes[i]) for i in state.iterations[iteration].nodes]
        if state.blocks[block].ended:
            parts.append(block_summary(state, block))
    for edit in state.edits:
        if edit["by"] == "user":
            parts.append(
                f"### Protocol edited by hand in block {edit['block']}\n{edit['reason']}\n{_fenced(edit['diff'])}"
            )
    if state.objective == "map":
        rows = [f"- after iteration {k}: {score_text(c.map_score)}\n" for k, c in sorted(state.choices.items())]
        parts.append("## Score of the map\n" + "".join(rows))
    if lines := summary_lines(state, objective_metric(state.objective)):
        after = max(state.confirmations) - 1
        parts.append(f"## Confirmation on fresh seeds, after iteration {after}\n" + "".join(f"- {x}\n" for x in lines))
    return "\n".join(parts)


def analysis_log(state: State) -> str:
    """`key: value` metrics of the newest trained iteration's nodes."""
    trained = [i for i in state.iterations if state.pending is None or i != state.pending.number]
    if not trained:
        return ""
    lines = [f"iteration: {max(trained)}"]
    for i in state.iterations[max(trained)].nodes:
        node = state.nodes[i]
        lines += ["", f"node: {i}", f"parent: {node.parent}", f"class: {node.classification}"]
        if node.status == "failed":
            lines.append(f"reason: {node.reason}")
        for name, value in (node.metrics or {}).items():
            if not isinstance(value, (dict, list)):
                lines.append(f"{name}: {'null' if value is None else setting(value)}")
        lines += [f"reward_{k}: {setting(v)}" for k, v in node.spread.items()]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=8)  # it seldom changes, and writing YAML is slower than all the rest
def _config_yaml(data: str) -> str:
    return dump_yaml(json.loads(data))


def write(run_dir: Path, state: State) -> None:
    """Bring every rendering up to date."""
    run_dir = Path(run_dir)
    files = {
        "config.yaml": _config_yaml(json.dumps({**state.experiment, "made_with": state.made_with})),
        "analysis.md": analysis_md(state),
        "analysis.log": analysis_log(state),
        "ucb_scores.txt": "".join(f"{line}\n" for line in ucb_lines(state, state.ucb_c)),
        "memory.md": f"{state.notes}\n" if state.notes else "",
    }
    texts = {e["block"]: e for e in state.edits if e["by"] != "user"}
    for block in sorted(state.blocks):
        if state.blocks[block].ended:
            edit = texts.get(block)
            files[f"protocol/block_{block:03d}.md"] = edit["protocol"] if edit else _version_at(state, block)
            files[f"protocol/block_{block:03d}.diff"] = edit["diff"] if edit else ""
    for name, text in files.items():
        write_atomic(run_dir / name, text)


def _version_at(state: State, block: int) -> str:
    """The protocol as it stood after a block that edited nothing."""
    before = [e["protocol"] for e in state.edits if e["block"] <= block]
    return before[-1] if before else state.protocols[0]
