"""Figures as vector graphics, and the numbers behind them."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from support.made_up_run import two_blocks

from flyjax.report.figures import exports, sweep
from flyjax.report.figures.hexmaps import draw_hexagons
from flyjax.report.figures.style import new_figure, save_png
from flyjax.report.figures.traces import Trace, draw_traces


def numbers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [float(row[name]) for row in rows]


def test_only_what_is_asked_for_is_written(tmp_path):
    figure = new_figure(2, 2)
    figure.subplots().plot([0, 1], [2, 3])
    save_png(figure, tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with exports.also_as(["svg", "pdf", "svg"]):
        save_png(figure, tmp_path / "a.png")
    save_png(figure, tmp_path / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.pdf", "a.png", "a.svg", "b.png"]
    assert (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF" and "<svg" in (tmp_path / "a.svg").read_text()


def test_the_numbers_are_those_that_were_drawn(tmp_path):
    figure = new_figure(4, 4)
    left, right = figure.subplots(1, 2)
    left.set(title="left", xlabel="time (s)", ylabel="v")
    left.plot([0.0, 0.5], [1 / 3, 2.0], label="true")
    left.axhline(0.1)
    right.scatter([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], c=[0.1, 0.2, 0.3])
    right.imshow(np.array([[1.0, 2.0], [3.0, 4.0]]), extent=(0, 4, 0, 2))
    right.barh([0, 1], [0.25, 0.75])
    with exports.also_as(["svg"]):
        save_png(figure, tmp_path / "a.png")
    rows = numbers(tmp_path / "a.csv")
    line = [r for r in rows if r["kind"] == "line"]
    assert [(r["panel"], r["x_axis"], r["y_axis"], r["series"]) for r in line] == [
        ("left", "time (s)", "v", "true")
    ] * 2
    assert column(line, "x") == [0.0, 0.5] and column(line, "y") == [1 / 3, 2.0]
    points = [r for r in rows if r["kind"] == "points"]
    assert column(points, "x") == [1, 2, 3] and column(points, "value") == [0.1, 0.2, 0.3]
    pixels = [r for r in rows if r["kind"] == "pixel"]
    assert [column(pixels, name) for name in ("x", "y", "value")] == [[1, 3, 1, 3], [1.5, 1.5, 0.5, 0.5], [1, 2, 3, 4]]
    assert column([r for r in rows if r["kind"] == "bar"], "x") == [0.25, 0.75]


def test_traces_and_hexagons_have_their_values_not_their_places(tmp_path):
    seconds, voltage = np.arange(3) * 0.02, np.array([[0.1, 5.0], [0.3, 6.0], [0.2, 4.0]])
    figure = draw_traces(seconds, ["L1", "T4a"], [Trace(voltage, 1.0, name="true")], np.zeros(3), smallest=1e-4)
    rows = list(exports.figure_numbers(figure))
    assert [r["y"] for r in rows if r["series"] == "T4a, true"] == [5.0, 6.0, 4.0]
    axes = new_figure(2, 2).subplots()
    columns = np.array([[0, 0], [1, 0]])
    draw_hexagons(axes, columns, np.array([0.25, -3.0]), colours="viridis", low=0)
    cells = [r for r in exports.figure_numbers(axes.figure) if r["kind"] == "cells"]
    assert [r["value"] for r in cells] == [0.25, -3.0]
    axes.add_collection(PolyCollection([[(0, 0), (1, 0), (1, 1)]]))
    assert any(r["kind"] == "shape" for r in exports.figure_numbers(axes.figure))


def test_a_figure_is_the_same_file_again(tmp_path):
    rows = [{"node": k, "batch_size": k, "connectivity_R2": 0.3 * k, "final_loss": 1.0 / k} for k in (1, 2, 3)]
    with exports.also_as(["svg", "pdf"]):
        for name in ("a", "b"):
            sweep.parallel_figure(tmp_path / f"{name}.png", rows, ["batch_size"], {})
    for suffix in ("svg", "pdf", "csv"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("asked, code", [("svg", 0), ("gif", 2)])
def test_the_option_of_the_scripts(tmp_path, root, asked, code):
    run = two_blocks(tmp_path / "run")
    script = [sys.executable, str(root / "scripts" / "report.py"), str(run), "--tree", str(tmp_path / "tree.png")]
    done = subprocess.run([*script, "--figures", asked], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "tree.svg").exists() == (tmp_path / "tree.csv").exists() == (code == 0)
