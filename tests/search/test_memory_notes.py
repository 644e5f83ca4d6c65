"""Memory notes: three sections, the oldest lines go first, and the findings of a block's moves."""

from support.search_landscape import experiment

from flyjax.search.memory_notes import (
    FALSIFIED,
    MAX_NOTES,
    PRINCIPLES,
    QUESTIONS,
    count_cited_nodes,
    demote,
    findings,
    merge,
    parse,
)
from flyjax.search.policy.moves import Move

RANGES = experiment().search.ranges


def move(gain, **changes):
    origin = {"noise_model_level": 0.05, "coeff_W_L1": 1e-4, "batch_size": 1, "coeff_edge_norm": 1.0}
    return Move(changes, gain, origin, clear=0.05)


def test_what_three_nodes_bear_out_is_a_principle_and_what_disappoints_is_falsified():
    tried = [move(0.1 * k, noise_model_level=0.05 + 0.02 * k) for k in (1, 2, 3)]
    tried += [
        move(-0.3, coeff_W_L1=1e-3),
        move(0.01, batch_size=4),
        move(0.2, coeff_W_L1=1e-5),
        move(0.15, coeff_W_L1=1e-6),
    ]
    found = findings(2, tried, RANGES)
    assert found[PRINCIPLES] == ["- block 2: raising noise_model_level helps (+0.20 on average, 3 nodes)"]
    assert found[FALSIFIED] == ["- block 2: raising coeff_W_L1 would help (-0.30 on average, 1 node)"]
    assert sorted(line.split(":")[1].split("?")[0] for line in found[QUESTIONS]) == [
        " does lowering coeff_W_L1 help",
        " does raising batch_size help",
    ]
    # Three nodes within noise are no principle.
    assert findings(1, [move(0.01, coeff_edge_norm=2.0)] * 3, RANGES)[PRINCIPLES] == []


def test_notes_of_another_hand_are_kept_and_sorted_in():
    theirs = (
        "Seen so far.\n### Established principles (3 or more nodes)\n- noise helps (nodes 1, 2, 3)\n"
        "## open questions\n- batch?"
    )
    merged = merge(
        theirs, {PRINCIPLES: ["- more", "- noise helps (nodes 1, 2, 3)"], FALSIFIED: ["- less"], "": ["block 1: fine"]}
    )
    assert merged.splitlines() == [
        "Seen so far.", "block 1: fine",
        "## Established principles", "- noise helps (nodes 1, 2, 3)", "- more",
        "## Open questions", "- batch?",
        "## Falsified hypotheses", "- less",
    ]  # fmt: skip
    assert merge(merged, {}) == merged


def test_five_hundred_lines_the_oldest_go():
    text = merge("## Open questions\n" + "\n".join(f"- {k}" for k in range(600)), {PRINCIPLES: ["- new"]})
    assert len(text.splitlines()) == MAX_NOTES == 500
    assert "- new" in text and "- 599" in text and "- 0" not in text.splitlines()
    assert len(parse(text)[QUESTIONS]) == 496


def test_a_principle_has_to_name_three_nodes():
    cited = {
        "nodes 3, 5 and 9": 3,
        "node 2 and node 7": 2,
        "nodes 4-9": 6,
        "(+0.2, 12 nodes)": 12,
        "nodes 2, 5; 6": 3,
        "nodes 1, 2: 0.5, 3": 2,
        "": 0,
    }
    known = range(1, 13)
    assert {line: count_cited_nodes(line, known) for line in cited} == cited
    text = (
        "## Established principles\n- a (nodes 1, 2, 3)\n- b (node 4)\n## Open questions\n- c\n"
        "## Falsified hypotheses\n- d (node 5)"
    )
    notes, early = demote(text, known)
    assert early == ("- b (node 4)",)
    assert parse(notes) == {
        "": [],
        PRINCIPLES: ["- a (nodes 1, 2, 3)"],
        QUESTIONS: ["- b (node 4)", "- c"],
        FALSIFIED: ["- d (node 5)"],
    }
    assert demote(notes, known) == (notes, ())


def test_a_principle_cites_nodes_that_exist_whatever_its_bullet():
    lines = [
        "1. high lr is bad",
        "lr helps always",
        "- early (nodes 900 to 905)",
        "- many (5000 nodes)",
        "- kept in two lines",
        "  (nodes 1, 2 and 3)",
    ]
    notes, early = demote("## Established principles\n" + "\n".join(lines), range(1, 7))
    assert early == tuple(lines[:4])
    assert parse(notes)[PRINCIPLES] == lines[4:] and parse(notes)[QUESTIONS] == lines[:4]


def test_nodes_count_however_they_are_listed():
    cited = {
        "Nodes #1, #2, #3": 3, "nodes 1/2/3": 3, "nodes 1 through 3": 3, "node1, node2, node3": 3, "nodes1-3": 3,
        "nodes 2 (0.91), 3 (0.92), 4 (0.93)": 3, "nodes 2 [.91] and 3 (lr 1e-3), and 4": 3,
        "nodes 2 (W 0.9) to 4 (W 0.95)": 3, "nodes 2 (0.91), 0.92, 3": 1, "node 2 (as nodes 3 and 4)": 3,
        "node 2 (0.91) with 3 seeds, 4 rates": 1, "nodes 1 and 2.3": 1,
        "nodes 1 (0.9) 2 of 3": 1, "lr 1 (good), 2, 3": 0, "node 1, lr2, lr3": 1,
    }  # fmt: skip
    assert {line: count_cited_nodes(line, range(1, 13)) for line in cited} == cited


def test_no_list_of_nodes_costs_more_than_reading_it():
    """Nested repeats of a pattern would never end on the first line; a set of wide ranges, late on the last."""

    class Known(list):
        looked = 0

        def __getitem__(self, place):
            Known.looked += 1
            return super().__getitem__(place)

    known = Known(range(1, 1_001))
    assert count_cited_nodes("- node 1" + ", " * 1_000 + "x", known) == 1
    assert count_cited_nodes("- nodes 1" + " -" * 1_000 + " end", known) == 1
    assert count_cited_nodes("- nodes " + "1-9999," * 560, known) == 1_000
    assert Known.looked < 100
    assert (
        count_cited_nodes("- nodes " + "1 (" * 20_000, known)
        == count_cited_nodes("- nodes 1" + " " * 50_000 + "(", known)
        == 1
    )
    assert count_cited_nodes("- nodes " + "1 (0" * 20_000 + ")", known) == 1
