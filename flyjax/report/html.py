"""The report of a run: one HTML page that carries everything it shows.

No network, no files beside it: images are data URIs, charts are inline SVG, and a content security
policy forbids every load and every script but the page's own. All texts of a run (a language model
wrote some of them) are escaped.
"""

import base64
import functools
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from flyjax.report import charts, landscape, map_use, tables, tree
from flyjax.report.run_view import RunView, node_of
from flyjax.search.confirmation import confirmed
from flyjax.search.journal.state import CONVERGED, FAILED, Node
from flyjax.search.policy import measures, ucb
from flyjax.search.policy.run_map import score_text
from flyjax.search.proposals.types import STRATEGIES
from flyjax.search.run.user_files import pending_input
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import MISSING, duration, finite, plural
from flyjax.utils.metric_names import NODE_TABLE, RECOVERY
from flyjax.utils.run_directory import refuse_links

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
#: Columns that are shown on request: with them the table is wider than a screen.
DETAIL_COLUMNS = (
    *("block", "iteration", "cluster_accuracy", "test_pearson", "external_input_R2", "final_loss"),
    *("reward_min", "reward_CV"),
)

#: Pixels of the long side: figures of the best nodes, and of all others.
LARGE, SMALL = 1600, 760
MAX_ORIGINAL_BYTES = 300_000  # a large figure below this is embedded unchanged


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir`/report.html, replacing an earlier page, and return its path.

    Works on a run in any state: in progress, paused, finished, without a finished node, with failed
    nodes or missing figures.

    **Raises:** `UserError` where there is no run, its journal is damaged, a link or a pipe is in it, or the page cannot
    be written.
    """
    refuse_links(run_dir)  # a pipe would be waited for
    run = RunView(run_dir)
    return _write(run.folder / NAME, render(run))


def _write(path: Path, page: str) -> Path:
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room or check its permissions") from None
    return path


@functools.cache
def environment() -> Environment:
    """The templates with their filters, all loaded at once: an update of flyjax must not reach a run in progress."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters.update(
        num=tables.format_score,
        setting=tables.format_setting,
        metric_of=lambda node, name: tables.format_cell(name, node and finite((node.metrics or {}).get(name))),
        short=lambda name: tables.SHORT_NAMES.get(name, name),
        utc=_format_time,
        duration=duration,
        plural=plural,
    )
    found.globals.update(
        format_cell=tables.format_cell,
        measures=measures,
        score_text=score_text,
        ucb_formula=ucb.UCB_FORMULA,
        strategies=STRATEGIES,
        columns=COLUMNS,
        text_columns=TEXT_COLUMNS,
        detail_columns=DETAIL_COLUMNS,
        node_metrics=NODE_TABLE,
        block_metrics=(*RECOVERY, "test_R2"),
        corners=tree.corners,
        draw_tree=tree.draw_tree,
        node_of=node_of,
        PlotArea=charts.PlotArea,
        ramp=charts.RAMP,
        CONVERGED=CONVERGED,
        FAILED=FAILED,
    )
    for name in found.list_templates(["html"]):
        found.get_template(name)
    return found


def render(run: RunView, version: str = "") -> str:
    """The page as text; `version`: of a page that is served, and loaded again when it has another one."""
    return _page("report.html", "connect-src 'self'; " if version else "", version=version, **_context(run))


def write_comparison(run_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Write a page with runs side by side, and return its path.

    **Raises:** `UserError` for fewer than two runs, one that cannot be read, or a path that cannot be written.
    """
    if len(run_dirs) < 2:
        raise UserError("--compare needs two run directories or more: report.py --compare runs/a runs/b")
    for folder in run_dirs:
        refuse_links(folder)
    return _write(Path(path), render_comparison([RunView(folder) for folder in run_dirs]))


def render_comparison(runs: Sequence[RunView]) -> str:
    """The page of a comparison as text."""
    values = [run.value(n, run.truth_metric) for run in runs for n in run.nodes]
    shared = {
        "score": charts.ScoreAxis(values),
        "noise": charts.NoiseScale(sorted({level for run in runs for level in run.noise_levels()})),
    }
    labels = [str(run.folder) for run in runs]
    side = environment().get_template("side.html")
    sides = [
        Markup(side.render(_context(run) | shared | {"prefix": f"{k}-", "label": label}))
        for k, (run, label) in enumerate(zip(runs, labels, strict=True), 1)
    ]
    bests = [run.best for run in runs]
    return _page(
        "compare.html",
        runs=runs,
        labels=labels,
        sides=sides,
        bests=bests,
        experiments=_differences([dict(_flat(run.state.experiment)) for run in runs]),
        best_configs=_differences([{} if best is None else best.config for best in bests]),
        prefix="",
        version="",
    )


def _differences(sections: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The names whose values differ between sections, with the values."""
    names = dict.fromkeys(name for section in sections for name in section)
    rows = [(name, [tables.format_setting(s[name]) if name in s else MISSING for s in sections]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of an experiment by their full name, such as `training.batch_size`."""
    for name, value in section.items():
        if isinstance(value, Mapping) and not prefix.startswith("search.ranges"):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@functools.cache
def _file(name: str) -> str:
    """The style sheet or the script."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _page(template: str, policy: str = "", **context: Any) -> str:
    """A page with its style sheet, its script and the policy that admits it."""
    script, css = _file("report.js"), _file("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment().get_template(template)
    return page.render(css=Markup(css), script=Markup(script), policy=policy + POLICY.format(digest), **context)


def _context(run: RunView) -> dict[str, Any]:
    """What the templates show of a run."""
    return dict(
        run=run,
        state=run.state,
        trained={n.id: n for n in run.state.all_nodes},
        prefix="",
        score=run.score_axis,
        noise=charts.NoiseScale(run.noise_levels()),
        root_config=tables.root_config(run.state),
        mutations={n.id: tables.describe_mutation(run.state, n, short=True) for n in run.nodes},
        rows=tables.nodes_table(run.state),
        ucb_scores=tables.ucb_scores(run.state),
        large=functools.partial(_pictures, run, side=LARGE),
        small=functools.partial(_pictures, run, side=SMALL),
        confirmed=confirmed(run.state),
        pending=pending_input(run.folder, run.state).strip(),
        landscape_maps=functools.partial(landscape.report_section, run.folder, run.search_ranges, run.truth_metric),
        map_use=functools.partial(map_use.report_section, run.state),
    )


def _pictures(run: RunView, node: Node, side: int) -> list[tuple[str, str]]:
    """(name, data URI) of a node's figures, recovery and activity first; unreadable ones are left out."""
    folder = run.folder / "nodes" / f"{node.id:04d}" / "figures"
    order = {"recovery": 0, "activity": 1}
    paths = sorted(folder.glob("*.png"), key=lambda p: (order.get(p.stem, 2), p.stem))
    return [(p.stem, uri) for p in paths if (uri := _data_uri(p, side, p.stat().st_mtime_ns)) is not None]


# The report is written after every iteration, and figures do not change.
@functools.lru_cache(maxsize=2048)
def _data_uri(path: Path, side: int, modified: int) -> str | None:
    """An image as a data URI, at most `side` pixels wide; None where it cannot be read."""
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
