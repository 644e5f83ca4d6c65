"""Every figure also as vector graphics, with the numbers behind it as CSV."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib
import numpy as np

from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.format import csv_table

FORMATS = ("svg", "pdf")
COLUMNS = ("panel", "x_axis", "y_axis", "kind", "series", "x", "y", "value")
_formats: ContextVar[tuple[str, ...]] = ContextVar("formats", default=())
#: Names and values of what is drawn elsewhere than at its value: an offset trace, a coloured hexagon.
_noted: WeakKeyDictionary[Any, tuple[str, np.ndarray]] = WeakKeyDictionary()


@contextmanager
def also_as(names: Sequence[str]) -> Iterator[None]:
    """Within the context every figure is written in these formats (svg, pdf), too, its numbers as CSV beside it."""
    token = _formats.set(tuple(dict.fromkeys(names)))
    try:
        yield
    finally:
        _formats.reset(token)


def formats() -> tuple[str, ...]:
    """The formats that are asked for here."""
    return _formats.get()


def note(artist: Any, series: str, values: np.ndarray) -> None:
    """Give the name and the values of an artist whose place in the figure is not its value."""
    _noted[artist] = series, np.asarray(values)


def export(figure: Any, path: Path) -> None:
    """Write `figure` beside `path` in the formats that are asked for."""
    for name in formats():
        metadata = {"CreationDate" if name == "pdf" else "Date": None}  # the same figure is the same file
        with matplotlib.rc_context({"svg.hashsalt": "flyjax", "svg.fonttype": "none", "pdf.fonttype": 42}):
            figure.savefig(path.with_suffix(f".{name}"), metadata=metadata)
    if formats():
        write_atomic(path.with_suffix(".csv"), csv_table(COLUMNS, figure_numbers(figure)))


def figure_numbers(figure: Any) -> Iterator[dict[str, Any]]:
    """The numbers of a figure, in the units of its axes: a row per point of a line, mark, bar, hexagon or pixel."""
    for number, axes in enumerate((a for a in figure.axes if a.get_label() != "<colorbar>"), 1):
        panel = axes.get_title("left") or axes.get_title() or f"panel {number}"
        place = {"panel": panel, "x_axis": axes.get_xlabel(), "y_axis": axes.get_ylabel()}
        for kind, artist, points, values in _artists(axes):
            series, noted = _noted.get(artist, ("", None))
            label = str(artist.get_label())
            series = series or ("" if label.startswith("_") else label)
            if noted is not None and kind == "line":
                points = np.column_stack([points[:, 0], noted])
            values = values if noted is None or kind == "line" else noted
            for k, (x, y) in enumerate(points.tolist()):
                value = None if values is None else float(values[k])
                yield {**place, "kind": kind, "series": series, "x": x, "y": y, "value": value}


def _artists(axes: Any) -> Iterator[tuple[str, Any, np.ndarray, np.ndarray | None]]:
    """(kind, artist, places (n, 2), values (n,)) of what lies at the coordinates of the axes."""
    for line in axes.lines:
        if line.get_transform() == axes.transData and len(line.get_xdata()):
            yield "line", line, np.asarray(line.get_xydata(), float), None
    for drawn in axes.collections:
        values, points = drawn.get_array(), np.asarray(drawn.get_offsets(), float)
        if hasattr(drawn, "get_coordinates"):
            corners = drawn.get_coordinates()
            flat = values.size < corners[..., 0].size  # a value per cell, not per corner
            at = (corners[:-1, :-1] + corners[1:, 1:]) / 2 if flat else corners
            yield "pixel", drawn, at.reshape(-1, 2), np.ravel(values)
        elif len(points) > 1 or points.any():
            yield "points", drawn, points, values if values is not None and len(values) == len(points) else None
        elif len(drawn.get_paths()) == len(_noted.get(drawn, ("", ()))[1]):
            yield "cells", drawn, np.array([p.vertices.mean(0) for p in drawn.get_paths()]), None
        else:
            for path in drawn.get_paths():
                yield "shape", drawn, path.vertices, None
    for bar in axes.patches:
        if hasattr(bar, "get_height"):
            ends = np.array([bar.get_corners()[2]])
            yield "bar", bar, ends, None
        else:
            yield "line", bar, bar.get_path().vertices, None
    for image in axes.images:
        values = np.asarray(image.get_array())
        if values.ndim == 2:
            left, right, bottom, top = image.get_extent()
            rows, columns = (np.indices(values.shape) + 0.5) / np.reshape(values.shape, (2, 1, 1))
            first, last = (top, bottom) if image.origin == "upper" else (bottom, top)
            x, y = left + columns * (right - left), first + rows * (last - first)
            yield "pixel", image, np.column_stack([x.ravel(), y.ravel()]), values.ravel()
