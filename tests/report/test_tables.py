"""Tables, pooled values and the layout of charts, against runs whose numbers are known by hand."""

import csv
import io

import numpy as np
import pytest
from support.made_up_run import Maker, metrics, two_blocks

from flyjax.report import tables
from flyjax.report.charts import Axis, NoiseScale, ScoreAxis
from flyjax.report.run_view import RunView
from flyjax.report.tree import MANY_LANES, tree_layout
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import Node, fold
from flyjax.utils.format import csv_table, duration


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
    run = RunView(made)
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
    run = RunView(tmp_path)
    found = run.diversity()
    assert found["nodes"] == 4 and found["unique"] == 3 and found["parents"] == 1
    assert [size for _, size in run.step_sizes()] == pytest.approx([0.5, 0.0, 0.5])
    assert found["median"] == pytest.approx(0.5)


def test_tables_agree_with_each_other(made):
    rows = tables.nodes_table(fold(read_journal(made)))
    read = list(csv.DictReader(io.StringIO(csv_table(tables.COLUMNS, rows))))
    assert [float(r["connectivity_R2"]) if r["connectivity_R2"] else None for r in read] == [
        r["connectivity_R2"] for r in rows
    ]
    markdown = tables.markdown_table([{**rows[0], "reason": "a|b\nc"}]).splitlines()
    assert len(markdown) == 3 and markdown[2].count("|") - markdown[2].count("\\|") == len(tables.COLUMNS) + 1
    assert csv_table(("node", "reason"), [{"node": 1, "reason": "=1+1"}]) == "node,reason\n1,'=1+1\n"
    assert tables.format_score(None) == tables.format_score(float("nan")) == tables.format_quantity(None) == "–"
    assert (
        tables.format_setting(5e-5) == "5e-5"
        and tables.format_setting(0.00423) == "4.23e-3"
        and tables.format_setting(0.02) == "0.02"
        and tables.format_setting(64000) == "64000"
    )
    assert [duration(s) for s in (0.4, 61, 3599.6, 7260)] == ["1 s", "61 s", "60 min", "2 h"]


def tree_node(i, parent, column):
    return Node(i, parent, 1, column, column, {}, {}, "exploit", (0,))


def random_tree(n_columns, per_column, seed=3):
    """Nodes whose parents are drawn from all older ones."""
    rng, nodes = np.random.default_rng(seed), []
    for column in range(1, n_columns + 1):
        older = [n.id for n in nodes] or ["root"]
        parents = [older[int(rng.integers(len(older)))] for _ in range(per_column)]
        nodes += [tree_node(len(nodes) + k, parent, column) for k, parent in enumerate(parents)]
    return nodes


def nodes_on_edges(layout):
    """Nodes that lie between a node and its parent, in the node's lane."""
    cells = {place: key for key, place in layout.place.items()}
    between = []
    for node, parent in layout.parent.items():
        column, lane = layout.place[node]
        first = layout.place[parent][0] + 1
        between += [cells[c, lane] for c in range(first, column) if (c, lane) in cells]
    return between


def test_tree_layout_keeps_branches_apart():
    nodes = random_tree(8, 3)
    layout = tree_layout(nodes)
    assert len(set(layout.place.values())) == len(nodes) + 1  # and the root: no two in one place
    assert layout.reserved and nodes_on_edges(layout) == []
    assert all(layout.place[n.id][0] == n.iter_in_block for n in nodes)


def test_tree_layout_of_many_branches_stays_low():
    layout = tree_layout(random_tree(50, 4))
    assert len(set(layout.place.values())) == 201
    # Lanes of their own would be many: edges pass over nodes instead.
    assert not layout.reserved and nodes_on_edges(layout) and layout.n_lanes < MANY_LANES


def test_tree_layout_of_a_chain_and_of_unknown_parents():
    chain = tree_layout([tree_node(0, "root", 1), tree_node(1, 0, 2), tree_node(2, 1, 3), tree_node(3, 0, 2)])
    lanes = {key: lane for key, (_, lane) in chain.place.items()}
    assert len({lanes[k] for k in ("root", 0, 1, 2)}) == 1 and lanes[3] != lanes[0]
    assert tree_layout([tree_node(0, 7, 1), tree_node(1, 1, 1)]).parent == {0: "root", 1: "root"}


def test_axes_and_colours(made):
    run = RunView(made)
    rate, batch, noise = (
        Axis([n.config[k] for n in run.nodes], run.search_ranges[k])
        for k in ("learning_rate_W_start", "batch_size", "noise_model_level")
    )
    assert rate.kind == "log" and rate.place(1e-3) == pytest.approx(0.5)
    assert [text for _, text in rate.tick_labels()] == ["10⁻⁴", "10⁻³", "10⁻²"]
    assert [text for _, text in Axis([1e-6, 1e10]).tick_labels()] == ["10⁻⁶", "10⁻³", "10⁰", "10³", "10⁶", "10⁹"]
    assert [text for _, text in Axis([2.1, 47.9]).tick_labels()] == ["5", "10", "20"]
    assert batch.kind == "choice" and [text for _, text in batch.tick_labels()] == ["1", "2", "4"]
    assert noise.place(0.05) == pytest.approx(0.25) and noise.place(None) is None
    scale = NoiseScale(run.noise_levels())
    assert scale.levels == [0.0, 0.05, 0.1, 0.15, 0.2]
    assert len({scale(run.state.nodes[i].config["noise_model_level"]) for i in (0, 1, 3, 10, 18)}) == 5


def test_scores_lie_on_a_logarithmic_axis_of_what_is_missing_to_1():
    axis = ScoreAxis([0.3, None, 0.996])
    assert axis.top == 0.998 and axis.place(0.0) == 0 and axis.place(0.998) == axis.place(0.9999) == 1
    assert axis.place(0.99) - axis.place(0.9) == pytest.approx(axis.place(0.9)) and axis.place(-3.0) == 0
    assert axis.place(None) is None and [text for _, text in axis.tick_labels((0, 0.9, 0.999))] == ["0", "0.9"]
    assert ScoreAxis([]).top == ScoreAxis([0.2]).top == 0.95


def test_cost_is_given_or_not_reported(tmp_path):
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=[metrics(0.6)])
    m.choose(0, usage={"calls": 2, "input_tokens": 1000, "output_tokens": 10, "usd": None})
    assert RunView(tmp_path).cost == "not reported (2 calls)"
    m.journal.append("proposal_rejected", iteration=1, errors=["no"], usage={"calls": 1, "usd": 0.25})
    assert RunView(tmp_path).cost == "$0.25 (3 calls, 2 of them not reported)"
