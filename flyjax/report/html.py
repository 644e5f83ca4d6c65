"""The report of a run: one HTML page that carries everything it shows.

No network, no files beside it: images are data URIs, charts are inline SVG, and a content security
policy forbids every load and every script but the page's own. All texts of a run (a language model
wrote some of them) are escaped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from flyjax.config import Range, Training
from flyjax.report import svg, tables
from flyjax.report.run_view import RunView
from flyjax.search.journal.state import Node
from flyjax.search.policy import measures, ucb
from flyjax.search.proposals.types import STRATEGIES
from flyjax.search.run.user_files import pending_input
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, plural
from flyjax.utils.metric_names import NODE_TABLE, RECOVERY

NAME = "report.html"
TEMPLATES = Path(__file__).with_name("templates")

#: Nothing is loaded, and no script runs but the one of this digest.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; "
    "form-action 'none'; base-uri 'none'"
)

#: Heading and long name of the columns that are not called by their own name.
HEADINGS = {
    "iteration": ("iter", "iteration of the run"),
    "mutation": ("mutation", "what differs from the parent"),
    "connectivity_R2": ("W R²", "connectivity_R2"),
    "tau_R2": ("τ R²", "tau_R2"),
    "V_rest_R2": ("V_rest R²", "V_rest_R2"),
    "cluster_accuracy": ("cluster", "cluster_accuracy"),
    "test_R2": ("test R²", "test_R2"),
    "test_pearson": ("test r", "test_pearson"),
    "external_input_R2": ("input R²", "external_input_R2"),
    "final_loss": ("loss", "final_loss"),
    "reward": ("reward", "objective, mean over the node's seeds"),
    "reward_min": ("min", "objective, minimum over the node's seeds"),
    "reward_CV": ("CV", "objective, coefficient of variation over the node's seeds"),
    "UCB": ("UCB", f"at the end of the node's block; {ucb.UCB_FORMULA}"),
}
#: (column, heading, long name); the status cell also shows class and reason.
COLUMNS = [(c, *HEADINGS.get(c, (c, c))) for c in tables.COLUMNS if c not in ("seeds", "class", "reason")]
TEXT_COLUMNS = ("parent", "strategy", "mutation", "status")

#: Pixels of the long side: figures of the best nodes, and of all others.
LARGE, SMALL = 1600, 760
MAX_ORIGINAL_BYTES = 300_000  # a large figure below this is embedded unchanged


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir`/report.html, replacing an earlier page, and return its path.

    Works on a run in any state: in progress, paused, finished, without a finished node, with failed
    nodes or missing figures.

    **Raises:** `UserError` where there is no run, its journal is damaged, or the page cannot be written.
    """
    run = RunView(run_dir)
    path = run.folder / NAME
    page = render(run)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room or check its permissions") from None
    return path


def render(run: RunView) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        num=tables.format_score,
        setting=tables.format_setting,
        short=lambda name: tables.SHORT_NAMES.get(name, name),
        utc=_format_time,
        duration=duration,
        plural=plural,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=POLICY.format(digest),
        **page_content(run),
    )


def page_content(run: RunView) -> dict[str, Any]:
    """Everything that the template shows, by the names it uses."""
    state, noise = run.state, svg.NoiseScale(run.noise_levels())
    status, explanation = run.status
    best_of = {b: n for b in state.blocks if (n := measures.best_node(state, b)) is not None}
    mutations = {n.id: tables.describe_mutation(state, n, short=True) for n in run.nodes}
    rows = [
        {**row, "short": mutations[row["node"]], "reasons": _reasons(state.nodes[row["node"]])}
        for row in tables.nodes_table(state)
    ]
    return {
        "run": run,
        "state": state,
        "status": status,
        "explanation": explanation,
        "tally": _tally(run),
        "best": _best_node(run),
        "noise_legend": noise.legend() if len(noise.levels) else Markup(""),
        "staircase": svg.staircase(run, noise),
        "trees": [(b, svg.block_tree(run, b.number)) for b in state.blocks.values()],
        "strategies": [(s, _strategy_key(s)) for s in STRATEGIES if any(n.strategy == s for n in run.nodes)],
        "columns": COLUMNS,
        "text_columns": TEXT_COLUMNS,
        "ucb_formula": ucb.UCB_FORMULA,
        "rows": rows,
        "format_cell": tables.format_cell,
        "landscapes": [(name, svg.landscape(run, name, noise)) for name in run.varied],
        "diversity": run.diversity(),
        "steps": svg.step_sizes(run),
        "repeated": [(p, p.stats(run.metric)) for p in run.pools if len(p.nodes) > 1],
        "best_of": [(state.blocks[b], n, _pictures(run, n, LARGE)) for b, n in best_of.items()],
        "gallery": [(n, mutations[n.id], _pictures(run, n, SMALL)) for n in run.nodes],
        "blocks": [_block(run, b) for b in state.blocks],
        "corrections": run.corrections(),
        "log": run.text("analysis.md"),
        "config": run.text("config.yaml"),
        "pending": pending_input(run.folder, state).strip(),
        "replaced_stimuli": (state.started or {}).get("stimulus_fallbacks") or {},
    }


def _tally(run: RunView) -> list[tuple[str, str]]:
    """Number and noun of what the run consists of."""
    n_nodes, n_iterations, blocks = len(run.nodes), len(run.state.iterations), run.state.blocks
    counts = {
        word: sum(n.status == s for n in run.nodes) for s, word in (("failed", "failed"), ("running", "in training"))
    }
    details = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    planned = run.search.get("n_blocks")
    complete = sum(b.ended is not None for b in blocks.values())
    return [
        (str(n_nodes), f"node{'s' * (n_nodes != 1)}" + (f" ({details})" if details else "")),
        (str(n_iterations), f"iteration{'s' * (n_iterations != 1)}"),
        (f"{len(blocks)}" + (f" of {planned}" if planned else ""), f"blocks ({complete} complete)"),
        (duration(run.state.wall_s), "wall time"),
    ]


def _best_node(run: RunView) -> dict[str, Any] | None:
    """The best node: its metrics beside its block's root, pooled over all nodes of its configuration."""
    node = run.best
    if node is None:
        return None
    pool, root, baseline = run.pool_of(node), run.root_of(node.block), tables.root_config(run.state)
    names = dict.fromkeys([*run.search_ranges, *Training.model_fields])
    settings = [
        {
            "name": k,
            "value": node.config[k],
            "root": baseline.get(k),
            "changed": k in baseline and baseline[k] != node.config[k],
            "range": _describe_range(run.search_ranges[k]) if k in run.search_ranges else "",
        }
        for k in names
        if k in node.config and (k in run.search_ranges or baseline.get(k) != node.config[k])
    ]
    rows = [
        {
            "name": k,
            "value": run.value(node, k),
            "root": run.value(root, k) if root else None,
            "pool": pool.stats(k) if pool else None,
            "reason": _reasons(node).get(k, ""),
            "format": tables.format_quantity if k == "final_loss" else tables.format_score,
        }
        for k in dict.fromkeys([run.metric, *NODE_TABLE])
    ]
    scalars = {k: v for k, v in (node.metrics or {}).items() if not isinstance(v, (dict, list))}
    return {
        "node": node,
        "root": root,
        "pool": pool,
        "rows": rows,
        "settings": settings,
        # Plain and refitted values never share a table.
        "plain": {k: v for k, v in scalars.items() if "_refit" not in k},
        "refit": {k: v for k, v in scalars.items() if "_refit" in k},
    }


def _describe_range(span: Range) -> str:
    if span.scale == "choice":
        return ", ".join(map(tables.format_setting, span.values or ()))
    log = ", log" if span.scale == "log" else ""
    return f"{tables.format_setting(span.min)} to {tables.format_setting(span.max)}{log}"


def _reasons(node: Node) -> dict[str, str]:
    """Why metrics of a node are null, by name."""
    reasons = (node.metrics or {}).get("reasons")
    return {str(k): str(v) for k, v in reasons.items()} if isinstance(reasons, dict) else {}


def _block(run: RunView, number: int) -> dict[str, Any]:
    """A block's simulation, measures, best values, summary and edits of the protocol."""
    block, nodes = run.state.blocks[number], run.state.block_nodes(number)
    values = {k: [v for n in nodes if (v := run.value(n, k)) is not None] for k in (*RECOVERY, "test_R2")}
    ended = block.ended or {}
    edits = [e for e in run.state.edits if e.get("block") == number]
    going_on = number + 1 in run.state.blocks or run.state.finished is None
    return {
        "block": block,
        "best": measures.best_node(run.state, number),
        "best_values": {k: max(v, default=None) for k, v in values.items()},
        "measures": measures.measure(run.state, number),
        "noise_floor": measures.noise_floor(run.state, number),
        "summary": ended.get("summary") or "",
        "next": (ended.get("next_simulation") or {}) if going_on else {},
        # Also of an edit without an event: it explains why nothing was changed.
        "reason": (ended.get("edit") or {}).get("reason") or "",
        "edits": [(e.get("by"), e.get("reason") or "", _diff_lines(e.get("diff") or "")) for e in edits],
        "edited": any(e.get("by") != "user" for e in edits),
    }


def _diff_lines(text: str) -> list[tuple[str, str]]:
    """(kind, line) of a unified diff; kinds: add, del, hunk, file, same."""
    kinds = {"+++": "file", "---": "file", "@@": "hunk", "+": "add", "-": "del", "": "same"}
    return [(next(k for start, k in kinds.items() if line.startswith(start)), line) for line in text.splitlines()]


def _strategy_key(strategy: str) -> Markup:
    """A strategy's shape for the legend."""
    return svg.drawing(
        22, 22, svg.strategy_marker(strategy, 11.0, 11.0, 6.5, "node key"), label=strategy, class_="inline"
    )


def _pictures(run: RunView, node: Node, side: int) -> list[tuple[str, str]]:
    """(name, data URI) of a node's figures, recovery and activity first; unreadable ones are left out."""
    folder = run.folder / "nodes" / f"{node.id:04d}" / "figures"
    order = {"recovery": 0, "activity": 1}
    paths = sorted(folder.glob("*.png"), key=lambda p: (order.get(p.stem, 2), p.stem))
    return [(p.stem, uri) for p in paths if (uri := _data_uri(p, side)) is not None]


def _data_uri(path: Path, side: int) -> str | None:
    """An image as a data URI, at most `side` pixels wide; None where it cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _encode(path, side, stat.st_mtime_ns, stat.st_size)


# The report is written after every iteration, and figures do not change.
@functools.lru_cache(maxsize=2048)
def _encode(path: Path, side: int, modified: int, size: int) -> str | None:
    try:
        data, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            original = side >= LARGE and image.width <= side and len(data) <= MAX_ORIGINAL_BYTES
            if not original or image.format != "PNG":
                small = image.convert("RGB")
                small.thumbnail((side, side * 4), Image.Resampling.BICUBIC, reducing_gap=2.0)
                out = io.BytesIO()
                small.save(out, "WEBP", quality=82, method=1)
                data, kind = out.getvalue(), "webp"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def _format_time(seconds: float | None) -> str:
    """Unix seconds as a date in UTC."""
    if seconds is None:
        return "unknown"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
