"""What users write into user_input.md while a search runs, and what they approve of."""

from dataclasses import replace

import pytest
from support.search_landscape import experiment
from support.search_runs import SMALL, Killed, Scripted, go

from flyjax.search import loop as session
from flyjax.search.proposers import make_proposer


def test_instructions_are_read_once_and_acknowledged(tmp_path):
    exp, proposer = experiment(**SMALL), Scripted()

    def writing(state, number):
        if number == 2:
            (tmp_path / "user_input.md").write_text("Try more noise.\nPlease.")
        if number == 3:
            path = tmp_path / "user_input.md"
            path.write_text(path.read_text().replace("## Pending\n", "## Pending\n\nAnd less batch.\n"))

    go(tmp_path, exp, proposer, on_iteration=writing)
    assert [c.user_input for c in proposer.contexts] == [
        "",
        "",
        "",
        "Try more noise.\nPlease.",
        "And less batch.",
        "",
        "",
    ]
    text = (tmp_path / "user_input.md").read_text()
    assert "- iteration 3: Try more noise.\n  Please.\n- iteration 4: And less batch." in text
    assert "## Pending\n\n## Acknowledged" in text


def test_an_instruction_survives_a_kill_between_journal_and_file(tmp_path, monkeypatch):
    exp, proposer = experiment(**SMALL), Scripted()

    tmp_path.joinpath("user_input.md").write_text("Hello.")
    acknowledge = session.acknowledge
    with monkeypatch.context() as patch:

        def dying(run_dir, state, just_read=""):
            if state.acknowledged:
                raise Killed
            acknowledge(run_dir, state, just_read)

        patch.setattr(session, "acknowledge", dying)
        with pytest.raises(Killed):
            go(tmp_path, exp, proposer)
    go(tmp_path, exp, proposer)
    assert proposer.instructions == ["Hello."]
    assert "- iteration 0: Hello." in (tmp_path / "user_input.md").read_text()


def test_a_file_of_instructions_that_is_replaced_is_read_again(tmp_path):
    exp, proposer = experiment(**SMALL), Scripted()
    texts = ["Try more noise.", "Try more noise. But never with batch_size 4.", "Try more noise."]

    def writing(state, number):
        if number <= len(texts):
            (tmp_path / "user_input.md").write_text(texts[number - 1])

    go(tmp_path, exp, proposer, on_iteration=writing)
    assert 2 <= len(proposer.instructions) <= 3 and proposer.instructions == texts[: len(proposer.instructions)]
    assert (tmp_path / "user_input.md").read_text().count("- iteration") == len(proposer.instructions)


@pytest.mark.parametrize("name", ["rules", "random"])
def test_what_the_proposer_cannot_read_stays_pending(tmp_path, name):
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
    exp, proposer = experiment(**SMALL), Scripted()

    go(tmp_path, exp, proposer)
    assert proposer.instructions == ["My key is [redacted], use it."]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-ant-secret" in p.read_bytes()]


def test_instructions_may_be_there_before_the_run(tmp_path):
    (tmp_path / "user_input.md").write_text("Try more noise.")
    assert go(tmp_path, experiment(**SMALL), Scripted()).state.acknowledged == ((0, "Try more noise."),)


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
def test_a_user_who_declines_may_write_what_should_be_done_instead(tmp_path, instruction, killed, asked_again):
    """The step is taken again where the user wrote what should be done instead, and only then: a call costs money."""
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
