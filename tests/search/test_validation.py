"""Ranges, duplicates, parents and seeds: what a proposal may be."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_contexts import context, experiment

from flyjax.config import PROTOCOL_RANGES, Range
from flyjax.config import ranges as moves_in
from flyjax.config.ranges import coerce, derive_seed
from flyjax.search.iteration import root_config
from flyjax.search.journal.state import fold
from flyjax.search.proposals.types import Proposal, ProtocolEdit, Step
from flyjax.search.proposals.validation import check_step

INTERVALS = st.tuples(st.floats(1e-6, 1e3), st.floats(1.5, 1e4), st.sampled_from(["log", "linear"])).map(
    lambda t: Range(min=t[0], max=t[0] * t[1], scale=t[2])
)
COUNTS = st.tuples(st.integers(0, 50), st.integers(1, 1000)).map(
    lambda t: Range(min=t[0], max=t[0] + t[1], scale="int")
)
CHOICES = st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True).map(
    lambda v: Range(scale="choice", values=tuple(v))
)
SPANS = st.one_of(INTERVALS, COUNTS, CHOICES)


@settings(max_examples=200, deadline=None)
@given(span=SPANS, seed=st.integers(0, 2**32), size=st.floats(0.01, 1), factor=st.floats(1.01, 1e4))
def test_every_move_stays_in_its_range(span, seed, size, factor):
    rng = np.random.default_rng(seed)
    value = moves_in.sample(span, rng)
    assert span.contains(value) and coerce(span, value) == value
    moved = moves_in.perturb(span, value, rng, size)
    assert span.contains(moved) and moved != value
    assert 0 <= moves_in.unit(span, moved) <= 1
    for way in (factor, 1 / factor):
        pushed = moves_in.extreme(span, value, way)
        assert pushed is None or (span.contains(pushed) and pushed != value)


def test_steps_are_steps_on_the_ranges_scale():
    rng, span = np.random.default_rng(0), PROTOCOL_RANGES["learning_rate_start"]
    sizes = [abs(moves_in.unit(span, moves_in.perturb(span, 1e-4, rng, 0.1)) - 0.5) for _ in range(200)]
    assert 0.045 < min(sizes) and max(sizes) < 0.16
    ups = [moves_in.perturb(span, 1e-4, rng, 0.1, direction=1) > 1e-4 for _ in range(20)]
    assert all(ups)
    draws = np.log10([moves_in.sample(span, rng) for _ in range(2000)])
    assert abs(draws.mean() + 4) < 0.05 and -5 <= draws.min() and draws.max() <= -3


def test_probes_multiply_and_clip():
    spans = PROTOCOL_RANGES
    assert moves_in.extreme(spans["learning_rate_W_start"], 5e-4, 10) == pytest.approx(5e-3)
    assert moves_in.extreme(spans["learning_rate_W_start"], 5e-4, 0.1) == 1e-4
    assert moves_in.extreme(spans["noise_model_level"], 0.05, 10) == 0.2
    assert moves_in.extreme(spans["noise_model_level"], 0.0, 10) == 0.2
    assert moves_in.extreme(spans["noise_model_level"], 0.0, 0.1) is None
    assert moves_in.extreme(spans["batch_size"], 1, 10) == 4 and moves_in.extreme(spans["batch_size"], 1, 0.1) is None
    assert moves_in.extreme(spans["data_augmentation_loop"], 25, 0.1) == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.1", True, None, [0.1], 10**400, -1, 0.21])
def test_values_that_are_no_values(bad):
    with pytest.raises(ValueError, match="range"):
        coerce(PROTOCOL_RANGES["noise_model_level"], bad)
    assert coerce(PROTOCOL_RANGES["batch_size"], 4.0) == 4 and coerce(PROTOCOL_RANGES["noise_model_level"], 0) == 0.0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 10**6), st.integers(0, 64))
def test_seeds_are_31_bits_and_depend_on_each_part(run, node, index):
    seed = derive_seed(run, node, index)
    assert 0 <= seed < 2**31 and seed == derive_seed(run, node, index)
    assert (
        len(
            {
                seed,
                derive_seed(run + 1, node, index),
                derive_seed(run, node + 1, index),
                derive_seed(run, node, index + 1),
            }
        )
        == 4
    )


def test_a_seed_cannot_be_proposed(tmp_path):
    for name in ("seed", "n_seeds", "schedule", "width"):
        (problem,) = problems(tmp_path, Proposal(6, {name: 1}))
        assert "is not searched" in problem


# --- a step ---


def logged(ctx):
    """A line for each new node."""
    return {name: dict.fromkeys(ctx.new_nodes, "line") for name in ("activity", "observation")}


def problems(tmp_path, *proposals, iterations=2, **step):
    """What is wrong with these proposals after two iterations (nodes 1-6, block of three)."""
    ctx = context(tmp_path, iterations=iterations, n_proposals=len(proposals))
    step = {"chosen": ctx.new_nodes[-1], **logged(ctx), **step}
    return list(map(str, check_step(ctx, Step(tuple(proposals), **step)).problems))


def test_good_proposals_pass(tmp_path):
    good = (Proposal(6, {"noise_model_level": 0.1}), Proposal(3, {"batch_size": 4}), Proposal(6, {}, "robustness-test"))
    assert problems(tmp_path, *good) == []


@pytest.mark.parametrize(
    "proposal, why",
    [
        (Proposal(6, {"noise_model_level": 0.3}), "0 to 0.2"),
        (Proposal(6, {"noise_model_level": math.nan}), "not a finite number"),
        (Proposal(6, {"batch_size": 3}), "one of 1, 2, 4"),
        (Proposal(6, {"data_augmentation_loop": 25.5}), "10 to 100"),
        (Proposal(6, {"learning_rate": 1e-3}), "Did you mean 'learning_rate"),
        (Proposal(6, {"delta_t": 0.01}), "block ends only"),
        (Proposal(6, {"noise_model_level": 0.1}, "guess"), "strategy 'guess'"),
        (Proposal(6, {"noise_model_level": 0.1}, "root"), "strategy 'root'"),
        (Proposal(7, {"noise_model_level": 0.1}), "parent '7' is not"),
        (Proposal("root", {"noise_model_level": 0.1}), "root is node 1"),
        (Proposal(True, {"noise_model_level": 0.1}), "parent 'True'"),
        (Proposal("../../x", {}), "parent"),
        (Proposal(6, {}), "the same configuration as node 6"),
        (Proposal(6, {"noise_model_level": 0.05}), "the same configuration as node 6"),
        (Proposal(6, {"noise_model_level": 0.1}, "robustness-test"), "have to be empty"),
        (Proposal(6, {"noise_model_level": 0.1}, "exploit", "x" * 4_001), "hypothesis"),
    ],
)
def test_what_is_wrong_with_a_proposal_is_one_line(tmp_path, proposal, why):
    found = problems(tmp_path, proposal)
    assert len(found) == 1 and why in found[0] and "\n" not in found[0], found
    assert found[0].startswith("proposal 1: ")


def test_duplicates_within_a_step_and_across_parents(tmp_path):
    twice = Proposal(6, {"noise_model_level": 0.1})
    assert problems(tmp_path, twice, twice) == [
        "proposal 2: the same configuration as proposal 1; change something, or call it a robustness-test"
    ]
    # Node 4 back at node 3's value is node 3 again, whichever parent is named.
    there = context(tmp_path, iterations=2).state.nodes
    again = Proposal(4, {"coeff_edge_diff": there[3].config["coeff_edge_diff"]})
    assert "the same configuration as node 3" in problems(tmp_path, again)[0]


def test_counts_choices_and_places(tmp_path):
    ctx = context(tmp_path, iterations=2)
    wrong = check_step(ctx, Step((Proposal(6, {"batch_size": 2}),), chosen=1, **logged(ctx))).problems
    assert [p.part for p in wrong] == ["proposals", "chosen"]
    inside = Step(
        (), chosen=6, **logged(ctx), next_simulation={"n_frames": 2000}, protocol_edit=ProtocolEdit("", "", "none")
    )
    assert {p.part for p in check_step(ctx, inside).problems} == {"proposals", "next_simulation", "protocol_edit"}


def end(tmp_path, **fields):
    """What is wrong with a step at a block end."""
    ctx = context(tmp_path, iterations=3)
    proposals = tuple(Proposal("root", {"noise_model_level": v}) for v in (0.1, 0.15))
    good = {
        "proposals": proposals,
        "chosen": 9,
        "block_summary": "fine",
        "protocol_edit": ProtocolEdit("", "", "No changes needed: it climbs"),
    }
    return [str(p) for p in check_step(ctx, Step(**{**good, **logged(ctx), **fields})).problems]


def test_block_ends(tmp_path):
    assert end(tmp_path) == []
    assert end(tmp_path, next_simulation={"visual_input_type": "scenes_flow", "n_frames": 3000, "delta_t": 0.01}) == []
    assert "summary" in end(tmp_path, block_summary=" ")[0]
    assert "a block end needs an edit" in end(tmp_path, protocol_edit=None)[0]
    for reason in ("", "No changes needed.", " no change needed ", "none", "n/a", "No edits are required."):
        assert "the reason is missing" in end(tmp_path, protocol_edit=ProtocolEdit("", "", reason))[0]
    assert "occurs 0 times" in end(tmp_path, protocol_edit=ProtocolEdit("## Goal", "x", "why"))[0]
    assert "1000 to 4000" in end(tmp_path, next_simulation={"n_frames": 64_000})[0]
    assert "not searched" in end(tmp_path, next_simulation={"seed": 3})[0]
    assert (
        "'scenes_edges' is outside its range" in end(tmp_path, next_simulation={"visual_input_type": "scenes_edges"})[0]
    )
    assert (
        "parent has to be 'root'"
        in end(tmp_path, proposals=(Proposal(9, {"batch_size": 2}), Proposal("root", {"batch_size": 4})))[0]
    )
    assert "the block's root" in end(tmp_path, proposals=(Proposal("root", {}), Proposal("root", {"batch_size": 4})))[0]
    # The root again is lawful as what it is: a repetition.
    assert end(tmp_path, proposals=(Proposal("root", {}, "robustness-test"), Proposal("root", {"batch_size": 4}))) == []


def test_a_stimulus_that_is_not_on_this_machine(tmp_path):
    ctx = context(tmp_path, iterations=3, available_stimuli=("scenes_texture",))
    step = Step(
        (),
        9,
        block_summary="s",
        protocol_edit=ProtocolEdit("", "", "r"),
        next_simulation={"visual_input_type": "scenes_flow"},
    )
    assert "not on this machine; there is: scenes_texture" in str(check_step(ctx, step).problems[0])


JUNK = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2), st.just({"a": 1})
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_answer_breaks_the_validation_or_leaves_the_ranges(data, tmp_path_factory):
    ctx = context(tmp_path_factory.getbasetemp(), iterations=data.draw(st.sampled_from([0, 1, 2, 3])))
    names = st.one_of(st.sampled_from(list(PROTOCOL_RANGES) + ["delta_t", "seed"]), st.text(max_size=5))
    parent, words = st.one_of(st.integers(-1, 12), st.just("root"), JUNK), st.text(max_size=8)
    proposal = st.builds(
        Proposal,
        parent,
        st.dictionaries(names, st.one_of(st.floats(0, 1), JUNK), max_size=3),
        st.one_of(st.sampled_from(["exploit", "robustness-test", "explore"]), words),
        words,
    )
    edit = st.one_of(st.none(), st.builds(ProtocolEdit, words, words, words), st.just(ProtocolEdit("", "", "r")))
    step = data.draw(
        st.builds(
            Step,
            st.lists(proposal, max_size=3).map(tuple),
            st.one_of(st.integers(0, 9), JUNK),
            reason=words,
            notes=words,
            activity=st.dictionaries(st.integers(0, 9), words, max_size=2),
            next_simulation=st.one_of(st.just({}), st.dictionaries(names, JUNK, max_size=2)),
            protocol_edit=edit,
            block_summary=words,
        )
    )
    found = check_step(ctx, step).problems
    assert all("\n" not in str(p) or p.slot is None for p in found)
    if not found:
        for candidate in check_step(ctx, step).candidates.values():
            for name, span in ctx.experiment.search.ranges.items():
                assert span.contains(
                    type(span.min or 1)(candidate.config[name]) if span.scale == "int" else candidate.config[name]
                )
            assert {k for k, v in candidate.config.items() if v != root_config(ctx.experiment)[k]} <= set(
                PROTOCOL_RANGES
            )


# --- the reversion check ---


def tree_of(*rows):
    """A one-block context whose nodes are (parent, changes), trained."""
    exp = experiment(n_candidates=1, n_iter_block=12)
    out = [{"event": "run_started", "experiment": exp.model_dump(mode="json"), "protocol": ""}]
    configs = {"root": root_config(exp)}
    for number, (parent, changes) in enumerate(rows, 1):
        configs[number] = {**configs[parent], **changes}
        node = {
            "node": number,
            "parent": parent,
            "config": configs[number],
            "changes": changes,
            "strategy": "exploit",
            "seeds": [1],
        }
        place = {"iteration": number, "block": 1, "iter_in_block": number}
        out.append({"event": "iteration_started", **place, "simulation": {}, "nodes": [node]})
        out.append({"event": "node_finished", "node": number, "metrics": {"connectivity_R2": 0.5}})
    state = fold([{"time": 0.0, **e} for e in out])
    from pathlib import Path

    base = context(Path("."), exp, iterations=1, n_proposals=1)
    return dataclasses.replace(
        base, state=state, iter_in_block=len(rows), new_nodes=(len(rows),), next_opens_block=False
    )


LR, NOISE = "learning_rate_start", "noise_model_level"


@pytest.mark.parametrize(
    "rows, proposal, parent",
    [
        # The protocol's example: the rate goes back to node 2's value.
        ([("root", {}), (1, {LR: 1e-4}), (2, {LR: 2e-4}), (3, {NOISE: 0.1})], (4, {LR: 1e-4}), 2),
        # Node 2 has the value, but is no ancestor of the parent named: nothing is taken back.
        ([("root", {}), (1, {LR: 1e-4}), (1, {NOISE: 0.1})], (3, {LR: 1e-4}), 3),
        # Of two ancestors with the value, the nearest.
        ([("root", {}), (1, {NOISE: 0.1}), (2, {LR: 1e-4}), (3, {NOISE: 0.2})], (4, {LR: 5e-4}), 2),
        # A later node has the value: nothing to revert to.
        ([("root", {}), (1, {LR: 1e-4}), (1, {NOISE: 0.1})], (2, {NOISE: 0.1}), 2),
        # A new value, and two changes at once.
        ([("root", {}), (1, {LR: 1e-4}), (2, {NOISE: 0.1})], (3, {LR: 3e-4}), 3),
        ([("root", {}), (1, {LR: 1e-4}), (2, {NOISE: 0.1})], (3, {LR: 5e-4, "batch_size": 2}), 3),
    ],
)
def test_reversion_check(rows, proposal, parent):
    ctx = tree_of(*rows)
    step = Step((Proposal(*proposal),), chosen=len(rows), **logged(ctx))
    assert check_step(ctx, step).problems == []
    (candidate,) = check_step(ctx, step).candidates.values()
    assert candidate.parent == parent
    named = ctx.state.nodes[proposal[0]].config
    assert candidate.config == {**named, **proposal[1]}, "the configuration stays as proposed"
    start = ctx.state.nodes[parent].config
    assert {**start, **candidate.changes} == candidate.config
    found = check_step(ctx, step).reversions
    assert bool(found) == (parent != proposal[0])
    if found:
        assert f"use parent={parent}" in str(found[0])
        again = Step((Proposal(parent, candidate.changes),), chosen=len(rows))
        assert check_step(ctx, again).reversions == (), "what the check asked for passes it"
