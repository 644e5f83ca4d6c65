"""The table of the newest nodes in the terminal: what it shows, how it wraps, that no text steers a terminal."""

import io

import pytest
from rich.console import Console
from support.made_up_run import Maker, metrics, two_blocks

from flyjax.cli.console import Console as CommandConsole
from flyjax.cli.console import node_table
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold


@pytest.fixture()
def made(tmp_path):
    return two_blocks(tmp_path / "run")


def printed(table, width=140):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_table_of_an_iteration(made):
    state = fold(read_journal(made))
    out = printed(node_table(state, 4)).splitlines()
    assert "block 1, iteration 4/4" in out[0]
    best = next(line for line in out if "*>13" in line)
    assert "0.940" in best and "loop: 25 -> 50" in best
    assert "failed: loss was not finite" in printed(node_table(state, 2))
    assert "24" in printed(node_table(state))
    # On a narrow terminal words wrap, numbers do not.
    narrow = printed(node_table(state, 4), 80).splitlines()
    row = next(line for line in narrow if "*>13" in line)
    assert max(map(len, narrow)) <= 80
    assert row.split()[-6:] == ["0.940", "0.846", "0.470", "0.400", "0.500", "0.0123"]


def test_several_changes_fit_into_a_narrow_terminal(tmp_path):
    m = Maker(tmp_path)
    (root,) = m.train(1, 1, [("root", {}, "root")], results=[metrics(0.5)])
    m.train(
        1,
        2,
        [
            (
                root,
                {"learning_rate_W_start": 0.00242, "coeff_edge_diff": 687.0, "noise_model_level": 0.116},
                "robustness-test",
            )
        ],
        results=[metrics(0.6)],
    )
    words = printed(node_table(fold(m.journal.events)), 80).split()
    assert {"lr_W=2.42e-3,", "edge_diff=687,", "noise=0.116"} <= set(words), words


def test_table_prints_no_markup_and_no_escape_codes(tmp_path):
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=["[red]boom[/red] \x1b]0;title\x07 [/nope]"])
    out = printed(node_table(fold(m.journal.events)))
    assert "[red]boom[/red]" in out and "\x1b" not in out and "\x07" not in out


def test_a_notebook_gets_lines_without_widgets(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    stream = io.StringIO()
    stream.isatty = lambda: True  # as that of ipykernel says
    monkeypatch.setattr("sys.stdout", stream)
    console = CommandConsole().rich
    assert not console.is_jupyter and not console.is_terminal
