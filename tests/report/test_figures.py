"""The figures of nodes, sweeps and runs: small files whatever the network did, and nothing covered."""

import csv
import dataclasses
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.markers import MarkerStyle
from matplotlib.text import Text
from PIL import Image
from support.made_up_run import Maker, metrics, two_blocks
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.recovery import evaluate
from flyjax.report.figures import contents, node, run, sweep, traces
from flyjax.report.figures.exports import also_as
from flyjax.report.figures.style import GROUPS, MAX_TYPES, group_of, type_order
from flyjax.report.html import environment
from flyjax.search.proposals.types import STRATEGIES

FIGURES = {
    "activity": (traces.activity_figure, contents.activity, 1),
    "recovery": (node.recovery_figure, contents.recovery, 0),
    "functions": (node.functions_figure, contents.functions, 0),
    "embedding": (node.embedding_figure, contents.embedding, 0),
}


def drawn(name, path, evaluation, both):
    """A figure of an evaluation."""
    draw, content, which = FIGURES[name]
    return draw(path, content(evaluation, both[which]))


@pytest.fixture(scope="module")
def both():
    return recordings()


def evaluated(both, drift=0.0):
    learner = TrueLearner(both[0].connectome, drift=drift)
    result = evaluate(learner, learner.params(both[0]), *both, with_refit=False, with_ceiling=False)
    embedding = np.random.default_rng(0).normal(size=(both[0].connectome.n_neurons, 2)).astype(np.float32)
    return dataclasses.replace(result, embedding=embedding)


@pytest.fixture(scope="module")
def good(both):
    return evaluated(both)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_small_and_not_blank(name, good, both, tmp_path):
    path = drawn(name, tmp_path / "figures" / f"{name}.png", good, both)
    assert path.stat().st_size < 120_000
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] > 400 and (image < 200).any(axis=2).mean() > 0.002


@pytest.mark.parametrize("name", FIGURES)
def test_figures_export_the_values_they_show(name, good, both, tmp_path):
    with also_as(["pdf"]):
        drawn(name, tmp_path / f"{name}.png", good, both)
    assert (tmp_path / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    with open(tmp_path / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = np.array([float(row["y"]) for row in rows])
    central = both[1].connectome.central
    expected = {
        "activity": good.rollout.voltage[: contents.N_FRAMES, central].ravel(),
        "recovery": np.asarray(good.estimate.tau),
        "functions": good.curves.update.ravel(),
        "embedding": good.embedding[:, 1],
    }[name]
    assert np.isin(expected.astype(np.float32), shown.astype(np.float32)).all()


def test_truth_and_rollout_are_both_drawn(good, both, tmp_path):
    """A rollout that leaves the truth changes the picture; the truth alone would not."""
    moved = dataclasses.replace(good.rollout, voltage=good.rollout.voltage + np.float32(0.1))
    same = np.asarray(Image.open(drawn("activity", tmp_path / "a.png", good, both)).convert("RGB"))
    other = dataclasses.replace(good, rollout=moved)
    shifted = np.asarray(Image.open(drawn("activity", tmp_path / "b.png", other, both)).convert("RGB"))
    assert (same != shifted).any(axis=2).mean() > 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_a_diverged_network_is_drawn(name, both, tmp_path):
    diverged = evaluated(both, drift=500.0)
    assert diverged.rollout.divergence_frame is not None
    nan = np.float32("nan")
    estimate = diverged.estimate._replace(
        weight=diverged.estimate.weight * nan, v_rest=np.where(np.arange(443) % 2, nan, diverged.estimate.v_rest)
    )
    broken = dataclasses.replace(diverged, estimate=estimate, embedding=diverged.embedding * nan)
    assert drawn(name, tmp_path / f"{name}.png", broken, both).stat().st_size > 2000


def test_embeddings_of_other_sizes(good, both, tmp_path):
    for d in (1, 5):
        other = dataclasses.replace(good, embedding=np.random.default_rng(d).normal(size=(443, d)))
        assert drawn("embedding", tmp_path / f"{d}.png", other, both).exists()


def test_figures_of_many_types_show_some_of_each_part():
    shown = type_order(tuple(f"X{k}" for k in range(8000)))
    assert len(set(shown)) == MAX_TYPES and {shown[0], shown[-1]} == {0, 7999}


def test_every_type_has_its_group(both):
    names = both[0].connectome.cell_types
    label = {name: GROUPS[group_of(name)].name for name in names}
    assert label["R1"] == "photoreceptors" and label["Tm3"] == "transmedullary" and label["T4a"] == "T4, T5"
    assert label["T2a"] == "T1-T3" and label["Mi1"] == "medulla intrinsic" and label["Lawf2"] == "lamina"
    assert label["TmY5a"] == "transmedullary" and label["CT1(M10)"] == "lamina"


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, instead of files."""
    drawn = []

    def keep(figure, path, *arguments, **options):
        FigureCanvasAgg(figure).draw()
        drawn.append(figure)
        return path

    for module in (node, sweep, run, traces):
        monkeypatch.setattr(module, "save_png", keep)
    return drawn


def test_an_error_of_the_rollout_looks_the_same_in_every_row(good, both, tmp_path, figures):
    """A quiet type's error is not magnified: R2 pools all neurons."""
    true = both[1].voltage[: len(good.rollout.voltage)]
    shifted = dataclasses.replace(good.rollout, voltage=true + np.float32(0.02))
    drawn("activity", tmp_path / "a.png", dataclasses.replace(good, rollout=shifted), both)
    distances = []
    for axes in figures[0].axes:
        lines = [line for line in axes.lines if len(line.get_ydata()) > 2]
        distances += [np.median(b.get_ydata() - a.get_ydata()) for a, b in zip(lines[::2], lines[1::2])]
    assert len(distances) == both[0].connectome.n_types
    np.testing.assert_allclose(distances, distances[0], rtol=1e-3)
    largest = np.ptp(true[: contents.N_FRAMES, both[1].connectome.central], axis=0).max()
    assert distances[0] == pytest.approx(0.02 / largest, rel=1e-3)


def test_no_text_of_the_recovery_lies_in_a_panel_and_units_are_named(good, both, tmp_path, figures):
    drawn("recovery", tmp_path / "r.png", good, both)
    (figure,) = figures
    for axes in figure.axes:
        assert not any(t.get_window_extent().overlaps(axes.get_window_extent()) for t in axes.texts if t.get_text())
        assert axes.get_xlabel() and axes.get_ylabel()
    assert "(s)" in figure.axes[2].get_xlabel() and "(s)" in figure.axes[2].get_ylabel()
    texts = [t for a in figure.axes for t in (*a.texts, a.xaxis.label, a.yaxis.label, a._left_title) if t.get_text()]
    boxes = [t.get_window_extent() for t in [*texts, *figure.texts]]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(0 <= b.x0 and b.x1 <= figure.bbox.x1 and 0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)


def test_names_in_the_embedding_cover_neither_points_nor_each_other(good, both, tmp_path, figures):
    c, rng = both[0].connectome, np.random.default_rng(1)
    clusters = rng.normal(size=(c.n_types, 2))[c.cell_type] + 0.05 * rng.normal(size=(c.n_neurons, 2))
    drawn("embedding", tmp_path / "e.png", dataclasses.replace(good, embedding=clusters), both)
    axes = figures[0].axes[0]
    boxes = [Text.get_window_extent(t) for t in axes.texts]
    assert len(boxes) > 0.6 * c.n_types
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = axes.transData.transform(clusters)
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_equal_settings_meet_in_one_place(tmp_path, figures):
    rows = [{"batch_size": k % 2 + 1, "lr": 10.0**-k, "connectivity_R2": 0.1 * k} for k in range(8)]
    sweep.parallel_figure(tmp_path / "p.png", rows, ["batch_size", "lr"], {})
    starts = {tuple(patch.get_path().vertices[0]) for patch in figures[0].axes[0].patches}
    assert starts == {(0.0, 0.25), (0.0, 0.75)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_has_one_symbol_in_report_and_picture(strategy):
    """The corners of both point the same way; a root is a ring in both."""
    charts, style = environment().get_template("charts.html").module, run.mark(strategy, 6)
    drawn = charts.marker("node", strategy, 0.0, 0.0, 1.0)
    assert ("ring" in drawn) == (style.get("markerfacecolor") == "white")
    if "polygon" not in drawn:
        assert style["marker"] == "o"
        return
    corners = np.array([p.split(",") for p in re.search('points="(.*?)"', drawn)[1].split()], float)
    marker = MarkerStyle(style["marker"])
    other = marker.get_path().transformed(marker.get_transform()).vertices[: len(corners)]
    report, picture = (np.sort(np.degrees(np.arctan2(*xy.T)).round() % 360) for xy in (corners * [1, -1], other))
    np.testing.assert_allclose(report, picture, atol=6)  # points of the report have one decimal


def test_the_legend_of_a_run_shows_the_symbols(tmp_path, figures):
    run.run_figure(tmp_path / "run.png", two_blocks(tmp_path / "run"))
    (legend,) = [a.get_legend() for f in figures[0].subfigs for a in f.axes if a.get_legend()]
    markers = {t.get_text(): line.get_marker() for t, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert markers["explore"] == (4, 0, 0) and markers["exploit"] == "o" and len(set(map(str, markers.values()))) == 5


def test_the_axis_of_few_nodes_names_nodes_only(tmp_path, figures):
    made = Maker(tmp_path / "run")
    made.train(1, 1, [("root", {}, "root"), ("root", {"batch_size": 2}, "exploit")], [metrics(0.5), metrics(0.6)])
    run.run_figure(tmp_path / "run.png", tmp_path / "run")
    ticks = figures[0].subfigs[1].axes[0].get_xticks()
    assert {1, 2} <= set(ticks) and all(tick == round(tick) for tick in ticks)
