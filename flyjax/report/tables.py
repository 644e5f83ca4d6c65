"""The nodes of a run as rows of a table, and how values are written in tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flyjax.search.journal.state import Node, State
from flyjax.search.policy import ucb
from flyjax.utils import format
from flyjax.utils.format import MISSING, finite
from flyjax.utils.metric_names import NODE_TABLE

#: Columns of the table of nodes.
COLUMNS = (
    *("node", "block", "iteration", "parent", "strategy", "mutation"),
    *NODE_TABLE,
    *("reward", "reward_min", "reward_CV", "seeds", "UCB", "class", "status", "reason"),
)
#: Short names of the settings with long ones, as in the log and in narrow tables.
SHORT_NAMES = {
    "learning_rate_W_start": "lr_W",
    "learning_rate_start": "lr",
    "learning_rate_embedding_start": "lr_emb",
    "noise_model_level": "noise",
    "data_augmentation_loop": "loop",
    "batch_size": "batch",
}


def format_score(value: Any, digits: int = 3) -> str:
    """A fraction such as R2 to `digits` decimals; a dash where there is no finite number."""
    value = finite(value)
    if value is None:
        return MISSING
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.{digits}g}"


def format_quantity(value: Any, digits: int = 3) -> str:
    """A quantity of any size to `digits` significant figures; a dash where there is no finite number."""
    value = finite(value)
    return MISSING if value is None else f"{value:.{digits}g}"


def format_setting(value: Any) -> str:
    """A value of a configuration, such as 4.23e-3 or 0.02."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        mantissa, _, power = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.6g}"


def format_cell(column: str, value: Any) -> str:
    """A value of any column of a table."""
    if value is None:
        return MISSING
    if column == "final_loss":
        return format_quantity(value)
    return format_score(value) if isinstance(value, float) else str(value)


def markdown_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """A pipe table of rows of values."""
    return format.markdown_table(columns, [[format_cell(c, row.get(c)) for c in columns] for row in rows])


def root_config(state: State) -> dict[str, Any]:
    """The baseline: the training section of the run's experiment."""
    return state.experiment.get("training") or {}


def parent_config(state: State, node: Node) -> dict[str, Any]:
    """The configuration that a node's changes refer to."""
    parent = state.nodes.get(node.parent) if isinstance(node.parent, int) else None
    return parent.config if parent else root_config(state)


def changed_settings(state: State, node: Node) -> dict[str, tuple[Any, Any]]:
    """(old, new) of every setting that differs from the parent's."""
    before = parent_config(state, node)
    return {k: (before[k], v) for k, v in node.config.items() if k in before and before[k] != v}


def describe_mutation(state: State, node: Node, short: bool = False) -> str:
    """`name: old -> new` for every setting that differs from the parent's; `short`: by its short name."""
    if node.strategy == "root":
        return "root configuration"
    changed = changed_settings(state, node)
    if not changed:
        return "none (same configuration)"
    return ", ".join(
        f"{SHORT_NAMES.get(k, k) if short else k}: {format_setting(old)} -> {format_setting(new)}"
        for k, (old, new) in changed.items()
    )


def ucb_scores(state: State) -> dict[int, float]:
    """UCB of every trained node at the end of its block, or now where the block goes on."""
    c = state.experiment.get("search", {}).get("ucb_c", 1.414)
    return {s.node.id: s.ucb for block in state.blocks for s in ucb.scores(state, block, c)}


def nodes_table(state: State) -> list[dict[str, Any]]:
    """One row per node, by id. Keys are `COLUMNS`; a value that does not exist is None.

    `reward` is the objective's mean over the node's seeds, `reward_min` and `reward_CV` their minimum and
    coefficient of variation (None for a single seed). A failed node has no metrics, `status` failed and a `reason`.
    """
    scores = ucb_scores(state)
    return [
        {
            "node": node.id,
            "block": node.block,
            "iteration": node.iteration,
            "parent": node.parent,
            "strategy": node.strategy,
            "mutation": describe_mutation(state, node),
            **{name: finite((node.metrics or {}).get(name)) for name in NODE_TABLE},
            "reward": node.reward,
            "reward_min": node.spread.get("min"),
            "reward_CV": node.spread.get("cv"),
            "seeds": len(node.seeds),
            "UCB": scores.get(node.id),
            "class": node.classification if node.status != "running" else None,
            "status": node.status,
            "reason": node.reason or None,
        }
        for node in sorted(state.nodes.values(), key=lambda n: n.id)
    ]
