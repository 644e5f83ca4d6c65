"""The preview of a run: its plan, its limits, its next question."""

from support.search_landscape import TEMPLATE, experiment
from support.search_runs import SMALL, Scripted, go

from flyjax.search.proposers import resolve_name
from flyjax.search.run.status import plan_text, preview, preview_context


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


def test_the_preview_asks_what_the_run_would_ask(tmp_path):
    exp, asked = experiment(**SMALL, max_nodes=5), Scripted()
    first = preview_context(exp, tmp_path, TEMPLATE, ("DAVIS",))
    go(tmp_path, exp, asked)
    assert (first.n_proposals, first.next_opens_block) == (
        asked.contexts[0].n_proposals,
        asked.contexts[0].next_opens_block,
    )
    last = preview_context(exp, tmp_path, TEMPLATE, ("DAVIS",))
    assert (
        (last.n_proposals, last.next_opens_block)
        == (asked.contexts[-1].n_proposals, asked.contexts[-1].next_opens_block)
        == (0, False)
    )
    assert "is finished" in preview(exp, tmp_path, TEMPLATE, ("DAVIS",), "llm")


def test_auto_stays_with_who_proposes_in_the_run(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    assert resolve_name("auto", tmp_path / "new") == "llm" and resolve_name("auto") == "llm"
    assert resolve_name("auto", uninterrupted) == "rules", "a key that appears costs nothing unasked"
    assert resolve_name("llm", uninterrupted) == "llm"
