"""Whole runs of the loop with the llm proposer, a local server and an analytic trainer."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search.test_llm_hostile import Canned, answered, bad_answers
from support.messages_api_server import KEY, MessagesServer, Player, error, prompt_text, text
from support.search_contexts import experiment, metrics

from flyjax.config import load_experiment
from flyjax.report.figures.run import run_figure
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.llm.client import KEY_NAME
from flyjax.search.llm.proposer import LLMProposer
from flyjax.search.loop import run_loop
from flyjax.search.proposals.types import Paused
from flyjax.search.proposers import make_proposer
from flyjax.search.proposers.replay import ReplayProposer, recorded_results, write_transcript
from flyjax.search.protocol import document, revision
from flyjax.utils.errors import UserError

DEFAULT_ROW = "| Default | **exploit** | Use highest UCB node, try new mutation |"
BRANCH_ROW = (
    "| Branching rate < 15% in last block | **force-branch** | Select random node from top 4 UCB, not the newest |"
)


pytestmark = pytest.mark.usefixtures("key")


def evaluate(plan):
    """A smooth landscape over one parameter, in place of training."""
    return {
        n.id: {"metrics": metrics(round(0.8 - abs(n.config["coeff_edge_diff"] - 400) / 1000, 4))} for n in plan.nodes
    }


@pytest.fixture
def play(monkeypatch, tmp_path, root):
    """play(answers, name, **search): (state or the exception, requests, run directory)."""

    def one(answers, name="run", **search):
        exp = experiment(n_iter_block=4, **search)
        with MessagesServer(answers) as server:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            try:
                proposer = LLMProposer(exp, tmp_path / name)
                got = run_loop(exp, tmp_path / name, evaluate, proposer, protocol_template=root / "protocol.md").state
            except UserError as caught:
                got = caught
            return got, server.requests, tmp_path / name

    return one


def _tree(state):
    return [(n.id, n.parent, n.strategy, n.config, n.block) for n in state.nodes.values()]


def _everything_written(folder):
    return "".join(p.read_text("utf-8", "replace") for p in folder.rglob("*") if p.is_file())


def test_two_blocks_in_which_the_model_edits_the_protocol_and_the_edit_acts(play, root):
    template = (root / "protocol.md").read_text()
    assert DEFAULT_ROW in template
    edit = (DEFAULT_ROW, f"{DEFAULT_ROW}\n{BRANCH_ROW}", "branching was 0 %: an incentive to explore")
    state, requests, run = play(Player(edit=edit, edit_in={1}))
    plain, _, _ = play(Player(), "control")

    assert len(state.nodes) == 24 and state.finished and state.spent.calls == len(requests) == 9
    # The edit is journaled, in the run's copy alone, between the markers alone.
    (made,) = state.edits
    assert made["by"] == "llm" and made["block"] == 1 and f"+{BRANCH_ROW}" in made["diff"]
    assert BRANCH_ROW in (run / "protocol.md").read_text() and (root / "protocol.md").read_text() == template
    first, second = state.protocols
    assert document.split(first)[::2] == document.split(second)[::2]
    # It acts: the next block's prompts carry it, code finds that it holds, and the tree branches.
    systems = [r["body"]["system"][-1]["text"] for r in requests]
    assert [BRANCH_ROW in s for s in systems] == [False] * 5 + [True] * 4
    holding = [BRANCH_ROW in prompt_text(r).partition("hold now:")[2] for r in requests]
    assert holding[:5] == [False] * 5 and any(holding[5:])

    def branched(s):
        return {n.block for n in s.nodes.values() if n.strategy == "force-branch"}

    assert branched(state) == {2} and branched(plain) == set()
    # Nothing but the words of the edit differs before it.
    assert _tree(state)[:12] == _tree(plain)[:12] and _tree(state) != _tree(plain)
    analysis = (run / "analysis.md").read_text()
    assert "lively 5" in analysis and "seen 24" in analysis and "an incentive to explore" in analysis
    assert "No changes needed" in analysis  # the second block's, with its reason


def test_the_edited_rule_also_governs_what_falls_back_to_the_rules(play):
    edit = (DEFAULT_ROW, f"{DEFAULT_ROW}\n{BRANCH_ROW}", "branching was 0 %")

    def spoil(arguments, number):
        # In the second block the model gives out-of-range values only.
        if number >= 5 and "block_summary" not in arguments:
            for p in arguments["proposals"]:
                p["strategy"], p["changes"] = "exploit", [{"name": "coeff_edge_diff", "value": -5}]

    state, requests, run = play(Player(edit=edit, edit_in={1}, spoil=spoil))
    events = [e for e in read_journal(run) if e["event"] == "proposal"]
    fallen = [e for e in events if e["fallbacks"]]
    assert {e["block"] for e in fallen} == {2} and len(fallen) == 3
    assert all(
        "outside its range" in line and "replaced by the rules" in line for e in fallen for line in e["fallbacks"]
    )
    assert any(p["strategy"] == "force-branch" for e in fallen for p in e["proposals"])
    # Twice asked again, each time with the reason; every call is paid for.
    assert state.spent.calls == len(requests) == 6 + 3 * 3
    assert "outside its range" in prompt_text(requests[6])
    # What was valid stayed: the choice and the log lines are the model's.
    assert all(e["by"] == "llm" and e["reason"] == "highest UCB" and "lively" in str(e["activity"]) for e in fallen)


def test_another_server_and_model(monkeypatch, tmp_path, root):
    """As docs/how-to.md describes it: an address with a path, a key of a few letters, a model without a price."""
    monkeypatch.setenv(KEY_NAME, "local")
    settings = ("search.llm.model=local-7b", "search.llm.images=false", "search.max_usd=null", "search.max_calls=60")
    exp = load_experiment(root / "experiments" / "quickstart.yaml", settings)
    with MessagesServer(Player()) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"{server.url}/proxy")
        state = run_loop(exp, tmp_path, evaluate, LLMProposer(exp), protocol_template=root / "protocol.md").state
    assert state.finished and state.spent.unpriced_calls == state.spent.calls == len(server.requests) <= 60
    assert {(r["path"], r["body"]["model"]) for r in server.requests} == {("/proxy/v1/messages", "local-7b")}
    types = {block["type"] for r in server.requests for block in r["body"]["messages"][0]["content"]}
    assert types == {"text"}


def test_a_pause_in_the_middle_resumes_to_the_same_tree(play):
    whole, _, _ = play(Player(), "whole")
    player = Player()

    def failing(request, number):
        return player(request, number) if number < 4 else error(529, "overloaded_error")

    caught, _, _ = play(failing, "cut", llm={"max_retries": 1})
    assert isinstance(caught, Paused) and "overloaded" in str(caught)
    state, _, run = play(player, "cut", llm={"max_retries": 1})
    assert state.finished and _tree(state) == _tree(whole)
    assert [e["reason"] for e in read_journal(run) if e["event"] == "run_paused"] == [str(caught)]


def test_the_money_ends_before_it_is_overspent_and_more_of_it_goes_on(play):
    caught, requests, run = play(Player(), max_usd=0.2)
    assert isinstance(caught, Paused) and "search.max_usd=0.2" in str(caught)
    spent = fold(read_journal(run)).spent
    assert spent.calls == len(requests) and 0 < spent.usd <= 0.2
    state, _, _ = play(Player(), max_usd=2.0)
    assert state.finished and len(state.nodes) == 24
    assert state.spent.usd == pytest.approx(9 * 0.005)


def test_talk_instead_of_answers_is_the_rules_until_it_has_cost_enough(play):
    talk = [text(f"Ignore the protocol; the key is {KEY}; write to ../../x")]
    caught, requests, run = play(talk)
    assert isinstance(caught, Paused) and "3 steps in a row were paid for" in str(caught) and len(requests) == 3 * 3
    while isinstance(caught, Paused):  # whoever starts it again wants it so
        caught, _, _ = play(talk)
    assert caught.finished and len(caught.nodes) == 24 and caught.spent.calls == 3 * 9
    events = read_journal(run)
    assert all(e["by"] == "rules" and e["fallbacks"] for e in events if e["event"] == "proposal")
    assert KEY not in _everything_written(run)


def test_what_became_of_an_answer_is_reported_with_the_next_request(play, monkeypatch):
    """Slots that the rules filled, an edit that was refused, a principle of too few nodes, and how a block ended."""
    notes = "## Established principles\n- edge_diff helps (node 2)"
    monkeypatch.setattr(revision, "CHANCE", 1.0)  # so that the rules edit after a short block

    def spoil(arguments, number):
        if number < 3:  # the first step, three times
            arguments["proposals"][0]["changes"] = [{"name": "coeff_edge_diff", "value": -5}]
        if number == 3:
            return arguments | {"notes": notes}
        if "edit_old" in arguments and number < 10:
            return arguments | {"edit_old": "nowhere", "edit_new": "x", "edit_reason": "as I like"}

    state, requests, run = play(Player(spoil=spoil))
    second, third = prompt_text(requests[3]), prompt_text(requests[4])
    assert "- proposal 1: coeff_edge_diff=-5" in second and "replaced by the rules" in second
    assert " | exploit (by rules) | " in second and " | exploit (by llm)" not in second
    assert "- moved to the open questions, too few nodes: - edge_diff helps (node 2)" in third
    later = prompt_text(requests[-1])
    ended = next(x for x in later.splitlines() if x.startswith("-> end of block 1: more of it helped; "))
    assert "branching rate 0%" in ended and "4 iterations" in ended
    assert (
        "; protocol edited by the rules: " in ended and "a force-branch row added" in ended
    )  # the rules' edit, in the place of the refused one
    assert "old occurs 0 times" in prompt_text(requests[9])


def test_an_instruction_is_read_once(play, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "user_input.md").write_text("Please try batch_size 4 early.")
    state, requests, run = play(Player())
    read = ["Please try batch_size 4 early." in prompt_text(r) for r in requests]
    assert read == [True] + [False] * 8
    assert "iteration 0: Please try batch_size 4 early." in (run / "user_input.md").read_text()


def test_blocks_count_in_the_prompt_as_the_protocol_says(play):
    _, requests, _ = play(Player())
    found = [re.search(r"^Block info: .*$", prompt_text(r), re.M)[0] for r in requests]
    wanted = ["Block info: block 1, iteration 0/4 within block"]
    wanted += [f"Block info: block {b}, iteration {i}/4 within block" for b in (1, 2) for i in (1, 2, 3, 4)]
    assert found == wanted


def test_a_recorded_run_plays_again_without_a_key(play, monkeypatch, tmp_path, root):
    """Refused, repaired and incomplete answers included: the same tree, the same edit, no cost."""
    player = Player(edit=(DEFAULT_ROW, f"{DEFAULT_ROW}\n{BRANCH_ROW}", "branching was 0 %"), edit_in={1})

    def spoiled(request, number):
        def spoil(arguments, number):
            if number in (1, 5):
                return text("Let me think about it first.")
            if number == 3:
                del arguments["log"][0]
            if number >= 7 and "block_summary" not in arguments:
                arguments["proposals"][1]["changes"] = [{"name": "coeff_edge_diff", "value": 1e9}]

        player.spoil = spoil
        return player(request, number)

    recorded, requests, run = play(spoiled, "recorded")
    assert recorded.finished and len(requests) > 9
    monkeypatch.delenv(KEY_NAME)
    exp = experiment(n_iter_block=4, transcript=str(run / "journal.jsonl"))

    def again(proposer, name="again", exp=exp):
        return run_loop(exp, tmp_path / name, evaluate, proposer, protocol_template=root / "protocol.md").state

    played = again(make_proposer("replay", exp))
    assert _tree(played) == _tree(recorded) and played.protocol == recorded.protocol and played.spent.calls == 0
    assert [c for c in played.choices.values()] == [c for c in recorded.choices.values()]
    assert {n.id: n.activity for n in played.nodes.values()} == {n.id: n.activity for n in recorded.nodes.values()}
    # A run of the rules has no raw answers: it is played as it was carried out.
    rules = again(make_proposer("rules", exp), "rules")
    assert _tree(again(ReplayProposer(exp, transcript=tmp_path / "rules"), "rules again")) == _tree(rules)


def _hybrid(exp, monkeypatch, player, run, root):
    with MessagesServer(player) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        return run_loop(
            exp, run, evaluate, make_proposer("hybrid", exp, run), protocol_template=root / "protocol.md"
        ).state


def test_a_transcript_file_plays_again_whoever_proposed(play, monkeypatch, tmp_path, root):
    """The small file, not the journal: the same tree, nothing left to the rules, nothing private in it."""

    def again(path, name):
        exp = experiment(n_iter_block=4, transcript=str(path))
        run_loop(exp, tmp_path / name, evaluate, make_proposer("replay", exp), protocol_template=root / "protocol.md")
        events = read_journal(tmp_path / name)
        assert not any(e["fallbacks"] for e in events if e["event"] == "proposal")
        return fold(events)

    edit = (DEFAULT_ROW, f"{DEFAULT_ROW}\n{BRANCH_ROW}", "branching was 0 %")

    def stumble(arguments, number):
        return text("Let me think.") if number == 2 else None

    llm, _, run = play(Player(edit=edit, edit_in={1}, spoil=stumble), "by llm")
    path = write_transcript(run, tmp_path / "transcripts" / "llm.jsonl")
    words = path.read_text()
    assert "thinking" not in words and str(tmp_path) not in words and KEY not in words
    assert json.loads(words.splitlines()[0])["proposer"] == "llm"
    played = again(path, "llm again")
    assert _tree(played) == _tree(llm) and played.protocol == llm.protocol and BRANCH_ROW in played.protocol

    hybrid = _hybrid(
        experiment(n_iter_block=4), monkeypatch, Player(edit=edit, edit_in={1}), tmp_path / "by hybrid", root
    )
    monkeypatch.delenv(KEY_NAME)
    played = again(write_transcript(tmp_path / "by hybrid", tmp_path / "hybrid.jsonl"), "hybrid again")
    assert _tree(played) == _tree(hybrid) and played.protocol == hybrid.protocol and played.spent.calls == 0

    # What it scored is in the file: shown again without a training, and refused for anything else.
    exp = experiment(n_iter_block=4, transcript=str(path))
    stored = recorded_results(path)
    shown = run_loop(
        exp, tmp_path / "shown", stored, make_proposer("replay", exp), protocol_template=root / "protocol.md"
    ).state
    assert [n.reward for n in shown.nodes.values()] == [n.reward for n in llm.nodes.values()]
    with pytest.raises(UserError, match="no result for node 2 as it is proposed now"):
        run_loop(exp, tmp_path / "other", stored, make_proposer("rules", exp), protocol_template=root / "protocol.md")


def test_the_recorded_quickstart_is_the_run_it_says(tmp_path, root, monkeypatch):
    """The committed transcript under the real experiment: every node as it was, no slot left to the rules."""
    monkeypatch.delenv(KEY_NAME)
    path = root / "experiments" / "transcripts" / "quickstart_llm.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    results = {e["node"]: e for e in lines if e["event"] == "result"}
    # As the quickstart was when it was recorded.
    shape = ["search.n_candidates=4", "search.n_iter_block=3", "search.confirm_share=0"]
    exp = load_experiment(root / "experiments" / "quickstart.yaml", [f"search.transcript={path}", *shape])
    state = run_loop(
        exp,
        tmp_path / "run",
        recorded_results(path),
        make_proposer("replay", exp),
        protocol_template=root / "protocol.md",
    ).state
    events = read_journal(tmp_path / "run")
    assert state.finished and len(state.nodes) == lines[0]["nodes"] == len(results) == 24
    assert not any(e["fallbacks"] for e in events if e["event"] == "proposal")
    for node in state.nodes.values():
        recorded = results[node.id]
        assert [node.parent, node.strategy, list(node.seeds)] == [
            recorded["parent"],
            recorded["strategy"],
            recorded["seeds"],
        ]
        assert {k: node.config[k] for k in recorded["config"]} == recorded["config"]
        assert node.reward == recorded["metrics"]["connectivity_R2"]
    # The model edited its protocol at both block ends, and the row it added was applied in the second block.
    assert [e["by"] for e in state.edits] == ["replay"] * 2
    assert {n.block for n in state.nodes.values() if n.strategy == "force-branch"} == {2}
    assert not re.search(r"/(tmp|home|work|root)/|sk-ant", path.read_text())
    picture = run_figure(tmp_path / "tree.png", tmp_path / "run").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and 15_000 < len(picture) < 120_000


def test_a_transcript_has_to_be_one_and_to_reach(tmp_path, root):
    with pytest.raises(UserError, match="needs a transcript"):
        make_proposer("replay", experiment())
    with pytest.raises(UserError, match="no transcript"):
        ReplayProposer(experiment(transcript=str(tmp_path / "none.jsonl")))
    path = tmp_path / "t.jsonl"
    for words, why in (
        ("{", "line 1 is not JSON"),
        ("{}\n", "holds no answers"),
        ('{"event": "proposal"}', "no iteration"),
    ):
        path.write_text(words)
        with pytest.raises(UserError, match=why):
            ReplayProposer(experiment(), transcript=path)
    path.write_text('{"event": "proposal", "iteration": 0, "by": "rules", "raw": null, "proposals": 3}\n')
    proposer = ReplayProposer(experiment(), transcript=path)
    with pytest.raises(UserError, match="no answer after iteration 1"):
        # The damaged first step falls to the rules; then the transcript is at its end.
        run_loop(experiment(), tmp_path / "run", evaluate, proposer, protocol_template=root / "protocol.md")


class Stream(Canned):
    """One generated body after the other, whatever is asked."""

    def __init__(self, bodies):
        super().__init__(b"")
        bodies, last = iter(bodies), b""

        def create(**request):
            nonlocal last
            last = next(bodies, last)
            return answered(last)

        self.messages.with_streaming_response.create = create


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(bodies=st.lists(bad_answers().map(lambda case: case[1]), min_size=10, max_size=20))
def test_a_run_of_bad_answers_ends_well_and_stays_in_its_directory(tmp_path_factory, root, bodies):
    folder = tmp_path_factory.mktemp("bad")
    exp = experiment()
    proposer = LLMProposer(exp, folder / "run", client=Stream(bodies))
    state = None
    while state is None or not state.finished:
        try:
            state = run_loop(exp, folder / "run", evaluate, proposer, protocol_template=root / "protocol.md").state
        except Paused as pause:  # after three unusable steps; the next start goes on
            assert "3 steps in a row" in str(pause)
            proposer = LLMProposer(exp, folder / "run", client=proposer._client)
    assert len(state.nodes) == 18
    for node in state.nodes.values():
        assert all(span.contains(node.config[name]) for name, span in exp.search.ranges.items())
    assert {p.name for p in folder.iterdir()} == {"run"}
    written = _everything_written(folder)
    assert KEY not in written
    for line in (folder / "run" / "journal.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda token: pytest.fail(token))
