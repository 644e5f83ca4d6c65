"""The prompt's text on results, noise and rules: enough to decide on, true, and no more."""

import json
import re
from dataclasses import replace

import pytest
from support.search_contexts import PROTOCOL, context, experiment, metrics, png

from flyjax.config import Training
from flyjax.search.llm import prompt
from flyjax.search.llm.results_text import NODE_METRICS, new_nodes_text, shown
from flyjax.search.policy.strategy import assign_slots
from flyjax.search.proposals.types import Proposal, Step
from flyjax.search.proposals.validation import check_step
from flyjax.search.proposers.rules import generator
from flyjax.search.protocol import document
from flyjax.search.protocol.rule_table import parse_row


def finished(node, **metric):
    return {"event": "node_finished", "node": node, "metrics": {**metrics(0.5), **metric}}


def rendered(ctx):
    return prompt.render_prompt(ctx)


def test_metrics_are_those_a_choice_can_rest_on_and_a_null_has_its_reason(tmp_path):
    many = {f"connectivity_R2_ceiling_{k}": 1.0 for k in range(80)} | {"n_steps": 16000.0, "tau_R2": None}
    many["reasons"] = {"tau_R2": "the read-out is constant", "other": "left out"}
    words = new_nodes_text(context(tmp_path, more=[finished(1, **many)]))
    line = next(x for x in words.splitlines() if x.startswith("  metrics: "))
    assert {x.split("=")[0] for x in line.removeprefix("  metrics: ").split(", ")} <= set(NODE_METRICS)
    assert "n_steps=16000" in line and "tau_R2=null" in line
    assert "  tau_R2 is null: the read-out is constant" in words and "left out" not in words
    assert shown(2.0) == "2" and shown(5e-5) == "5e-05" and shown(None) == "null" and shown(float("nan")) == "null"


def test_the_spread_of_seeds_is_stated_and_which_seed_the_figure_shows(tmp_path):
    seeds = [metrics(0.991), metrics(0.865)]
    root = {**finished(1), "metrics": metrics(0.928), "per_seed": seeds}
    ctx = context(tmp_path, more=[root])
    ctx.state.nodes[1] = replace(ctx.state.nodes[1], seeds=(7, 8))
    assert rendered(ctx).count("2 seeds: worst 0.865, std 0.0891") == 2  # in the history and beside the metrics
    for node in (1, 2):
        path = tmp_path / "nodes" / f"{node:04d}" / "figures" / "activity.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png())
    labels = [label for label, _, _ in prompt.figures(ctx)]
    assert labels == [
        "Figure of node 1: activity (of its 2 seeds the one of the lowest final loss)",
        "Figure of node 2: activity",
    ]


def test_the_course_of_a_training_is_listed_per_seed_without_ground_truth_in_a_blind_search(tmp_path):
    lines = [{"lane": "node_0001/seed_1", "step": s, "loss": 100.0 / s} for s in range(100, 1100, 100)]
    lines[4]["connectivity_R2"] = 0.75
    lines.append({"lane": "node_0001/seed_99", "step": 100, "loss": 77.0})  # no seed of this run
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"torn')
    words = new_nodes_text(context(tmp_path))
    losses = "loss 1 (100), 0.5 (200), 0.2 (500), 0.1429 (700), 0.1 (1,000)"
    wanted = f"  course (after steps): {losses}; connectivity_R2 0.75 (500)"
    assert wanted in words.splitlines() and words.count("course") == 1 and "loss 77" not in words
    blind = new_nodes_text(context(tmp_path, experiment(objective="blind")))
    assert "loss 1 (100)" in blind and "connectivity_R2" not in blind


def test_the_setting_says_how_long_trainings_are_and_how_much_of_the_run_is_left(tmp_path):
    training = pytest.importorskip("flyjax.training.hparams")
    exp = experiment(max_nodes=12, patience=4)
    words = prompt.setting_text(context(tmp_path, exp, iterations=4))
    assert f"{training.n_steps(exp.training, 2000):,} at the root's values" in words
    assert (
        training.n_steps(Training(batch_size=4, data_augmentation_loop=50), 3000) == 0.2 * 3000 * 50 / 4
    )  # the formula in the prompt
    assert "block 2 of 2; 12 of 18 nodes trained; it ends at max_nodes=12, patience=4" in words
    assert "1 for a node, 2 for a root" in words


def test_the_slots_are_listed_as_the_table_assigns_them(tmp_path):
    def slots(text):
        ctx = context(tmp_path, iterations=2, protocol=text)
        search = ctx.experiment.search
        assigned = assign_slots(
            document.rules(text),
            ctx.state,
            1,
            3,
            n_iter_block=search.n_iter_block,
            ucb_c=search.ucb_c,
            rng=generator(ctx),
        )
        line = next(x for x in rendered(ctx).splitlines() if x.startswith("The slots that the table assigns: "))
        assert all(f"{s.strategy} " in line and f"node {s.parent}" in line for s in assigned)
        return line

    plain = slots(PROTOCOL)
    assert "3 x exploit from node 6" in plain
    row = "| 3+ consecutive successes"
    edited = PROTOCOL.replace(row, f"| Found good config (R2 >= 0.5) | **robustness-test** | Run it again |\n{row}")
    assert "robustness-test of node 6, 2 x exploit from node 6" in slots(edited)
    # Where a block opens there is nothing to deal.
    assert "The slots" not in rendered(context(tmp_path, iterations=3))


def test_a_row_that_code_cannot_read_is_named(tmp_path):
    text = PROTOCOL.replace("| Default", "| The moon is full | **explore** | Try something |\n| Default", 1)
    assert "Rows that code cannot read, for you to apply: row '| The moon is full" in rendered(
        context(tmp_path, protocol=text)
    )


def test_the_grammar_in_the_prompt_is_the_parsers():
    conditions = [c for c in re.findall(r'"([^"]+)"', prompt.GRAMMAR.partition("joined by")[0]) if c != "in last block"]
    assert len(conditions) == 7
    for form in conditions:
        condition = form.replace("(...)", "(R2 >= X)").replace("X", "0.5").replace("N", "3")
        row = parse_row(f"| {condition} and Branching rate < 20% in last block | **explore** | Do |")
        assert not row.problem, row.problem
    for name in re.findall(r"exploit|failure-probe|explore|robustness-test|force-branch", prompt.GRAMMAR):
        condition = "Default" if name == "exploit" else "Plateau for 3+ iterations"
        assert not parse_row(f"| {condition} | **{name}** | Do |").problem


def test_the_noise_is_stated_with_its_sample_size(tmp_path):
    ctx = context(tmp_path, iterations=2)
    assert "Noise floor of the reward: not measured yet" in rendered(ctx)
    root = {**finished(1), "metrics": metrics(0.94), "per_seed": [metrics(0.99), metrics(0.89)]}
    rough = context(tmp_path, iterations=2, more=[root])
    line = next(x for x in rendered(rough).splitlines() if x.startswith("Noise floor"))
    assert "from 1 repetition, a rough figure" in line and "R2 ends at 1" in line and "Repeated" not in line
    # A configuration that ran twice is listed with its rewards, beside the pooled noise floor.
    again = context(tmp_path, iterations=2)
    again.state.nodes[5] = replace(again.state.nodes[5], config=again.state.nodes[2].config)
    assert "Repeated: nodes 2, 5: 0.520, 0.550 (" in rendered(again)


def test_a_reversion_is_answered_with_the_changes_that_keep_the_configuration(tmp_path):
    ctx = context(tmp_path, iterations=2)
    older = ctx.state.nodes[3].config["coeff_edge_diff"]
    proposed = Step((Proposal(6, {"coeff_edge_diff": older}),) * 1)
    ctx = replace(ctx, n_proposals=1)
    ctx.state.nodes[6] = replace(ctx.state.nodes[6], config={**ctx.state.nodes[6].config, "batch_size": 2})
    (moved,) = check_step(ctx, proposed).reversions
    (candidate,) = check_step(ctx, proposed).candidates.values()
    assert candidate.parent == 3 and candidate.changes == {"batch_size": 2}
    assert "use parent=3 instead of 6; for the same configuration the changes are then batch_size=2" in str(moved)


def test_a_correction_does_not_pay_for_the_figures_again(tmp_path):
    path = tmp_path / "nodes" / "0001" / "figures" / "activity.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png())
    ctx = context(tmp_path)

    def pictures(feedback, previous="[...]"):
        built = prompt.build(replace(ctx, feedback=feedback), previous)
        return [b for b in built.messages[0]["content"] if b["type"] == "image"], built.tokens

    first, all_tokens = pictures((), "")
    corrected, fewer = pictures(("proposal 1: out of range",))
    assert len(first) == 1 and corrected == [] and fewer < all_tokens + 200
    # An answer that could not be read says nothing about them.
    assert len(pictures(("answer: there was no tool call",))[0]) == 1
    # After a restart the refused answer is gone: nothing to refer to.
    assert len(pictures(("proposal 1: out of range",), "")[0]) == 1


def test_past_blocks_have_a_line_by_which_edits_of_the_rules_can_be_evaluated(tmp_path):
    words = "### noise helped " + "x" * 1_000
    ended = {
        "event": "block_ended",
        "block": 1,
        "nodes": [],
        "summary": words,
        "measures": {"text": "branching rate 0%"},
    }
    edited = {"event": "protocol_edited", "block": 1, "by": "rules", "reason": "r", "protocol": PROTOCOL, "diff": ""}
    ended["edit"] = {"old": "a", "new": "b", "reason": "it never branched"}

    def line(*more):
        text = rendered(context(tmp_path, iterations=4, more=more))
        return next(x for x in text.splitlines() if x.startswith("-> end of block 1: "))

    assert (
        line(ended).endswith("; branching rate 0%; protocol not edited: it never branched") and len(line(ended)) < 600
    )
    assert line(edited, ended).endswith("; protocol edited by the rules: it never branched")
    assert line({**edited, "by": "llm"}, ended).endswith("; protocol edited: it never branched")
    assert "-> end of block" not in rendered(context(tmp_path, iterations=4))


def test_changes_to_the_previous_answer_are_listed_briefly(tmp_path):
    step = {
        "iteration": 1,
        "block": 1,
        "by": "llm",
        "time": 1.0,
        "fallbacks": ["proposal 1: " + "x" * 999] * 50,
        "demoted": ["- early"],
    }
    ctx = context(tmp_path, iterations=2)
    text = prompt.replaced_text(replace(ctx, state=replace(ctx.state, step=step)))
    assert text.startswith("Changed in your previous step") and len(text) < 5_000 and text.count("\n") <= 13
    refused = {
        "block": 1,
        "summary": "s",
        "measures": {"text": "m"},
        "edit": {"reason": "The edit could not be made (x)", "refused": True},
    }
    blocks = {1: replace(ctx.state.blocks[1], ended=refused)}
    text = prompt.replaced_text(replace(ctx, state=replace(ctx.state, step={**step, "fallbacks": []}, blocks=blocks)))
    assert (
        "- moved to the open questions, too few nodes: - early" in text and "- The edit could not be made (x)" in text
    )
    assert (
        prompt.replaced_text(replace(ctx, state=replace(ctx.state, step={**step, "fallbacks": [], "demoted": []})))
        == ""
    )
    assert prompt.replaced_text(ctx) == ""


def test_the_proposer_of_a_node_and_its_simulation_are_stated(tmp_path):
    ctx = context(tmp_path, iterations=2)
    for node, by in ((2, "rules"), (3, "llm")):
        ctx.state.nodes[node] = replace(ctx.state.nodes[node], by=by)
    words = rendered(ctx)
    rows = {k: next(x for x in words.splitlines() if x.startswith(f"{k} | ")) for k in (1, 2, 3)}
    assert " | exploit (by rules) | " in rows[2] and "(by" not in rows[1] + rows[3]
    assert "Simulation of this block: visual_input_type=scenes_texture, n_frames=2000, delta_t=0.02" in words
    free = next(x for x in words.splitlines() if x.startswith("- data_augmentation_loop: "))
    assert "no compilation" in free and "the longest candidate sets the time" in free and "at no cost" not in words


def test_the_whole_prompt_stays_small(tmp_path, root):
    """Of a run with the project's protocol; images apart."""
    exp = experiment()
    text = document.instantiate((root / "protocol.md").read_text(), exp)
    ctx = context(tmp_path, exp, iterations=2, protocol=text)
    built = prompt.build(ctx)
    assert sum(len(b["text"]) for b in [*built.system, *built.messages[0]["content"]]) < 24_000
    # What is printed beforehand is what is sent, the tools with their schemas included.
    assert all(json.dumps(tool) in rendered(ctx) for tool in built.tools)
