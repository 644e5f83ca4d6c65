"""Tables, pooled values and the layout of charts, against runs whose numbers are known by hand."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console
from support.made_up_run import Maker, metrics, two_blocks

from flyjax.report import tables
from flyjax.report.run_view import Run
from flyjax.report.svg.charts import Axis, NoiseScale
from flyjax.report.svg.tree import layout
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import Node, fold
from flyjax.utils.format import duration


@pytest.fixture()
def made(tmp_path):
    return two_blocks(tmp_path / "run")


def test_ucb_is_the_formula_over_the_whole_block(made):
    state = fold(read_journal(made))
    ucb = tables.ucb_scores(state)
    # Block 1: 16 nodes; node 4 was explored with nodes 8-11 and, below 9, 12, 14, 15, and 13.
    assert ucb[4] == pytest.approx(0.93 + 1.414 * np.sqrt(np.log(16) / 9))
    assert ucb[5] == pytest.approx(0 + 1.414 * np.sqrt(np.log(16) / 1))
    assert 24 not in ucb  # in training


def test_best_configuration_is_pooled_over_its_nodes(made):
    run = Run(made)
    assert run.best.id == 13
    pool = run.pool_of(run.state.nodes[4])
    # Node 4 was trained twice (.91, .95), its robustness-test once (.89).
    assert [n.id for n in pool.nodes] == [4, 8]
    values = [0.91, 0.95, 0.89]
    stats = pool.stats("connectivity_R2")
    assert stats["n"] == 3 and stats["min"] == 0.89
    assert stats["mean"] == pytest.approx(np.mean(values))
    assert stats["cv"] == pytest.approx(np.std(values, ddof=1) / np.mean(values))
    # The same configuration in another simulation is another question.
    assert [n.id for n in run.pool_of(run.state.nodes[0]).nodes] == [0]
    assert [n.id for n in run.pool_of(run.state.nodes[16]).nodes] == [16, 23]


def test_diversity_counts_configurations_and_steps(tmp_path):
    m = Maker(tmp_path)
    m.train(
        1,
        1,
        [
            ("root", {}, "root"),
            ("root", {"noise_model_level": 0.15}, "exploit"),
            ("root", {}, "robustness-test"),
            ("root", {"learning_rate_W_start": 1e-2}, "exploit"),
        ],
        results=[metrics(0.5)] * 4,
    )
    run = Run(tmp_path)
    found = run.diversity()
    assert found["nodes"] == 4 and found["unique"] == 3 and found["parents"] == 1
    assert [s.size for s in run.steps()] == pytest.approx([0.5, 0.0, 0.5])
    assert found["median"] == pytest.approx(0.5)


def test_tables_agree_with_each_other(made):
    rows = tables.nodes_table(fold(read_journal(made)))
    read = list(csv.DictReader(io.StringIO(tables.csv(rows))))
    assert [float(r["connectivity_R2"]) if r["connectivity_R2"] else None for r in read] == [
        r["connectivity_R2"] for r in rows
    ]
    markdown = tables.markdown_table([{**rows[0], "reason": "a|b\nc"}]).splitlines()
    assert len(markdown) == 3 and markdown[2].count("|") - markdown[2].count("\\|") == len(tables.COLUMNS) + 1
    assert tables.csv([{"node": 1, "reason": "=1+1"}], ("node", "reason")) == "node,reason\n1,'=1+1\n"
    assert tables.number(None) == tables.number(float("nan")) == tables.figures(None) == "–"
    assert (
        tables.setting(5e-5) == "5e-5"
        and tables.setting(0.00423) == "4.23e-3"
        and tables.setting(0.02) == "0.02"
        and tables.setting(64000) == "64000"
    )
    assert [duration(s) for s in (0.4, 61, 3599.6, 7260)] == ["1 s", "61 s", "60 min", "2 h"]


def printed(table, width=140):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_live_table_of_an_iteration(made):
    state = fold(read_journal(made))
    out = printed(tables.rich_table(state, 4)).splitlines()
    assert "block 1, iteration 4/4" in out[0]
    best = next(line for line in out if "*>13" in line)
    assert "0.940" in best and "loop: 25 -> 50" in best
    assert "failed: loss was not finite" in printed(tables.rich_table(state, 2))
    assert "24" in printed(tables.rich_table(state))
    # On a narrow terminal words wrap, numbers stay whole.
    narrow = printed(tables.rich_table(state, 4), 80).splitlines()
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
    words = printed(tables.rich_table(fold(m.journal.events)), 80).split()
    assert {"lr_W=2.42e-3,", "edge_diff=687,", "noise=0.116"} <= set(words), words


def test_live_table_prints_no_markup_and_no_escape_codes(tmp_path):
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=["[red]boom[/red] \x1b]0;title\x07 [/nope]"])
    out = printed(tables.rich_table(fold(m.journal.events)))
    assert "[red]boom[/red]" in out and "\x1b" not in out and "\x07" not in out


def test_tree_layout_keeps_lanes_apart():
    def made_up(i, parent, column):
        return Node(i, parent, 1, column, column, {}, {}, "exploit", (0,))

    rng, nodes = np.random.default_rng(3), []
    for column in range(1, 51):
        older = [n.id for n in nodes] or ["root"]
        for _ in range(4):
            nodes.append(made_up(len(nodes), older[int(rng.integers(len(older)))] if column > 1 else "root", column))
    wide = layout(nodes)
    assert len(set(wide.place.values())) == 201  # 200 nodes and the root: no two in one place
    assert wide.lanes <= 30 or not wide.reserved
    assert all(wide.place[n.id][0] == n.iter_in_block for n in nodes)
    # A chain stays in one lane; a side branch leaves it.
    line = [made_up(0, "root", 1), made_up(1, 0, 2), made_up(2, 1, 3), made_up(3, 0, 2)]
    plan = layout(line)
    assert len({plan.place[k][1] for k in ("root", 0, 1, 2)}) == 1 and plan.place[3][1] != plan.place[0][1]
    # A parent that is unknown or not older counts as the root.
    assert layout([made_up(0, 7, 1), made_up(1, 1, 1)]).parent == {0: "root", 1: "root"}


def test_axes_and_colours(made):
    run = Run(made)
    rate, batch, noise = (Axis(run, k) for k in ("learning_rate_W_start", "batch_size", "noise_model_level"))
    assert rate.scale == "log" and rate.place(1e-3) == pytest.approx(0.5)
    assert [text for _, text in rate.ticks()] == ["10⁻⁴", "10⁻³", "10⁻²"]
    assert batch.scale == "choice" and [text for _, text in batch.ticks()] == ["1", "2", "4"]
    assert noise.place(0.05) == pytest.approx(0.25) and noise.place(None) is None
    scale = NoiseScale(run.noise_levels())
    assert scale.levels == [0.0, 0.05, 0.1, 0.15, 0.2]
    assert len({scale(run.state.nodes[i]) for i in (0, 1, 3, 10, 18)}) == 5


def test_cost_is_stated_or_said_to_be_unknown(tmp_path):
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=[metrics(0.6)])
    m.choose(0, usage={"calls": 2, "input_tokens": 1000, "output_tokens": 10, "usd": None})
    assert Run(tmp_path).cost == "not reported (2 calls)"
    m.journal.append("proposal_rejected", iteration=1, errors=["no"], usage={"calls": 1, "usd": 0.25})
    assert Run(tmp_path).cost == "$0.25 (3 calls, 2 of them not reported)"
