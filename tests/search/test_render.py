"""analysis.md, analysis.log and ucb_scores.txt, letter by letter in the protocol's format."""

import re
from dataclasses import replace

import pytest
from support.search_landscape import TEMPLATE, evaluate, experiment

from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.loop import run_loop
from flyjax.search.proposers.rules import RulesProposer
from flyjax.search.run import render

NUMBER = r"(?:\d\.\d{3}|null)"
SETTING = r"\d[\d.e+-]*"
ENTRY = re.compile(
    r"## Iter (?P<n>\d+): (?P<kind>converged|partial|failed)\n"
    r"Node: id=(?P=n), parent=(?P<parent>root|\d+)\n"
    r"Mode/Strategy: (?:success-exploit|failure-probe)/(?:exploit|explore|boundary)\n"
    rf"Config: lr_W={SETTING}, lr={SETTING}, lr_emb={SETTING}, coeff_W_L1={SETTING}, noise={SETTING}\n"
    rf"Metrics: test_R2={NUMBER}, test_pearson={NUMBER}, connectivity_R2=(?P<r2>{NUMBER}), tau_R2={NUMBER}, "
    rf"V_rest_R2={NUMBER}, external_input_R2={NUMBER}, cluster_accuracy={NUMBER}\n"
    r"Activity: [^\n]+\n"
    r"Mutation: (?:none[^\n]*|\w+: [^\n]+ -> [^\n]+)\n"
    r"Parent rule: [^\n]+\n"
    r"Observation: [^\n]+\n"
    r"Next: parent=(?:root|\d+)(?:, \d+)*\n"
)
SUMMARY = re.compile(
    r"## Simulation Block (?P<block>\d+) Summary \(iters (?P<first>\d+)-(?P<last>\d+)\)\n"
    r"Simulation: visual_input_type=\w+, n_frames=\d+, delta_t=[\d.]+\n"
    rf"Best R2: (?P<best>{NUMBER}) at iter (?P<at>\d+)\n"
    rf"Best tau_R2: {NUMBER}, V_rest_R2: {NUMBER}, cluster_accuracy: {NUMBER}\n"
    r"Converged: (?:Yes|No)\n"
    r"Observation: [^\n]+\n"
    rf"Optimum training: lr_W={SETTING}, lr={SETTING}, lr_emb={SETTING}, coeff_W_L1={SETTING}, noise={SETTING}\n"
)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    exp = experiment(n_iter_block=5, simulations=({}, {"delta_t": 0.01}))
    run_loop(exp, run_dir, evaluate, RulesProposer(exp), protocol_template=TEMPLATE)
    return run_dir, fold(read_journal(run_dir))


def test_every_node_has_one_entry_in_the_exact_format(played):
    run_dir, state = played
    text = (run_dir / "analysis.md").read_text()
    entries = list(ENTRY.finditer(text))
    assert [int(e["n"]) for e in entries] == sorted(state.nodes) and text.count("## Iter ") == len(entries)
    for e in entries:
        node = state.nodes[int(e["n"])]
        assert e["kind"] == node.classification and e["parent"] == str(node.parent)
        assert float(e["r2"]) == pytest.approx(node.reward, abs=5e-4)
    kinds = {e["kind"] for e in entries}
    assert {"converged", "partial"} <= kinds


def test_what_an_entry_says(played):
    _, state = played
    assert "Mutation: none\n" in render.entry(state, state.nodes[1])
    assert "Mutation: noise_model_level: 0.05 -> 0.1\n" in render.entry(state, state.nodes[2])
    probe = next(n for n in state.nodes.values() if n.strategy == "failure-probe")
    again = next(n for n in state.nodes.values() if n.strategy == "robustness-test")
    assert "Mode/Strategy: failure-probe/boundary\n" in render.entry(state, probe)
    assert "Mutation: none (robustness-test)\n" in render.entry(state, again)
    last = state.blocks[1].nodes[-1]
    assert render.entry(state, state.nodes[last]).endswith("Next: parent=root\n")


def test_block_summaries_and_the_documented_edit(played):
    run_dir, state = played
    text = (run_dir / "analysis.md").read_text()
    found = list(SUMMARY.finditer(text))
    assert [(int(s["block"]), int(s["first"]), int(s["last"])) for s in found] == [(1, 1, 20), (2, 21, 40)]
    for s in found:
        nodes = state.block_nodes(int(s["block"]))
        best = max(nodes, key=lambda n: n.reward)
        assert int(s["at"]) == best.id and float(s["best"]) == pytest.approx(best.reward, abs=5e-4)
    assert (
        "--- NEW SIMULATION BLOCK ---\nNext simulation: visual_input_type=DAVIS, n_frames=32000, delta_t=0.01\n"
        "Node: id=21, parent=root\n" in text
    )
    # The next simulation directly after the summary, as the protocol has it; the edit after both.
    first, last = (text[s.end() :].splitlines() for s in found)
    assert first[:4] == [
        "", "--- NEW SIMULATION BLOCK ---",
        "Next simulation: visual_input_type=DAVIS, n_frames=32000, delta_t=0.01", "Node: id=21, parent=root",
    ]  # fmt: skip
    assert first[5] == "### Protocol edit after block 1" and last[3] == "### Protocol edit after block 2"
    assert last[1].endswith(": 2 blocks done") and text.count("NEW SIMULATION BLOCK") == 1
    assert text.count("### Protocol edit after block") == 2 and text.count("branching rate") >= 2
    for block in (1, 2):
        edited = any(e["block"] == block for e in state.edits)
        diff = (run_dir / "protocol" / f"block_{block:03d}.diff").read_text()
        assert bool(diff) == edited
        assert ("Changed: " in text.split(f"edit after block {block}")[1].split("##")[0]) == edited
    assert (
        (run_dir / "protocol" / "block_002.md").read_text() == state.protocol == (run_dir / "protocol.md").read_text()
    )


def test_a_diff_cannot_leave_its_code_block_and_an_edit_names_its_author(played):
    _, state = played
    (made,) = [e for e in state.edits if e["block"] == 1]
    diff = " ```\n-old\n+````\n ```\n+### Protocol edited by hand in block 1\n"
    forged = replace(state, edits=({**made, "by": "rules", "diff": diff}, {**made, "by": "user", "diff": diff}))
    for text in (
        render.block_summary(forged, 1),
        render.analysis_md(forged).rpartition("### Protocol edited by hand")[0],
    ):
        inside = text.partition("`````diff\n")[2]
        assert inside.startswith(diff[:20]) and "`````\n" in text.replace("`````diff\n", "")
    assert f"Changed: {made['reason']}\nBy: rules\n" in render.block_summary(forged, 1)


def test_analysis_log_lists_the_newest_nodes(played):
    run_dir, state = played
    lines = (run_dir / "analysis.log").read_text().splitlines()
    assert lines[0] == "iteration: 10" and [x for x in lines if x.startswith("node: ")] == [
        f"node: {n}" for n in range(37, 41)
    ]
    assert f"connectivity_R2: {state.nodes[37].reward:.6g}" in lines
    assert all(re.fullmatch(r"\w+: .+", x) for x in lines if x)
    assert (run_dir / "ucb_scores.txt").read_text() == ""
