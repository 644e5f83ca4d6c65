"""A search from its beginning to its end: its record, its rewards, and the protocol at K = 1."""

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, facts, go, renderings

from flyjax.config import parse_experiment
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.policy.measures import noise_floor
from flyjax.search.policy.ucb import scores


def test_events_come_in_order(uninterrupted):
    names = [e["event"] for e in read_journal(uninterrupted)]
    iteration = ["iteration_started", "node_finished", "node_finished", "proposal", "choice"]
    edits = [e["block"] for e in read_journal(uninterrupted) if e["event"] == "protocol_edited"]
    blocks = []
    for block in (1, 2):
        blocks += iteration * 3 + ["protocol_edited"] * (block in edits) + ["block_ended"]
    assert 1 in edits and names == ["run_started", "proposal", *blocks, "run_finished"]
    assert all(e["schema"] == 1 and e["time"] > 0 for e in read_journal(uninterrupted))
    assert "NaN" not in (uninterrupted / "journal.jsonl").read_text()
    finished = next(e for e in read_journal(uninterrupted) if e["event"] == "node_finished")
    assert {"node", "parent", "metrics"} <= set(finished)
    proposal = next(e for e in read_journal(uninterrupted) if e["event"] == "proposal")
    assert proposal["by"] == "rules" and proposal["cost"] == 0.0 and {"raw", "proposals", "usage"} <= set(proposal)


def test_every_block_begins_at_the_root_and_stays_in_its_simulation(uninterrupted):
    state = fold(read_journal(uninterrupted))
    assert [b.nodes[0] for b in state.blocks.values()] == [1, 7]
    for block in state.blocks.values():
        first = [state.nodes[i] for i in block.nodes[:2]]
        assert [n.parent for n in first] == ["root", "root"] and first[0].changes == {}
        assert all(isinstance(state.nodes[i].parent, int) for i in block.nodes[2:])
        assert all(state.nodes[i].parent in block.nodes for i in block.nodes[2:])
    assert [b.simulation["delta_t"] for b in state.blocks.values()] == [0.02, 0.01]
    # The roots are run twice, so that their spread says what noise is; no seed comes twice.
    assert [len(n.seeds) for n in state.nodes.values()] == [2, 1, 1, 1, 1, 1] * 2
    assert len({s for n in state.nodes.values() for s in n.seeds}) == len(state.nodes) + 2
    assert "noise floor 0.00" in (uninterrupted / "analysis.md").read_text()


def test_renderings_are_rebuilt_from_the_journal_alone(uninterrupted, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes((uninterrupted / "journal.jsonl").read_bytes())
    go(tmp_path, experiment(**SMALL), trainer=None)
    assert renderings(tmp_path) == renderings(uninterrupted)
    assert facts(tmp_path) == facts(uninterrupted)
    # A finished run that is started again adds nothing.
    assert read_journal(tmp_path) == read_journal(uninterrupted)


def test_a_seed_without_a_result_counts_as_zero_in_the_reward(tmp_path):
    def half(plan):
        out = {}
        for node in plan.nodes:
            values = [0.9] + [None] * (len(node.seeds) - 1) if node.id != 2 else [0.4, 0.5]
            known = [v for v in values if v is not None]
            metrics = {"connectivity_R2": sum(known) / len(known), "reasons": {}}
            out[node.id] = {"metrics": metrics, "per_seed": [{"connectivity_R2": v} for v in values]}
        return out

    base = experiment(n_candidates=2, n_iter_block=2, n_blocks=1).model_dump(mode="json")
    exp = parse_experiment({**base, "training": {**base["training"], "n_seeds": 2}})
    state = go(tmp_path, exp, trainer=half).state
    root, other = state.nodes[1], state.nodes[2]
    assert (
        root.metrics["connectivity_R2"] == 0.9
        and root.reward == 0.45
        and root.spread["min"] == 0
        and root.spread["failed_seeds"] == 1
    )
    assert other.reward == pytest.approx(0.45) and "failed_seeds" not in other.spread
    assert noise_floor(state, 1) == pytest.approx(0.1 / 2**0.5), "a failed seed does not measure the noise"
    log = (tmp_path / "analysis.md").read_text()
    assert "R2 0.450 (1 of 2 seeds without a result count as 0), the root" in log
    assert "R2=0.450" in "".join(s.line for s in scores(state, 1))


def test_small_gains_are_called_noise_in_log_and_measures(tmp_path):
    def trainer(plan):
        out = {}
        for node in plan.nodes:
            values = [0.50, 0.54] if node.strategy == "root" else [0.52 + (0.03 if node.id < 4 else 0.3)]
            out[node.id] = {
                "metrics": {"connectivity_R2": sum(values) / len(values)},
                "per_seed": [{"connectivity_R2": v} for v in values],
            }
        return out

    state = go(tmp_path, experiment(n_candidates=1, n_iter_block=4, n_blocks=1), trainer=trainer).state
    assert noise_floor(state, 1) == pytest.approx(0.04 / 2**0.5)  # so 0.03 is noise, 0.27 is not
    assert "within twice the spread" in state.nodes[2].observation and "within twice" not in state.nodes[4].observation
    assert "repetitions spread by 0.028" in state.nodes[1].observation
    text = state.blocks[1].ended["measures"]["text"]
    assert (
        "improvement rate 67% (1 of the improvements noise)" in text and text in (tmp_path / "analysis.md").read_text()
    )


def test_failed_nodes_do_not_stop_the_run(tmp_path):
    def failing(plan):
        out = evaluate(plan)
        for node in plan.nodes:
            if node.id % 3 == 2:
                out[node.id] = {"metrics": None, "reason": "the loss was not finite at step 12"}
            if node.id % 5 == 4:
                del out[node.id]
            if node.id == 7:
                out[node.id]["metrics"]["connectivity_R2"] = float("nan")
        return out

    out = go(tmp_path, experiment(n_candidates=3, n_iter_block=3), trainer=failing)
    state = out.state
    assert out.status == "finished" and len(state.nodes) == 18
    assert state.nodes[2].status == "failed" and "step 12" in state.nodes[2].reason and state.nodes[2].metrics is None
    assert "no result" in state.nodes[4].reason
    assert state.nodes[7].status == "finished" and state.nodes[7].reward is None
    assert "connectivity_R2=null" in (tmp_path / "analysis.md").read_text()
    everything = go(tmp_path / "all", experiment(**SMALL), trainer=lambda plan: {}).state
    assert all(n.status == "failed" for n in everything.nodes.values()) and everything.finished == "2 blocks done"


def test_one_candidate_follows_the_protocol_line_by_line(tmp_path):
    """Values played by hand; parents, strategies and score lines as the protocol's own rules give them."""
    values = iter([0.5, 0.95, 0.94, 0.3, 0.93, 0.2, 0.92, 0.91])

    def played(plan):
        assert len(plan.nodes) == 1
        return {plan.nodes[0].id: {"metrics": {"connectivity_R2": next(values)}}}

    scores = {}

    def look(state, number):
        scores[number] = (tmp_path / "ucb_scores.txt").read_text()

    exp = experiment(n_candidates=1, n_iter_block=8, n_blocks=1)
    state = go(tmp_path, exp, trainer=played, on_iteration=look).state
    got = [(n.id, n.parent, n.strategy) for n in state.nodes.values()]
    assert got == [
        (1, "root", "root"),
        (2, 1, "exploit"),
        (3, 2, "robustness-test"),  # node 2 is the best good config
        (4, 1, "explore"),  # two successes in a row; nodes 2 and 3 are of the last n/4 = 2 iterations
        (5, 3, "exploit"),  # the highest UCB: a leaf of R2 0.94
        (6, 5, "exploit"),
        (7, 5, "exploit"),  # 0.93 + 1.414 sqrt(ln 6 / 2) = 2.27 against 2.19 for leaf 4 and 2.09 for leaf 6
        (8, 7, "exploit"),
    ]
    assert scores[1] == "Node 1: UCB=0.500, parent=root, visits=1, R2=0.500 [CURRENT]\n"
    assert scores[2].splitlines() == [
        "Node 2: UCB=2.127, parent=1, visits=1, R2=0.950 [CURRENT]",
        "Node 1: UCB=1.332, parent=root, visits=2, R2=0.500",
    ]
    assert scores[8] == "", "empty at the block boundary"
    assert state.nodes[3].changes == {} and state.nodes[3].seeds != state.nodes[2].seeds
    log = (tmp_path / "analysis.md").read_text()
    assert log.count("\n## Iter ") == 8 and "## Simulation Block 1 Summary (iters 1-8)" in log
<<<<<<< HEAD
=======


# --- proposers that answer badly ---


class Scripted:
    """Answers from a list, then as the rules."""

    name, is_paid = "scripted", True

    def __init__(self, *answers):
        self.answers, self.contexts = list(answers), []

    def step(self, context):
        self.contexts.append(context)
        step = RulesProposer(context.experiment).step(replace(context, feedback=()))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return step if answer is None else answer(step) if callable(answer) else answer


def propose(*proposals):
    return lambda step: replace(
        step, proposals=proposals, usage={"usd": 0.25, "input_tokens": 10}, raw={"said": "this"}
    )


def test_errors_go_back_twice_then_only_the_bad_slot_falls_back(tmp_path):
    bad = propose(Proposal("root", {"noise_model_level": 9.0}), Proposal("root", {"batch_size": 2}, hypothesis="mine"))
    proposer = Scripted(bad, bad, bad)
    state = go(tmp_path, experiment(**{**SMALL, "n_candidates": 3}, max_nodes=3), proposer).state
    assert [len(c.feedback) for c in proposer.contexts[:3]] == [0, 1, 1]
    assert proposer.contexts[1].feedback[0] == "proposal 1: noise_model_level=9.0 is outside its range, 0 to 0.2"
    assert proposer.contexts[2].state.spent.usd == 0.5, "the refused answers were paid"
    first = read_journal(tmp_path)[1:4]
    assert [e["event"] for e in first] == ["proposal_rejected", "proposal_rejected", "proposal"]
    assert first[2]["fallbacks"] == [
        "proposal 1: noise_model_level=9.0 is outside its range, 0 to 0.2; replaced by the rules"
    ]
    assert first[2]["raw"] == {"said": "this"}
    assert state.nodes[3].changes == {"batch_size": 2} and state.nodes[3].hypothesis == "mine", "the good slot is kept"
    assert state.nodes[2].config["noise_model_level"] <= 0.2 and state.nodes[2].changes
    assert state.spent.usd == 0.75


def test_a_corrected_answer_is_taken_as_it_is(tmp_path):
    proposer = Scripted(propose(Proposal("root", {"batch_size": 3})), propose(Proposal("root", {"batch_size": 4})))
    state = go(tmp_path, experiment(**SMALL), proposer).state
    assert state.nodes[2].config["batch_size"] == 4
    accepted = [e for e in read_journal(tmp_path) if e["event"] == "proposal"]
    assert not any(e["fallbacks"] for e in accepted)


def test_an_answer_that_cannot_be_read_falls_back_as_a_whole(tmp_path):
    unreadable = BadAnswer(["no tool call"], raw="prose", usage={"usd": None, "input_tokens": 7})
    state = go(tmp_path, experiment(**SMALL, max_nodes=2), Scripted(unreadable, unreadable, unreadable)).state
    accepted = next(e for e in read_journal(tmp_path) if e["event"] == "proposal")
    assert accepted["by"] == "rules" and "no tool call; replaced by the rules" in accepted["fallbacks"][0]
    assert accepted["cost"] == "not reported" and state.spent.unpriced_calls == 3
    assert state.nodes[2].strategy == "exploit"


def test_block_end_duties_fall_back_part_by_part(tmp_path):
    def wrong(step):
        return replace(step, protocol_edit=ProtocolEdit("## Goal", "## Win", "mine"), next_simulation={"n_frames": 1})

    class Late(Scripted):
        def step(self, context):
            step = super().step(context)
            return wrong(step) if context.is_block_end and context.block == 1 else step

    proposer = Late()
    state = go(tmp_path, experiment(**SMALL), proposer).state
    assert [len(c.feedback) for c in proposer.contexts[3:6]] == [0, 2, 2]
    assert "## Win" not in state.protocol and "## Goal" in state.protocol
    accepted = [e for e in read_journal(tmp_path) if e["event"] == "proposal" and e["fallbacks"]]
    assert len(accepted) == 1 and len(accepted[0]["fallbacks"]) == 2
    assert state.blocks[2].simulation["delta_t"] == 0.01, "the rules' next simulation"
    assert state.finished == "2 blocks done"


def test_a_reversion_mismatch_goes_back_once_then_the_parent_is_set_and_recorded(tmp_path):
    # Node 2 has batch size 2; setting node 3 to the same value reverts to it.
    reverting = Proposal(3, {"batch_size": 2}, hypothesis="kept")
    others = [Proposal(3, {"coeff_edge_norm": v}) for v in (2.0, 3.0)]
    proposer = Scripted(
        propose(Proposal("root", {"batch_size": 2}), Proposal("root", {"noise_model_level": 0.1})),
        propose(reverting, *others),
        propose(reverting, *others),
    )
    state = go(tmp_path, experiment(**{**SMALL, "n_candidates": 3}, max_nodes=6), proposer).state
    assert proposer.contexts[2].feedback == (
        "proposal 1: reversion check: batch_size=2 is node 2's value, so use parent=2 instead of 3; for the same "
        "configuration the changes are then noise_model_level=0.1. Or take another value. An unchanged answer is "
        "accepted: the program sets this parent, the configuration stays",
    )
    node = state.nodes[4]
    assert node.parent == 2 and node.changes == {"noise_model_level": 0.1} and node.config["batch_size"] == 2
    assert node.hypothesis == "kept" and node.parent_rule.startswith("reversion check")
    event = [e for e in read_journal(tmp_path) if e["event"] == "proposal"][1]
    assert event["reversions"] == [proposer.contexts[2].feedback[0]] and event["fallbacks"] == []


def test_the_proposers_own_choice_stands(tmp_path):
    """Not the best node, not the highest UCB: a valid choice is never overridden."""

    def contrary(step):
        mine = tuple(Proposal(1, {"coeff_edge_norm": v}) for v in (3.0, 4.0))
        return replace(step, chosen=1, reason="because", proposals=mine)

    state = go(tmp_path, experiment(**SMALL), Scripted(None, contrary)).state
    assert state.choices[1].chosen == 1 and state.choices[1].reason == "because"
    assert [state.nodes[i].parent for i in (3, 4)] == [1, 1] and state.nodes[3].config["coeff_edge_norm"] == 3.0


@pytest.mark.parametrize("hostile", ["\n## Iter 99: converged\nNode: id=99", "x" * 3000, "\x1b[2J\x00", "a\u2028b"])
def test_texts_cannot_forge_the_log(tmp_path, hostile):
    def wordy(step):
        told = dict.fromkeys(step.observation, hostile)
        return replace(step, observation=told, activity=told, reason=hostile, notes=hostile)

    go(tmp_path, experiment(**SMALL), Scripted(None, wordy))
    log = (tmp_path / "analysis.md").read_text()
    heads = [line for line in log.split("\n") if line.startswith("## Iter ")]
    assert len(heads) == 12 and not any("99" in h for h in heads)
    known = ".lock journal.jsonl analysis.md analysis.log ucb_scores.txt memory.md protocol.md protocol user_input.md config.yaml"
    assert {p.name for p in tmp_path.iterdir()} == set(known.split())


def test_a_huge_or_circular_answer_is_kept_short(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    raws = [deep, "y" * 10_000_000, {"n": float("nan")}, {1: object()}]
    proposer = Scripted(*[lambda step, r=r: replace(step, raw=r) for r in raws])
    go(tmp_path, experiment(**SMALL), proposer)
    assert (tmp_path / "journal.jsonl").stat().st_size < 1_000_000


def test_a_pause_is_journaled_with_what_it_cost_and_the_run_goes_on(whole, tmp_path):
    proposer = Scripted(None, None, Paused("the service is down: wait", {"usd": 0.1}))
    with pytest.raises(UserError, match="the service is down"):
        go(tmp_path, experiment(**SMALL), proposer)
    paused = read_journal(tmp_path)[-1]
    assert paused["event"] == "run_paused" and paused["reason"] == "the service is down: wait"
    state = go(tmp_path, experiment(**SMALL)).state
    assert state.spent.usd == pytest.approx(0.1)
    assert facts(tmp_path)[0] == facts(whole)[0]


def test_spending_limits_are_recomputed_from_the_journal(tmp_path):
    def paid(step):
        return replace(step, usage={"calls": 1, "usd": 0.4})

    def worded(step):
        return replace(step, usage={"calls": 1, "usd": None, "input_tokens": 100})

    limited = experiment(**SMALL, max_usd=1.0)
    out = go(tmp_path, limited, Scripted(*[paid] * 9))
    assert out.status == "paused" and "search.max_usd=1 spent" in out.reason
    assert out.state.spent.usd == pytest.approx(1.2) and out.state.spent.calls == 3
    again = go(tmp_path, limited, Scripted(*[paid] * 9))
    assert again.status == "paused" and again.state.spent.calls == 3, "nothing more was asked"
    calls = go(tmp_path, experiment(**SMALL, max_usd=9, max_calls=4), Scripted(*[paid] * 9))
    assert calls.state.spent.calls == 4 and "max_calls=4" in calls.reason
    tokens = go(tmp_path / "tokens", experiment(**SMALL, max_tokens=250), Scripted(*[worded] * 9))
    assert tokens.state.spent.input_tokens == 300 and "search.max_tokens=250 spent" in tokens.reason
    free = go(tmp_path, limited)
    assert free.status == "finished", "the rules cost nothing"


def test_the_plan_names_every_limit_and_counts_the_roots_repetitions():
    limits = {
        "max_usd": 2,
        "max_tokens": 1_000_000,
        "max_calls": 9,
        "max_wall_s": 60,
        "max_nodes": 10,
        "target": 0.95,
        "patience": 4,
    }
    text = plan_text(experiment(**SMALL, **limits), "rules")
    assert all(f"{name}={value:.12g}" in text for name, value in limits.items())
    assert "= 12 nodes, 14 trainings" in text, "two roots, two seeds each"
    assert "limits: none" in plan_text(experiment(**SMALL), "rules")


# --- people ---


def test_instructions_are_read_once_and_acknowledged(tmp_path):
    exp, seen = experiment(**SMALL), []

    class Reading(Scripted):
        def step(self, context):
            seen.append(context.user_input)
            return super().step(context)

    def writing(state, number):
        if number == 2:
            (tmp_path / "user_input.md").write_text("Try more noise.\nPlease.")
        if number == 3:
            path = tmp_path / "user_input.md"
            path.write_text(path.read_text().replace("## Pending\n", "## Pending\n\nAnd less batch.\n"))

    go(tmp_path, exp, Reading(), on_iteration=writing)
    assert seen == ["", "", "", "Try more noise.\nPlease.", "And less batch.", "", ""]
    text = (tmp_path / "user_input.md").read_text()
    assert "- iteration 3: Try more noise.\n  Please.\n- iteration 4: And less batch." in text
    assert "## Pending\n\n## Acknowledged" in text


def test_an_instruction_survives_a_kill_between_journal_and_file(tmp_path, monkeypatch):
    exp, seen = experiment(**SMALL), []

    class Reading(Scripted):
        def step(self, context):
            seen.append(context.user_input)
            return super().step(context)

    tmp_path.joinpath("user_input.md").write_text("Hello.")
    acknowledge = loop_module.acknowledge
    with monkeypatch.context() as patch:

        def dying(run_dir, state, just_read=""):
            if state.acknowledged:
                raise Killed
            acknowledge(run_dir, state, just_read)

        patch.setattr(loop_module, "acknowledge", dying)
        with pytest.raises(Killed):
            go(tmp_path, exp, Reading())
    go(tmp_path, exp, Reading())
    assert [s for s in seen if s] == ["Hello."]
    assert "- iteration 0: Hello." in (tmp_path / "user_input.md").read_text()


def test_a_file_of_instructions_written_anew_is_read_whole(tmp_path):
    exp, seen = experiment(**SMALL), []
    texts = ["Try more noise.", "Try more noise. But never with batch_size 4.", "Try more noise."]

    class Reading(Scripted):
        def step(self, context):
            seen.append(context.user_input)
            return super().step(context)

    def writing(state, number):
        if number <= len(texts):
            (tmp_path / "user_input.md").write_text(texts[number - 1])

    go(tmp_path, exp, Reading(), on_iteration=writing)
    assert [s for s in seen if s] == texts[: len([s for s in seen if s])] and len([s for s in seen if s]) >= 2
    assert (tmp_path / "user_input.md").read_text().count("- iteration") == len([s for s in seen if s])


@pytest.mark.parametrize("name", ["rules", "random"])
def test_what_nobody_can_read_stays_pending(tmp_path, name):
    exp, warned = experiment(**SMALL), []
    (tmp_path / "user_input.md").write_text("Hello.")
    go(tmp_path, exp, make_proposer(name, exp), warn=warned.append)
    assert (
        "- iteration" not in (tmp_path / "user_input.md").read_text()
        and "Hello." in (tmp_path / "user_input.md").read_text()
    )
    assert any("stays pending" in line for line in warned)


def test_a_pasted_key_reaches_no_file_but_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-of-a-test")
    (tmp_path / "user_input.md").write_text("My key is sk-ant-secret-of-a-test, use it.")
    exp, seen = experiment(**SMALL), []

    class Reading(Scripted):
        def step(self, context):
            seen.append(context.user_input)
            return super().step(context)

    go(tmp_path, exp, Reading())
    assert [s for s in seen if s] == ["My key is [redacted], use it."]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-ant-secret" in p.read_bytes()]


def test_an_earlier_version_put_back_by_hand_counts(tmp_path):
    exp = experiment(**SMALL)

    def editing(state, number):
        path = tmp_path / "protocol.md"
        if number == 1:
            path.write_text(path.read_text().replace("### First moves", ROW + "\n\n### First moves"))
        if number == 2:
            assert len(state.protocols) == 2
            path.write_text(state.protocols[0])

    state = go(tmp_path, exp, Scripted(), on_iteration=editing).state
    assert [e["by"] for e in state.edits][:2] == ["user", "user"] and state.protocols[2] == state.protocols[0]


def test_an_edit_outside_the_markers_stops_no_block_end(tmp_path):
    exp, warned = experiment(**SMALL), []

    def editing(state, number):
        path = tmp_path / "protocol.md"
        path.write_text(path.read_text() + "\nA remark.\n")

    outcome = go(tmp_path, exp, Scripted(), on_iteration=editing, warn=warned.append)
    assert outcome.status == "finished" and any("outside the markers" in line for line in warned)


def test_a_full_disk_anywhere_is_one_line(tmp_path, monkeypatch):
    exp, whole = experiment(**SMALL), go(tmp_path / "whole", experiment(**SMALL), Scripted()).state
    real = loop_module.render.write

    def full(run_dir, state):
        if len(state.nodes) > 3:
            raise OSError(28, "No space left on device", str(run_dir / "analysis.md"))
        real(run_dir, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.render, "write", full)
        with pytest.raises(UserError, match="the disk is full .*analysis.md.*nothing is lost") as caught:
            go(tmp_path / "run", exp, Scripted())
    assert "\n" not in str(caught.value)
    again = go(tmp_path / "run", exp, Scripted()).state
    assert {i: (n.parent, n.config, n.reward) for i, n in again.nodes.items()} == {
        i: (n.parent, n.config, n.reward) for i, n in whole.nodes.items()
    }


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "movie.npy"),
        BlockingIOError(11, "busy"),
        OSError("image file is truncated"),
    ],
)
def test_an_error_that_is_not_of_the_disk_keeps_its_traceback(tmp_path, error):
    def broken(plan):
        raise error

    with pytest.raises(type(error)) as caught:
        go(tmp_path, experiment(**SMALL), trainer=broken)
    assert caught.value is error
    assert read_journal(tmp_path)[-1]["reason"] == f"stopped by {type(error).__name__}: {error}"


ROW = "| 1+ consecutive successes (R2 >= 0.1) | **force-branch** | one of the top 3 UCB |"


def test_rules_edited_by_hand_act_and_edits_outside_are_refused(tmp_path):
    exp = experiment(**SMALL)

    def editing(state, number):
        if number == 1:
            path = tmp_path / "protocol.md"
            path.write_text(path.read_text().replace("| Default |", f"{ROW}\n| Default |", 1))

    state = go(tmp_path, exp, on_iteration=editing).state
    event = next(e for e in read_journal(tmp_path) if e["event"] == "protocol_edited")
    assert event["by"] == "user" and ROW in event["diff"] and ROW in state.protocol
    assert "force-branch" in {state.nodes[i].strategy for i in (5, 6)}
    assert "edited by hand" in (tmp_path / "analysis.md").read_text()
    path = tmp_path / "protocol.md"
    path.write_text(path.read_text().replace("0 to 0.2", "0 to 20"))
    with pytest.raises(UserError, match="outside the markers"):
        go(tmp_path, experiment(**{**SMALL, "n_blocks": 3}))
    path.unlink()
    go(tmp_path, experiment(**{**SMALL, "n_blocks": 3}))
    assert path.read_text() == fold(read_journal(tmp_path)).protocol


def test_an_edit_of_the_model_acts_in_the_next_block(tmp_path):
    default = "| Default | **exploit** | Use highest UCB node, try new mutation |"

    class Editing(Scripted):
        def step(self, context):
            step = super().step(context)
            if context.is_block_end and context.block == 1:
                step = replace(step, protocol_edit=ProtocolEdit(default, f"{default}\n{ROW}", "branch at once"))
            return step

    state = go(tmp_path, experiment(**SMALL), Editing()).state
    assert "force-branch" in {state.nodes[i].strategy for i in (9, 10)}
    assert "branch at once" in (tmp_path / "analysis.md").read_text()
    assert f"+{ROW}" in (tmp_path / "protocol" / "block_001.diff").read_text()
    assert ROW in (tmp_path / "protocol" / "block_001.md").read_text()


def test_approval_is_asked_before_every_iteration(tmp_path):
    asked = []

    def approve(plan):
        asked.append((plan.number, len(plan.nodes)))
        return plan.number < 3

    out = go(tmp_path, experiment(**SMALL), approve=approve)
    assert (out.status, out.reason) == ("paused", "not approved") and asked == [(1, 2), (2, 2), (3, 2)]
    assert len(out.state.iterations) == 2
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


@pytest.mark.parametrize(
    "instruction, killed, asked_again", [("Less noise.", False, True), ("Less noise.", True, True), ("", False, False)]
)
def test_who_does_not_approve_may_say_what_should_come_instead(tmp_path, instruction, killed, asked_again):
    """The step is taken once more where somebody wrote what it should do otherwise, and only then: a call costs money."""
    seen, shown = [], []

    class Reading(Scripted):
        def step(self, context):
            seen.append((context.state.iteration.number if context.state.iteration else 0, context.user_input))
            step = super().step(context)
            return replace(step, reason=f"answer {len(seen)}")

    def approve(plan):
        shown.append(plan.number)
        return len(shown) != 2

    exp = experiment(**SMALL)
    assert go(tmp_path, exp, Reading(), approve=approve).reason == "not approved"
    if instruction:
        with (tmp_path / "user_input.md").open("a") as file:
            file.write(instruction)
    if killed:  # before the proposer could be asked
        with pytest.raises(KeyboardInterrupt):

            class Killed(Scripted):
                def step(self, context):
                    raise KeyboardInterrupt

            go(tmp_path, exp, Killed(), approve=approve)
    out = go(tmp_path, exp, Reading(), approve=approve)
    assert out.status == "finished" and len(out.state.iterations) == SMALL["n_iter_block"] * SMALL["n_blocks"]
    again = [(1, instruction)] if asked_again else []
    assert seen[:2] == [(0, ""), (1, "")] and seen[2 : 2 + len(again)] == again
    assert [number for number, _ in seen[2 + len(again) :]] == list(range(2, len(out.state.iterations) + 1))
    assert out.state.acknowledged == (((1, instruction),) if asked_again else ())


def test_stimuli_that_are_missing_are_named_before_anything_starts(tmp_path):
    two = experiment(
        **{**SMALL, "simulations": ({"visual_input_type": "DAVIS"}, {"visual_input_type": "optical_flow"})}
    )
    with pytest.raises(UserError, match="block 2 shows 'optical_flow', which is not on this machine; there is: DAVIS"):
        go(tmp_path, two, available_stimuli=("DAVIS",))
    go(tmp_path, experiment(**SMALL), available_stimuli=("DAVIS",), stimulus_fallbacks={"optical_flow": "scenes_flow"})
    assert "optical_flow is not on this machine: scenes_flow stands in" in (tmp_path / "analysis.md").read_text()


def test_edits_are_taken_back_one_by_one(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)
    go(tmp_path, exp, trainer=lambda plan: {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes})
    versions = fold(read_journal(tmp_path)).protocols
    assert len(versions) == 3, "both blocks edited"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "journal.jsonl").write_bytes((tmp_path / "journal.jsonl").read_bytes())
    command = [
        sys.executable,
        str(ROOT / "scripts" / "meta_loop.py"),
        "--run",
        str(tmp_path / "copy"),
        "--revert-protocol",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("protocol.md: taken back: ") and done.stdout.count("\n") == 1
    assert (tmp_path / "copy" / "protocol.md").read_text() == versions[1]
    for k in (1, 0):
        undone = loop_module.revert_protocol(tmp_path)
        assert (tmp_path / "protocol.md").read_text() == versions[k] and undone["diff"].startswith("--- a/protocol.md")
        assert undone["reason"].startswith("taken back: ")
    with pytest.raises(UserError, match="no edit to take back"):
        loop_module.revert_protocol(tmp_path)
    command = [sys.executable, str(ROOT / "scripts" / "meta_loop.py"), "--run", str(tmp_path), "--revert-protocol"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr.strip().endswith("has no edit to take back")
        and done.stderr.count("\n") == 1
    )
    assert "taken back: " in (tmp_path / "analysis.md").read_text()
    with pytest.raises(UserError, match="no journal"):
        loop_module.revert_protocol(tmp_path / "elsewhere")
    go(tmp_path, exp)
    assert (tmp_path / "protocol.md").read_text() == versions[0]


# --- a run that goes on after its end ---


def test_an_edit_asked_for_at_a_second_end_is_made(tmp_path):
    """One block more: the last step is taken again, and what it says of the protocol is not lost."""
    one = experiment(**{**SMALL, "n_blocks": 1, "simulations": ()})
    assert go(tmp_path, one, Scripted()).reason == "1 blocks done"
    row = "| Plateau for 3+ iterations | **explore** | Use an older node |"

    def with_row(step):
        old = next(line for line in fold(read_journal(tmp_path)).protocol.splitlines() if line.startswith("| Default"))
        return replace(step, protocol_edit=ProtocolEdit(old, f"{old}\n{row}", "older nodes are forgotten"))

    state = go(tmp_path, experiment(**{**SMALL, "simulations": ()}), Scripted(with_row)).state
    assert state.finished == "2 blocks done" and row in state.protocol
    assert [e["reason"] for e in state.edits].count("older nodes are forgotten") == 1


def test_a_limit_raised_after_a_kill_before_the_last_line_counts(tmp_path):
    short = experiment(**SMALL, max_nodes=5)
    assert len(go(tmp_path, short).state.nodes) == 5
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(True)
    assert '"event": "run_finished"' in lines[-1]
    journal.write_text("".join(lines[:-1]))
    assert len(go(tmp_path, experiment(**SMALL, max_nodes=9)).state.nodes) == 9


def test_the_preview_asks_what_the_run_would_ask(tmp_path):
    exp, asked = experiment(**SMALL, max_nodes=5), Scripted()
    first = next_context(exp, tmp_path, TEMPLATE, ("DAVIS",))
    go(tmp_path, exp, asked)
    assert (first.n_proposals, first.next_opens_block) == (
        asked.contexts[0].n_proposals,
        asked.contexts[0].next_opens_block,
    )
    last = next_context(exp, tmp_path, TEMPLATE, ("DAVIS",))
    assert (
        (last.n_proposals, last.next_opens_block)
        == (asked.contexts[-1].n_proposals, asked.contexts[-1].next_opens_block)
        == (0, False)
    )
    assert "is finished" in preview(exp, tmp_path, TEMPLATE, ("DAVIS",), "llm")


def test_auto_stays_with_who_proposes_in_the_run(whole, tmp_path, monkeypatch):
    from flyjax.search.proposers import resolve_name

    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    assert resolve_name("auto", tmp_path / "new") == "llm" and resolve_name("auto") == "llm"
    assert resolve_name("auto", whole) == "rules", "a key that appears costs nothing unasked"
    assert resolve_name("llm", whole) == "llm"


def test_an_answer_that_could_be_read_outlives_a_last_one_that_cannot(tmp_path):
    """The second answer has one bad slot of four; the third is garbage: three slots are still the proposer's."""
    seen = []

    def spoiled(step):
        bad = replace(step.proposals[0], changes={"noise_model_level": 7.0})
        seen.append(step.proposals)
        return replace(step, proposals=(bad, *step.proposals[1:]))

    proposer = Scripted(spoiled, spoiled, BadAnswer(["gibberish"]))
    go(tmp_path, experiment(**SMALL), proposer)
    first = next(e for e in read_journal(tmp_path) if e["event"] == "proposal")
    assert first["fallbacks"][0] == "answer: gibberish; the answer before it counts"
    assert [p["by"] for p in first["proposals"]] == ["rules"] + ["scripted"] * (len(first["proposals"]) - 1)
    assert [p["changes"] for p in first["proposals"][1:]] == [p.changes for p in seen[0][1:]]
>>>>>>> 47de503 (Parse, clean and validate a language model's answer once)
