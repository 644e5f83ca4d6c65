"""The strategy table at work: which rows hold, how K slots are got, and that an edited row acts."""

import numpy as np
import pytest
from support.search_events import block_events, chain

from flyjax.search.journal.state import fold
from flyjax.search.policy.strategy import assign_slots
from flyjax.search.protocol.document import Rules, rules
from flyjax.search.protocol.rule_table import parse_row

DEFAULT = "| Default | exploit | Use highest UCB node |"
TABLE = (
    DEFAULT,
    "| 3+ consecutive successes (R2 >= 0.9) | failure-probe | 10x |",
    "| n_iter_block/4 consecutive successes (R2 >= 0.9) | explore | older node |",
    "| Found good config | robustness-test | again |",
)


def slots(rows, k=4, table=TABLE, n_iter_block=12, seed=0, strategies=(), configs=(), more=()):
    """The slots after iterations given as rows of (parent, reward)."""
    made = block_events(rows, n_iter_block)
    nodes = [n for e in made if e["event"] == "iteration_started" for n in e["nodes"]]
    for node, strategy in dict(strategies).items():
        nodes[node - 1]["strategy"] = strategy
    for node, config in dict(configs).items():
        nodes[node - 1]["config"] = {"x": config}
    known = Rules(tuple(parse_row(r) for r in table), ())
    state, block = fold([*made, *more]), 1
    return assign_slots(known, state, block, k, n_iter_block=n_iter_block, ucb_c=1.414, rng=np.random.default_rng(seed))


def assigned(*args, **kwargs):
    return [(s.strategy, s.parent) for s in slots(*args, **kwargs)]


def test_without_success_everything_exploits_the_highest_ucb():
    assert assigned(chain(0.2, 0.5)) == [("exploit", 2)] * 4
    # Node 1's other child is a leaf of higher R2.
    assert assigned([[("root", 0.2)], [(1, 0.8)], [(1, 0.5)]], k=2) == [("exploit", 2)] * 2


def test_one_of_each_and_the_rest_exploits():
    got = assigned(chain(0.3, 0.91, 0.92, 0.95), k=5)
    assert [s for s, _ in got] == ["robustness-test", "failure-probe", "explore", "exploit", "exploit"]
    # Best is 4; explore takes the best-scored node outside the last three iterations: node 1.
    assert [p for _, p in got] == [4, 4, 1, 4, 4]


@pytest.mark.parametrize("k, expected", [(1, ["robustness-test"]), (2, ["robustness-test", "failure-probe"])])
def test_few_slots_take_the_first_that_apply(k, expected):
    assert [s for s, _ in assigned(chain(0.3, 0.91, 0.92, 0.95), k=k)] == expected


def test_a_best_node_that_was_run_again_needs_no_further_test():
    rows = chain(0.3, 0.95, 0.94)
    assert "robustness-test" in [s for s, _ in assigned(rows)]
    assert "robustness-test" not in [s for s, _ in assigned(rows, configs={2: 7, 3: 7})]
    assert "robustness-test" not in [s for s, _ in assigned(chain(0.3, 0.89))]


def test_a_recent_failure_probe_is_enough():
    rows = chain(0.91, 0.92, 0.93, 0.94, 0.95, 0.96)
    assert "failure-probe" in [s for s, _ in assigned(rows)]
    assert "failure-probe" in [s for s, _ in assigned(rows, strategies={3: "failure-probe"})]
    assert "failure-probe" not in [s for s, _ in assigned(rows, strategies={4: "failure-probe"})]


def test_explore_waits_for_a_quarter_of_the_block():
    rows = chain(0.1, 0.2, 0.91, 0.92)
    assert "explore" not in [s for s, _ in assigned(rows, n_iter_block=12)]
    assert "explore" in [s for s, _ in assigned(rows, n_iter_block=8)]


def test_a_block_without_nodes_starts_at_root():
    made = [{"event": "run_started", "time": 0.0, "experiment": {}, "protocol": ""}]
    got = assign_slots(Rules((), ()), fold(made), 1, 3, n_iter_block=4, ucb_c=1.4, rng=np.random.default_rng(0))
    assert [(s.strategy, s.parent) for s in got] == [("exploit", "root")] * 3


BRANCH = "| Branching rate < 20% | force-branch | Select random node from top 3 UCB |"


def test_force_branch_takes_one_of_the_top_but_not_the_sequential_parent():
    rows = [[("root", 0.1), ("root", 0.2), ("root", 0.3), ("root", 0.25)], [(3, 0.5), (3, 0.4), (3, 0.6), (3, 0.1)]]
    table = (DEFAULT, BRANCH)
    got = {assigned(rows, table=table, seed=s)[0] for s in range(40)}
    assert got == {("force-branch", 5), ("force-branch", 6)}, "top 3 are 7, 5, 6; 7 was chosen last"
    wide = (DEFAULT, BRANCH.replace("top 3", "top 5"))
    assert {assigned(rows, table=wide, seed=s)[0][1] for s in range(60)} == {5, 6, 4, 2}
    assert [s for s, _ in assigned(rows, table=table)] == ["force-branch", "exploit", "exploit", "exploit"]
    # Not twice in a quarter of the block: at K = 1 nothing would be left for the rest.
    assert "force-branch" not in [s for s, _ in assigned(rows, table=table, strategies={6: "force-branch"})]


EDITS = [
    # (row, rows of the run before, does the edited row act?)
    ("| 2+ consecutive successes (R2 >= 0.9) | failure-probe | 10x |", chain(0.3, 0.91, 0.92), True),
    ("| 4+ consecutive successes (R2 >= 0.9) | failure-probe | 10x |", chain(0.91, 0.91, 0.92), False),
    ("| 3+ consecutive successes (R2 >= 0.5) | failure-probe | 10x |", chain(0.6, 0.6, 0.6), True),
    ("| 3+ consecutive successes (R2 >= 0.93) | failure-probe | 10x |", chain(0.91, 0.91, 0.92), False),
    ("| Branching rate < 20% | force-branch | top 3 UCB |", chain(0.1, 0.2, 0.3), True),
    ("| Branching rate < 20% | force-branch | top 3 UCB |", [[("root", 0.1)], [(1, 0.2)], [(1, 0.3)]], False),
    ("| Improvement rate < 30% | explore | older node |", chain(0.5, 0.4, 0.3, 0.2), True),
    ("| Improvement rate < 30% | explore | older node |", chain(0.1, 0.2, 0.3, 0.4), False),
    ("| Plateau (+/-0.05) for 3+ iterations | force-branch | top 3 UCB |", chain(0.5, 0.52, 0.55), True),
    ("| Plateau (+/-0.01) for 3+ iterations | force-branch | top 3 UCB |", chain(0.5, 0.52, 0.55), False),
    ("| Found good config (R2 >= 0.4) | robustness-test | again |", chain(0.3, 0.5), True),
    ("| Found good config (R2 >= 0.6) | robustness-test | again |", chain(0.3, 0.5), False),
    ("| Best R2 < 0.6 and improvement rate < 50% | explore | older node |", chain(0.5, 0.4, 0.3, 0.2), True),
    ("| Best R2 < 0.6 and improvement rate < 50% | explore | older node |", chain(0.7, 0.4, 0.3, 0.2), False),
]


@pytest.mark.parametrize("row, run, acts", EDITS)
def test_every_kind_of_row_acts_when_it_holds(row, run, acts):
    strategy = row.split("|")[2].strip()
    got = slots(run, table=(DEFAULT, row))
    assert (strategy in [s.strategy for s in got]) == acts


def test_the_factor_is_the_rows():
    assert (
        slots(chain(0.95), k=1, table=(DEFAULT, "| 1+ consecutive successes | failure-probe | 5x |"))[0].factor == 5.0
    )


def test_in_last_block_looks_at_the_block_before():
    row = "| Branching rate < 20% in last block | force-branch | top 3 UCB |"
    before = chain(0.1, 0.2, 0.3)  # all sequential
    assert "force-branch" not in [s for s, _ in assigned(before, table=(DEFAULT, row))], "there is no block before"
    nodes = [
        {"node": 4 + k, "parent": p, "changes": {}, "config": {"x": 4 + k}, "strategy": "exploit", "seeds": [1]}
        for k, p in enumerate(["root", "root"])
    ]
    more = [
        {
            "event": "iteration_started",
            "time": 0.0,
            "iteration": 4,
            "block": 2,
            "iter_in_block": 1,
            "simulation": {},
            "nodes": nodes,
        }
    ]
    more += [
        {"event": "node_finished", "time": 0.0, "node": n, "metrics": {"connectivity_R2": 0.1 * n}} for n in (4, 5)
    ]
    state = fold([*block_events(before, 3), *more])
    got = assign_slots(
        Rules(tuple(map(parse_row, (DEFAULT, row))), ()),
        state,
        2,
        2,
        n_iter_block=3,
        ucb_c=1.414,
        rng=np.random.default_rng(0),
    )
    assert [(s.strategy, s.parent) for s in got] == [("force-branch", 4), ("exploit", 5)]


def test_the_template_assigns_as_the_table_of_the_tests(root):
    known = rules((root / "protocol.md").read_text())
    state = fold(block_events(chain(0.3, 0.91, 0.92, 0.95)))
    got = assign_slots(known, state, 1, 4, n_iter_block=12, ucb_c=1.414, rng=np.random.default_rng(0))
    assert [s.strategy for s in got] == ["robustness-test", "failure-probe", "explore", "exploit"]


@pytest.mark.parametrize(
    "row, problem",
    [
        ("| Plateau for 3+ iterations | **force-branch** |", "three cells"),
        ("| Otherwise | robustness-test | Run the best again |", "exploit"),
        ("| Default | explore | Use an older node |", "exploit"),
        ("| 3+ consecutive successes (R2 >= 90) | failure-probe | 10x |", "never above 1"),
        ("| 3+ consecutive successes | failure-probe | by 5 magnitudes |", "write it as 10x"),
        ("| Plateau for 3+ iterations | force-branch | node 12 |", "write it as top 3"),
    ],
)
def test_rows_that_code_cannot_follow_say_so(row, problem):
    assert problem in parse_row(row).problem


@pytest.mark.parametrize("action", ["by a factor of 5", "5x", "5 x", "5×", "x5", "×5", "5 times", "0.2x"])
def test_factors_are_read_as_people_write_them(action):
    rule = parse_row(f"| 3+ consecutive successes | failure-probe | Push one parameter {action} |")
    assert rule.problem == "" and rule.factor == pytest.approx(5)


@pytest.mark.parametrize(
    "action", ["one of the top 5 UCB", "a node of the top-5", "one of the 5 best", "one of the best 5"]
)
def test_choices_are_read_as_people_write_them(action):
    rule = parse_row(f"| Plateau for 3+ iterations | force-branch | Select {action} |")
    assert rule.problem == "" and rule.top == 5
