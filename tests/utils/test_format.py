"""Numbers, durations and tables as text."""

import csv
import io

import pytest

from flyjax.utils.format import csv_table, duration, finite, format_bytes, markdown_table, printable


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_none(value):
    assert finite(value) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (42, "42 s"), (198, "3.3 min"), (18_720, "5.2 h"), (86_400 * 920, "920 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(500, "0.5 kB"), (2.5e6, "2.5 MB"), (3.5e9, "3.5 GB")])
def test_sizes(n, text):
    assert format_bytes(n) == text


def test_control_characters_never_reach_a_terminal():
    assert printable("a\x1b[31m\nb\u202e") == "a [31m b"


def test_cells_of_a_markdown_table_cannot_break_it():
    lines = markdown_table(["a", "b"], [["x|y", "two\nlines"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", r"| x\|y | two lines |"]


def test_csv_keeps_full_precision_and_defuses_formulas():
    rows = list(csv.DictReader(io.StringIO(csv_table(["R2", "note"], [{"R2": 1 / 3, "note": "=1+1"}, {}]))))
    assert float(rows[0]["R2"]) == 1 / 3
    assert rows[0]["note"] == "'=1+1"
    assert rows[1] == {"R2": "", "note": ""}
