"""The llm proposer against a local server that speaks the Messages API: the real client throughout."""

import json
import logging
import re
from dataclasses import replace

import pytest
from support.messages_api_server import (
    KEY,
    USAGE,
    MessagesServer,
    Player,
    Reply,
    message,
    prompt_text,
    raw,
    text,
    tool_use,
)
from support.search_contexts import PROTOCOL, context, experiment, png

from flyjax.config import TUNABLE, parse_experiment
from flyjax.search import sanitize
from flyjax.search.journal.state import State
from flyjax.search.llm import budget as prices
from flyjax.search.llm import client, prompt, schema
from flyjax.search.llm import proposer as llm_proposer
from flyjax.search.policy import measures, ucb
from flyjax.search.proposals.types import BadAnswer, Paused
from flyjax.search.proposals.validation import check_step
from flyjax.search.run.user_files import pending_input
from flyjax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("key")


# --- a good answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 4])
def test_a_good_answer_becomes_a_valid_step(ask, tmp_path, iterations):
    ctx = context(tmp_path, iterations=iterations)
    step, requests = ask(Player(), ctx)
    assert check_step(ctx, step).problems == []
    assert len(requests) == 1 and len(step.proposals) == ctx.n_proposals
    if iterations:
        assert step.chosen == ctx.new_nodes[-1] and set(step.activity) == set(step.observation) == set(ctx.new_nodes)
        assert step.activity[step.chosen] == f"lively {step.chosen}"
    else:
        assert step.chosen is None and all(p.parent == "root" for p in step.proposals)
    assert (step.protocol_edit is not None) == ctx.is_block_end == bool(step.block_summary)
    assert step.proposals[0].changes.keys() == {"coeff_edge_diff"}


def test_the_first_iteration_of_a_single_candidate_needs_no_call(ask, tmp_path):
    step, requests = ask(Player(), context(tmp_path, experiment(n_candidates=1), iterations=0))
    assert step.proposals == () and requests == []


def test_whole_numbers_may_arrive_as_floats_but_strings_are_no_numbers(ask, tmp_path):
    ctx = context(tmp_path)

    def spoil(arguments, number):
        for proposal, value in zip(arguments["proposals"], (4.0, "4", True)):
            proposal["changes"] = [{"name": "batch_size", "value": value}]
        arguments["chosen"] = 3.0

    step, _ = ask(Player(spoil=spoil), ctx)
    assert step.chosen == 3
    problems = check_step(ctx, step).problems
    assert {p.slot for p in problems} == {1, 2} and all("one of 1, 2, 4" in str(p) for p in problems)


def test_the_next_simulation_is_the_same_recording_whether_whole_numbers_have_a_point(ask, tmp_path):
    step, _ = ask(Player(), context(tmp_path, iterations=3))
    assert step.next_simulation == {"visual_input_type": "scenes_texture", "n_frames": 2000, "delta_t": 0.02}
    assert type(step.next_simulation["n_frames"]) is int


# --- the request --------------------------------------------------------------------------------


def test_the_request_has_the_protocol_as_a_stable_cached_prefix(ask, tmp_path):
    found = []
    for iterations in (1, 2, 3):
        _, requests = ask(Player(), context(tmp_path, iterations=iterations))
        found.append(requests[0])
    bodies = [r["body"] for r in found]
    prefixes = {json.dumps([b["tools"], b["system"]]) for b in bodies}
    assert len(prefixes) == 1, "tools and system are the same bytes in every call"
    assert bodies[0]["system"][-1] == {"type": "text", "text": PROTOCOL, "cache_control": {"type": "ephemeral"}}
    for here, body in enumerate(bodies, 1):
        words = prompt_text({"body": body})
        assert f"Block info: block 1, iteration {here}/3 within block" in words.splitlines()
    # What models of today refuse: sampling settings and a forced tool.
    assert not {"temperature", "top_p", "top_k", "thinking"} & set(bodies[0])
    assert bodies[0]["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert bodies[0]["model"] == experiment().search.llm.model
    assert any(KEY in value for value in found[0]["headers"].values())


def test_a_prefix_that_no_call_will_find_again_is_not_written_to_the_cache(ask, tmp_path):
    """The service keeps a prefix for minutes: after an iteration of an hour, writing it would only cost more."""

    def marked(minutes):
        ctx = context(tmp_path, iterations=2)
        ctx = replace(
            ctx,
            state=replace(
                ctx.state, step={"iteration": 1, "block": 1, "by": "llm", "time": ctx.state.last_time - 60 * minutes}
            ),
        )
        _, requests = ask(Player(), ctx)
        return ["cache_control" in block for block in requests[0]["body"]["system"]]

    assert marked(2) == [False, True] and marked(60) == [False, False]


def test_the_tools_are_strict_flat_and_without_bounds():
    offered = schema.tools(experiment())
    words = json.dumps(offered)
    assert not re.search(r"minimum|maximum|minItems|maxItems|minLength|maxLength|pattern|anyOf|oneOf|\$ref", words)
    assert len(words) < 8_000

    def objects(schema, depth=0):
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
        assert depth <= 5
        for child in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
            objects(child, depth + 1)

    for tool in offered:
        assert tool["strict"] is True
        objects(tool["input_schema"])


def test_the_prompt_is_complete_and_ends_with_the_scores(tmp_path):
    exp = experiment(ucb_c=1.0)
    ctx = context(tmp_path, exp, iterations=2, user_input="Try larger noise, please.")
    ctx = replace(ctx, state=replace(ctx.state, notes="- noise helps (nodes 1, 2, 3)"))
    words = prompt.render_prompt(ctx)
    for name, span in exp.search.ranges.items():
        assert f"- {name}: {span.describe()}" in words
    for node in ctx.state.nodes.values():
        assert re.search(rf"^{node.id} \| 1\.", words, re.M)
    for wanted in (
        "Try larger noise, please.",
        "noise helps (nodes 1, 2, 3)",
        "New nodes: 4, 5, 6",
        "V_rest_R2=0.504",
        "activity: rank 5",
    ):
        assert wanted in words
    assert "Parents: trained nodes of block 1; its root is node 1." in words
    assert re.search(r"^Stimuli .*: scenes_texture, scenes_flow$", words, re.M), "those of the range that are here"
    lines = ucb.ucb_lines(ctx.state, 1.0)
    assert len(lines) == 6 and words.rstrip().endswith("\n".join(lines))


def test_which_parameters_are_free_agrees_with_the_trainer(tmp_path):
    training = pytest.importorskip("flyjax.training.hparams")
    static = {name for name, kind in prompt.KINDS.items() if kind.startswith("static")}
    assert static == set(training.Static._fields) & set(TUNABLE)
    words = prompt.space_text(context(tmp_path))
    assert re.search(r"^- batch_size: .*static", words, re.M) and re.search(
        r"^- learning_rate_start: .*free", words, re.M
    )


def test_at_a_block_end_the_computed_measures_are_given(tmp_path):
    ctx = context(tmp_path, iterations=3)
    words = prompt.render_prompt(ctx)
    assert measures.measure(ctx.state, 1).describe() in words and "branching rate 0%" in words
    assert "no changes are needed" in words
    assert "Rows of the strategy table whose conditions hold now: none but Default" in words
    assert words.rstrip().endswith("UCB scores: the file is empty, parent=root.")


def test_figures_go_as_images_where_they_are(ask, tmp_path):
    for node, name in ((1, "activity"), (1, "recovery"), (3, "activity")):
        path = tmp_path / "nodes" / f"{node:04d}" / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    (tmp_path / "nodes/0002/figures").mkdir(parents=True)
    (tmp_path / "nodes/0002/figures/activity.png").write_bytes(b"not a picture")

    def sent(**fields):
        _, requests = ask(Player(), context(tmp_path, **fields))
        content = requests[0]["body"]["messages"][0]["content"]
        return [content[k - 1]["text"] for k, b in enumerate(content) if b["type"] == "image"], content

    labels, content = sent()
    assert labels == ["Figure of node 1: activity", "Figure of node 1: recovery", "Figure of node 3: activity"]
    assert content[0]["type"] == content[-1]["type"] == "text"
    assert sent(exp=experiment(llm={"images": False}))[0] == []
    # A blind search sees no ground truth: neither its figure nor its metrics.
    blind = context(tmp_path, experiment(objective="blind"))
    assert [x[0] for x in prompt.figures(blind)] == ["Figure of node 1: activity", "Figure of node 3: activity"]
    shown = prompt.history_text(blind) + prompt.new_nodes_text(blind)
    assert "test_R2" in shown and "connectivity_R2" not in shown and "tau_R2" not in shown


# --- answers that cannot be used ----------------------------------------------------------------

_GOOD = {"proposals": [], "notes": ""}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (text("I would rather talk.", "end_turn"), "no tool call"),
        (text("stop", "stop_sequence"), "no tool call"),
        (text("wait", "pause_turn"), "no tool call"),
        (text("?", "a_reason_of_tomorrow"), "no tool call"),
        (text("no", "refusal"), "refusal"),
        (tool_use("submit_step", _GOOD, "max_tokens"), "cut off"),
        (tool_use("submit_step", _GOOD, "model_context_window_exceeded"), "context window"),
        (tool_use("end_block", _GOOD), "needs submit_step"),
        (tool_use("run_shell", {"cmd": "rm -rf /"}), "needs submit_step"),
        (tool_use("submit_step", "text"), "not an object"),
        (tool_use("submit_step", {"proposals": "all"}), "`proposals`"),
        (message([{"type": "tool_use", "name": "submit_step", "input": {}}] * 2, "tool_use"), "2 tool calls"),
        (message("not a list"), "no tool call"),
        (raw(b'{"content": [', "application/json"), "not JSON"),
        (raw(b"<html>gateway</html>", "text/html"), "not JSON"),
        (raw(b"[" * 200_000, "application/json"), "not JSON"),
        (raw(b'{"a": ' + b"9" * 6_000 + b"}"), "not JSON"),
        (raw(b'"' + b"x" * 10_000_000 + b'"'), "longer than 4 MB"),
        (raw(b"\xff\xfe\x00"), "not JSON"),
        (raw(b"[1, 2]"), "not a message"),
        (raw(b""), "not JSON"),
    ],
)
def test_an_unusable_answer_goes_back_with_its_reason_and_its_bill(ask, tmp_path, answer, why):
    caught, requests = ask(answer, context(tmp_path))
    assert isinstance(caught, BadAnswer) and why in caught.errors[0] and len(requests) == 1
    assert caught.usage["calls"] == 1 and caught.usage["usd"] > 0
    assert len(json.dumps(caught.raw, allow_nan=False)) < 60_000


def test_an_answer_without_a_bill_is_charged_at_most_and_says_so(ask, tmp_path):
    ctx = context(tmp_path)
    for usage in (None, {}, {"input_tokens": -5, "output_tokens": 3}, {"input_tokens": "1", "output_tokens": 10**30}):
        step, _ = ask(lambda request, n: _with_usage(Player()(request, n), usage), ctx)
        worst = prices.most(prices.price_of(ctx.experiment.search.llm), prompt.build(ctx).tokens, 16_000)
        assert step.usage["estimated"] is True and step.usage["usd"] == pytest.approx(worst)


def _with_usage(reply, usage):
    body = json.loads(reply.body)
    body["usage"] = usage
    return Reply(json.dumps(body).encode())


def test_missing_log_entries_are_asked_for_together_with_all_else(ask, tmp_path):
    ctx = context(tmp_path)

    def spoil(arguments, number):
        del arguments["log"][1]
        arguments["proposals"][0]["changes"][0]["value"] = 1e9

    step, _ = ask(Player(spoil=spoil), ctx)
    problems = list(map(str, check_step(ctx, step).problems))
    assert "log: node 2 has no activity" in problems and any("outside its range" in e for e in problems)
    assert {n: line for n, line in step.activity.items() if line} == {1: "lively 1", 3: "lively 3"}
    _, requests = ask(Player(spoil=spoil), replace(ctx, feedback=tuple(problems)))
    assert "outside its range" in prompt_text(requests[0])


def test_the_next_simulation_is_asked_for_whole(ask, tmp_path):
    ctx = context(tmp_path, iterations=3)
    step, _ = ask(Player(spoil=lambda arguments, number: arguments | {"next_simulation": {"n_frames": 3000}}), ctx)
    assert [str(p) for p in check_step(ctx, step).problems] == [
        f"next_simulation: {name} is missing, every field is wanted" for name in ("visual_input_type", "delta_t")
    ]
    assert step.next_simulation == {"n_frames": 3000} and {p.remedy for p in step.warnings} == {"it keeps its value"}


def test_feedback_shows_the_refused_answer(monkeypatch, tmp_path):
    ctx = context(tmp_path)
    with MessagesServer([text("Certainly! Here is my plan.")]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        proposer = llm_proposer.LLMProposer(ctx.experiment)
        with pytest.raises(BadAnswer) as caught:
            proposer.step(ctx)
        with pytest.raises(BadAnswer):
            proposer.step(replace(ctx, feedback=caught.value.errors))
        words = prompt_text(server.requests[1])
    assert "there was no tool call" in words and "Here is my plan." in words


def test_feedback_shows_no_other_answer_than_the_refused_one(monkeypatch, tmp_path):
    """An answer that is not even JSON has no text to show: the one before it is not shown in its place."""
    ctx = context(tmp_path)
    with MessagesServer([text("My first plan."), raw(b"<html>"), text("last")]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        proposer, feedback = llm_proposer.LLMProposer(ctx.experiment), ()
        for _ in range(3):
            with pytest.raises(BadAnswer) as caught:
                proposer.step(replace(ctx, feedback=feedback))
            feedback = caught.value.errors
        words = prompt_text(server.requests[2])
    assert "was not JSON" in words and "My first plan." not in words


# --- the key ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "   "])
def test_without_a_key_one_line_says_so(monkeypatch, value):
    monkeypatch.delenv(client.KEY_NAME) if value is None else monkeypatch.setenv(client.KEY_NAME, value)
    with pytest.raises(UserError, match="no ANTHROPIC_API_KEY is set.*--proposer rules"):
        llm_proposer.LLMProposer(experiment())


def test_a_mangled_key_is_not_shown(monkeypatch):
    monkeypatch.setenv(client.KEY_NAME, "sk-ant-één")
    with pytest.raises(UserError) as caught:
        llm_proposer.LLMProposer(experiment())
    assert "sk-ant" not in str(caught.value)


def test_a_short_key_of_a_local_gateway_is_no_secret(ask, monkeypatch, tmp_path):
    monkeypatch.setenv(client.KEY_NAME, "x")
    step, requests = ask(Player(), context(tmp_path, user_input="explore x"))
    assert (
        "[redacted]" not in json.dumps(requests[0]["body"])
        and "hyper-parameter" in requests[0]["body"]["system"][0]["text"]
    )
    assert len(step.proposals) == 3
    (tmp_path / "user_input.md").write_text("explore x")
    assert pending_input(tmp_path, State()) == "explore x"


def test_invisible_characters_are_removed():
    assert (
        sanitize.one_line(sanitize.clean("a\u200bb\ufeff\u061c\u202ec\u00ad\ufe0f\u3164d\x1b[2J\u2028e\n f"))
        == "abcd [2J e f"
    )
    assert sanitize.clean("naïve Δt\n\té 你") == "naïve Δt\n\té 你"


def test_the_key_stays_in_its_header(ask, tmp_path, caplog, capsys):
    """A server that echoes what it received, and a person who pasted the key, change nothing."""
    caplog.set_level(logging.DEBUG)
    ctx = context(tmp_path, user_input=f"my key is {KEY}")

    def spoil(arguments, number):
        arguments["reason"] = f"because {KEY}"
        arguments["notes"] = "x" * 99_990 + KEY
        arguments["log"][0]["activity"] = KEY

    step, requests = ask(Player(spoil=spoil), ctx)
    assert KEY not in json.dumps(requests[0]["body"])
    assert "[redacted]" in step.reason and "[redacted]" in step.activity[1]
    shown = repr(step) + caplog.text + "".join(capsys.readouterr())
    assert KEY not in shown and KEY[:20] not in shown
    assert KEY not in repr(llm_proposer.LLMProposer(ctx.experiment))


# --- money --------------------------------------------------------------------------------------


def test_prices_know_a_date_suffix_but_not_a_neighbour():
    def price(model):
        return prices.price_of(parse_experiment({"search": {"llm": {"model": model}}}).search.llm)

    assert price("claude-sonnet-4-5-20250929") == price("claude-sonnet-4-5") == prices.PRICES["claude-sonnet-4-5"]
    for unknown in ("claude-fable-5-2", "claude-opus-5-7", "claude-sonnet-5-5-turbo", "gpt-x", "claude"):
        assert price(unknown) is None
    default = parse_experiment({}).search.llm
    assert prices.price_of(default) is not None
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", prices.CHECKED)


def test_a_call_costs_what_its_tokens_cost():
    price = prices.Price(2, 10, 2.5, 0.1)
    usage = {
        "input_tokens": 1_000,
        "output_tokens": 500,
        "cache_creation_input_tokens": 2_000,
        "cache_read_input_tokens": 4_000,
    }
    assert prices.cost(price, usage) == pytest.approx((1_000 * 2 + 500 * 10 + 2_000 * 2.5 + 4_000 * 0.1) / 1e6)
    assert prices.cost(None, usage) is None and prices.cost(price, {}) is None
    haiku = prices.PRICES["claude-haiku-5-5"]
    assert prices.cost(haiku, {"input_tokens": 100_000}) == pytest.approx(0.01)
    assert prices.cost(haiku, {"input_tokens": 60_000, "cache_read_input_tokens": 60_000}) == pytest.approx(0.033)


def test_an_unknown_model_costs_not_reported_never_zero(ask, tmp_path):
    exp = experiment(llm={"model": "model-of-tomorrow"})
    step, _ = ask(Player(), context(tmp_path, exp))
    assert step.usage["usd"] == "not reported" and step.usage["input_tokens"] == 2_900
    assert "not reported" in prices.announce(exp) and "$" not in prices.announce(exp)
    caught, requests = ask(Player(), context(tmp_path, experiment(llm={"model": "model-of-tomorrow"}, max_usd=1.0)))
    assert isinstance(caught, Paused) and "no price is known" in str(caught) and requests == []
    own = {"model": "model-of-tomorrow", "prices": {"input": 1, "output": 2, "cache_write": 1, "cache_read": 1}}
    step, _ = ask(Player(), context(tmp_path, experiment(llm=own, max_usd=1.0)))
    assert step.usage["usd"] == pytest.approx((2_900 + 2 * 300) / 1e6)


@pytest.mark.parametrize(
    ("limits", "spent", "stops"),
    [
        ({"max_usd": 1.0}, {"usd": 0.95}, "search.max_usd=1"),
        ({"max_usd": 1.0}, {"usd": 0.2}, ""),
        ({"max_usd": 0.0}, {"usd": 0.0}, "search.max_usd=0"),
        ({"max_calls": 3}, {"calls": 3}, "search.max_calls"),
        ({"max_calls": 4}, {"calls": 3}, ""),
        ({"max_tokens": 60_000}, {"input_tokens": 50_000}, "search.max_tokens"),
        ({"max_tokens": 100_000}, {"input_tokens": 50_000}, ""),
    ],
)
def test_budgets_are_checked_before_the_call_with_its_estimate(ask, tmp_path, limits, spent, stops):
    usage = {"calls": 1, "input_tokens": 0, "output_tokens": 0, "usd": 0.0, **spent}
    paid = [{"event": "proposal_rejected", "usage": usage}]
    got, requests = ask(Player(), context(tmp_path, experiment(**limits), more=paid))
    if stops:
        assert isinstance(got, Paused) and stops in str(got) and requests == [] and "--set search.max_" in str(got)
    else:
        assert len(requests) == 1 and got.usage["usd"] > 0


def test_the_estimate_of_a_call_is_above_its_bill(tmp_path):
    """Two bytes a token is more than any tokenizer needs for such text; checked with a word-piece count."""
    ctx = context(tmp_path, iterations=3)
    words = prompt.render_prompt(ctx)
    tokens = re.findall(r" ?[A-Za-z]{1,4}| ?\d{1,2}|\s+|[^\w\s]", words)
    assert prices.text_tokens(words) > len(tokens)
    usage = {**USAGE, "output_tokens": 16_000}
    price = prices.price_of(ctx.experiment.search.llm)
    assert prices.most(price, 2_900, 16_000) >= prices.cost(price, usage)


def test_what_is_printed_first_names_model_cost_and_the_free_way():
    exp = experiment(max_usd=2.0)
    text = prices.announce(exp)
    assert (
        exp.search.llm.model in text
        and "at most $2.00" in text
        and "--proposer rules" in text
        and prices.CHECKED in text
    )
    assert float(re.search(r"about \$([\d.]+),", text)[1]) < 2.0
    free = prices.announce(experiment())
    assert float(re.search(r"at most \$([\d.]+)", free)[1]) > float(re.search(r"about \$([\d.]+),", free)[1])
