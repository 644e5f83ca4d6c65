"""The map of a run: what the prompt shows of it, where it would train next, and what it may not know."""

from dataclasses import replace

import numpy as np
import pytest
from support.search_contexts import context
from support.search_landscape import evaluate, experiment, r2
from support.search_runs import go

from flyjax.report.html import write_report
from flyjax.search.iteration import next_context
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.llm.prompt import render_prompt
from flyjax.search.policy.run_map import information, map_text, most_uncertain, run_map, skilled_map
from flyjax.search.proposers import make_proposer, rules

EXP = experiment(n_iter_block=6, n_blocks=1, proposer="random")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """The state after 24 draws from the ranges."""
    return go(tmp_path_factory.mktemp("drawn"), EXP, make_proposer("random", EXP)).state


def test_the_map_predicts_and_knows_what_matters(mapped):
    found = skilled_map(mapped, 1)
    assert found.n_configurations == 24 and found.surrogate().skill.low > 0.1
    facts = found.summary()
    assert next(iter(facts["importance"])) == "noise_model_level"
    fresh = found.space.settings(found.space.sample(64, 5))
    true = [r2({**EXP.training.model_dump(), **found.space.constant, **c}) for c in fresh]
    assert np.corrcoef(found.predict(fresh).mean, true)[0, 1] > 0.6


def test_the_prompt_holds_it_and_says_where_there_is_none(mapped, tmp_path):
    text = map_text(mapped, 1)
    rows = [line for line in text.splitlines() if line.startswith("noise_model_level | ")]
    assert len(rows) == 1 and len(text) < 4000
    asked = next_context(EXP, mapped, tmp_path, ("DAVIS",), 0)
    assert text in render_prompt(asked)
    few = context(tmp_path)
    assert map_text(few.state, 1) in render_prompt(few) and run_map(few.state, 1).problem in map_text(few.state, 1)
    assert map_text(context(tmp_path, iterations=0).state, 1) == ""


def test_it_is_a_pure_function_of_the_journal(mapped):
    again = replace(mapped, wall_s=99.0, notes="other")
    assert run_map(again, 1) is run_map(mapped, 1), "and made once per iteration"


def test_a_blind_search_sees_no_ground_truth(tmp_path):
    """The ground truth changes, what is held out does not: the same map."""
    texts = []
    for truth in (1.0, 0.2):

        def trainer(plan, truth=truth):
            out = evaluate(plan)
            for result in out.values():
                for one in (result["metrics"], *result["per_seed"]):
                    one["connectivity_R2"] *= truth
            return out

        exp = experiment(n_iter_block=4, n_blocks=1, proposer="random", objective="blind")
        texts.append(map_text(go(tmp_path / str(truth), exp, make_proposer("random", exp), trainer=trainer).state, 1))
    assert texts[0] == texts[1] and "connectivity_R2" not in texts[0] and "test_R2" in texts[0]


def test_picks_of_a_batch_tell_different_things(mapped):
    found = skilled_map(mapped, 1)
    picks = [config for config, _ in zip(most_uncertain(found, 3), range(8))]
    pool = found.space.settings(found.space.sample(256, 3))
    worth = np.sort(information(found, pool))[::-1]
    assert information(found, picks[:1])[0] == pytest.approx(worth[0]), "the first is where most is to be learned"
    assert information(found, picks).mean() > worth.mean()
    best = [pool[k] for k in np.argsort(-information(found, pool))[:8]]

    def nearest(configs):
        x = found.space.places(configs)
        distance = np.sqrt(((x[:, None] - x) ** 2).sum(-1)) + 9 * np.eye(len(x))
        return distance.min(1).mean()

    assert nearest(picks) > nearest(best), "they spread"


def test_the_proposer_fills_the_space_until_the_map_has_skill(tmp_path, mapped):
    exp = experiment(n_iter_block=6, n_blocks=1, proposer="map")
    state = go(tmp_path, exp, make_proposer("map", exp)).state
    places = [[n.config[k] for k in exp.search.ranges] for n in state.nodes.values()]
    assert len(state.nodes) == 24 and len({tuple(p) for p in places}) == 24, "no configuration twice"
    asked = replace(next_context(EXP, mapped, tmp_path, ("DAVIS",), 0), n_proposals=4, next_opens_block=False)
    step = make_proposer("map", exp).step(asked)
    configs = [{**mapped.nodes[p.parent].config, **p.changes} for p in step.proposals]
    found = skilled_map(mapped, 1)
    anywhere = information(found, found.space.settings(found.space.sample(256, 9)))
    assert information(found, configs[:1])[0] > np.quantile(anywhere, 0.9)
    assert make_proposer("map", exp).step(asked).proposals == step.proposals
    assert fold(read_journal(tmp_path)).blocks[1].nodes[0] == 1


@pytest.mark.parametrize("strategy", ["failure-probe", "explore"])
def test_the_rules_probe_and_explore_where_the_map_is_uncertain(mapped, tmp_path, monkeypatch, strategy):
    asked = replace(next_context(EXP, mapped, tmp_path, ("DAVIS",), 0), n_proposals=4, next_opens_block=False)
    parent = mapped.nodes[5]
    proposer, found = rules.RulesProposer(EXP), skilled_map(mapped, 1)

    def first(count=1):
        known, rng = rules.rules(asked.protocol), rules.generator(asked)
        slot = rules.Slot(strategy, parent.id)
        drafts, taken = proposer._drafts(asked, slot, parent, known, EXP.search.ranges, rng), []
        filled = proposer._fill(asked, slot, taken, known, rules.generator(asked), {})
        return filled, [next(drafts) for _ in range(count)]

    filled, (usual,) = first()
    worth = [information(found, [{**parent.config, **c}])[0] for c in (filled.changes, usual)]
    assert worth[0] >= worth[1] and filled.strategy == strategy
    if strategy == "failure-probe":
        assert len(filled.changes) == 1, "still one parameter at its extreme"
    else:
        assert worth[0] > worth[1]
    monkeypatch.setattr(rules, "skilled_map", lambda *_: None)
    assert first()[0].changes == usual, "without skill as before"


def test_the_objective_map_scores_the_predictions_and_leaves_the_tree(tmp_path):
    trees, texts = [], []
    for objective in ("connectivity_R2", "map"):
        exp = experiment(n_iter_block=4, n_blocks=1, proposer="random", objective=objective)
        state = go(tmp_path / objective, exp, make_proposer("random", exp)).state
        trees.append((state.nodes, [c.chosen for c in state.choices.values()]))
        texts.append((tmp_path / objective / "analysis.md").read_text())
    assert trees[0] == trees[1], "UCB and choices keep connectivity_R2"
    scores = [c.map_score for c in state.choices.values()]
    assert scores[:2] == [None, None], "fewer than 12 configurations"
    score = run_map(state, 1).classes.score
    assert scores[3]["log_loss"] == pytest.approx(score.log_loss, abs=1e-4)
    assert scores[3]["skill"] == pytest.approx(1 - score.log_loss / score.base_log_loss, abs=1e-3)
    shown = f"{scores[3]['brier']:.3f}"
    assert shown in texts[1] and shown in write_report(tmp_path / "map").read_text()
    assert map_text(state, 1).count(shown) == 1
