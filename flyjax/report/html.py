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

from flyjax.config import Range, Training
from flyjax.report import tables
from flyjax.report.run_view import Run
from flyjax.report.svg import charts, tree
from flyjax.search.journal.state import Node
from flyjax.search.policy import measures, ucb
from flyjax.search.proposals.types import STRATEGIES
from flyjax.search.run.user_files import pending_input
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration

NAME = "report.html"
TEMPLATES = Path(__file__).with_name("templates")

#: Nothing is loaded, and no script runs but the one of this digest.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; "
    "form-action 'none'; base-uri 'none'"
)

#: (column of nodes_table, heading, long name)
COLUMNS = (
    ("node", "node", "node"),
    ("block", "block", "block"),
    ("iteration", "iter", "iteration of the run"),
    ("parent", "parent", "parent"),
    ("strategy", "strategy", "strategy"),
    ("mutation", "mutation", "what differs from the parent"),
    ("connectivity_R2", "W R²", "connectivity_R2"),
    ("tau_R2", "τ R²", "tau_R2"),
    ("V_rest_R2", "V_rest R²", "V_rest_R2"),
    ("cluster_accuracy", "cluster", "cluster_accuracy"),
    ("test_R2", "test R²", "test_R2"),
    ("test_pearson", "test r", "test_pearson"),
    ("external_input_R2", "input R²", "external_input_R2"),
    ("final_loss", "loss", "final_loss"),
    ("reward", "reward", "objective, mean over the node's seeds"),
    ("reward_min", "min", "objective, minimum over the node's seeds"),
    ("reward_CV", "CV", "objective, coefficient of variation over the node's seeds"),
    ("UCB", "UCB", f"at the end of the node's block; {ucb.UCB_FORMULA}"),
    ("status", "status", "status"),
)
TEXT_COLUMNS = ("parent", "strategy", "mutation", "status")

#: Pixels of the long side: figures of the best nodes, and of all others.
LARGE, SMALL = 1600, 760
KEEP_BYTES = 300_000  # a large figure below this stays the file it is


def write_report(run_dir: str | Path) -> Path:
    """Draw `run_dir`/report.html from the run directory; gives its path.

    Works on a run of any state: going on, paused, finished, without a finished node, with failed
    nodes or missing figures. The page replaces an earlier one whole.

    **Raises:** `UserError` where there is no run, its journal is damaged, or the page cannot be written.
    """
    run = Run(run_dir)
    path = run.folder / NAME
    page = render(run)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room or check its permissions") from None
    return path


def render(run: Run) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        num=tables.number, fig=tables.figures, setting=tables.setting, short=lambda k: tables.SHORT.get(k, k)
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=POLICY.format(digest),
        **view(run),
    )


def view(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    state, noise = run.state, charts.NoiseScale(run.noise_levels())
    status, why = run.status
    best_of = {b: n for b in state.blocks if (n := measures.best_node(state, b)) is not None}
    return {
        "run": run,
        "state": state,
        "status": status,
        "status_why": why,
        "started": moment((state.started or {}).get("time")),
        "last": moment(state.last_time),
        "wall": duration(state.wall_s),
        "asked": run.asked,
        "tally": tally(run),
        "metrics": tables.METRICS,
        "best": headline(run),
        "noise_legend": noise.legend() if len(noise.levels) else Markup(""),
        "staircase": charts.staircase(run, noise),
        "trees": [(b, tree.block_tree(run, b.number)) for b in state.blocks.values()],
        "strategies": [(s, strategy_key(s)) for s in STRATEGIES if any(n.strategy == s for n in run.nodes)],
        "columns": COLUMNS,
        "text_columns": TEXT_COLUMNS,
        "rows": [
            {
                **row,
                "short": tables.mutation(state, state.nodes[row["node"]], short=True),
                "reasons": reasons(state.nodes[row["node"]]),
            }
            for row in tables.nodes_table(state)
        ],
        "cell": tables.cell,
        "landscapes": [(name, charts.landscape(run, name, noise)) for name in run.varied if run.nodes],
        "diversity": run.diversity(),
        "steps": charts.step_sizes(run),
        "repeated": [(p, p.stats(run.metric)) for p in run.pools if len(p.nodes) > 1],
        "best_of": [(state.blocks[b], n, pictures(run, n, LARGE)) for b, n in best_of.items()],
        "gallery": [(n, tables.mutation(state, n, short=True), pictures(run, n, SMALL)) for n in run.nodes],
        "blocks": [block_view(run, b) for b in state.blocks],
        "fallbacks": run.fallbacks(),
        "log": run.text("analysis.md"),
        "config": run.text("config.yaml"),
        "waiting": pending_input(run.folder, state).strip(),
        "stand_ins": (state.started or {}).get("stimulus_fallbacks") or {},
    }


def tally(run: Run) -> list[tuple[str, str]]:
    """Number and noun of the run's size."""
    nodes = run.nodes
    failed, running = (sum(n.status == s for n in nodes) for s in ("failed", "running"))
    beside = ", ".join(f"{k} {word}" for k, word in ((failed, "failed"), (running, "in training")) if k)
    planned = run.search.get("n_blocks")
    ended = sum(b.ended is not None for b in run.state.blocks.values())
    return [
        (str(len(nodes)), "node" + "s" * (len(nodes) != 1) + (f" ({beside})" if beside else "")),
        (str(len(run.state.iterations)), "iteration" + "s" * (len(run.state.iterations) != 1)),
        (f"{len(run.state.blocks)}" + (f" of {planned}" if planned else ""), f"blocks ({ended} complete)"),
        (duration(run.state.wall_s), "wall time"),
    ]


def headline(run: Run) -> dict[str, Any] | None:
    """The best node: its metrics beside its block's root, pooled over all nodes of its configuration."""
    node = run.best
    if node is None:
        return None
    pool, root = run.pool_of(node), run.root_of(node.block)
    names = dict.fromkeys([run.metric, *tables.METRICS])
    baseline = tables.root_config(run.state)
    settings = [
        {
            "name": k,
            "value": node.config.get(k),
            "root": baseline.get(k),
            "changed": k in baseline and baseline[k] != node.config.get(k),
            "range": extent(run.spans[k]) if k in run.spans else "",
        }
        for k in dict.fromkeys([*run.spans, *(k for k in node.config if k in Training.model_fields)])
        if k in node.config and (k in run.spans or baseline.get(k) != node.config[k])
    ]
    scalars = {k: v for k, v in (node.metrics or {}).items() if not isinstance(v, (dict, list))}
    return {
        "node": node,
        "root": root,
        "pool": pool,
        "rows": [
            {
                "name": k,
                "value": run.value(node, k),
                "root": run.value(root, k) if root else None,
                "pool": pool.stats(k) if pool else None,
                "reason": reasons(node).get(k, ""),
                "format": tables.figures if k == "final_loss" else tables.number,
            }
            for k in names
        ],
        "settings": settings,
        # Plain and refit values never share a table.
        "plain": {k: v for k, v in scalars.items() if "_refit" not in k},
        "refit": {k: v for k, v in scalars.items() if "_refit" in k},
        "reward": (pool.stats(run.metric) if pool else None),
    }


def extent(span: Range) -> str:
    """A range in few words."""
    if span.scale == "choice":
        return ", ".join(map(tables.setting, span.values))
    return f"{tables.setting(span.min)} to {tables.setting(span.max)}" + (", log" if span.scale == "log" else "")


def reasons(node: Node) -> dict[str, str]:
    """Why metrics of a node are null, by name."""
    told = (node.metrics or {}).get("reasons")
    return {str(k): str(v) for k, v in told.items()} if isinstance(told, dict) else {}


def block_view(run: Run, number: int) -> dict[str, Any]:
    """A block's simulation, measures, best values, summary and what became of the protocol."""
    block, nodes = run.state.blocks[number], run.state.block_nodes(number)
    best = measures.best_node(run.state, number)

    def top(name):
        values = [v for v in (run.value(n, name) for n in nodes) if v is not None]
        return max(values, default=None)

    ended = block.ended or {}
    edits = [e for e in run.state.edits if e.get("block") == number]
    made = [e for e in edits if e.get("by") != "user"]
    return {
        "block": block,
        "best": best,
        "top": {name: top(name) for name in ("connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2")},
        "measures": measures.measure(run.state, number),
        "noise_floor": measures.noise_floor(run.state, number),
        "summary": ended.get("summary") or "",
        "next": ended.get("next_simulation") or {},
        # Also an edit that brought no event: its reason says why nothing was changed.
        "reason": (ended.get("edit") or {}).get("reason") or "",
        "edits": [(e.get("by"), e.get("reason") or "", diff_lines(e.get("diff") or "")) for e in edits],
        "edited": bool(made),
    }


def diff_lines(text: str) -> list[tuple[str, str]]:
    """(kind, line) of a unified diff: add, del, hunk, file or same."""
    kinds = (("+++", "file"), ("---", "file"), ("@@", "hunk"), ("+", "add"), ("-", "del"))
    return [(next((k for start, k in kinds if line.startswith(start)), "same"), line) for line in text.splitlines()]


def strategy_key(strategy: str) -> Markup:
    """A small drawing of a strategy's shape for the legend."""
    return charts.svg(22, 22, tree.marker(strategy, 11.0, 11.0, 6.5, "node key"), label=strategy, class_="inline")


def pictures(run: Run, node: Node, side: int) -> list[tuple[str, str]]:
    """(name, data URI) of a node's figures, activity and recovery first; unreadable ones are left out."""
    folder = run.folder / "nodes" / f"{node.id:04d}" / "figures"
    order = {"recovery": 0, "activity": 1}
    paths = sorted(folder.glob("*.png"), key=lambda p: (order.get(p.stem, 2), p.stem)) if folder.is_dir() else []
    return [(p.stem, uri) for p in paths if (uri := data_uri(p, side)) is not None]


def data_uri(path: Path, side: int) -> str | None:
    """An image as a data URI, at most `side` pixels wide; None where it cannot be read."""
    try:
        told = path.stat()
    except OSError:
        return None
    return _encoded(str(path), side, told.st_mtime_ns, told.st_size)


# A loop draws its report after every iteration; figures, once written, stay as they are.
@functools.lru_cache(maxsize=2048)
def _encoded(path: str, side: int, modified: int, size: int) -> str | None:
    from PIL import Image

    try:
        raw = Path(path).read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            image.load()
            if side >= LARGE and image.width <= side and len(raw) <= KEEP_BYTES and image.format == "PNG":
                return "data:image/png;base64," + base64.b64encode(raw).decode("ascii")
            small = image.convert("RGB")
            small.thumbnail((side, side * 4), Image.Resampling.BICUBIC, reducing_gap=2.0)
            out = io.BytesIO()
            small.save(out, "WEBP", quality=82, method=1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def moment(seconds: float | None) -> str:
    """Unix seconds as a date in UTC."""
    if seconds is None:
        return "unknown"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
