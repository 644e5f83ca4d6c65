"""No file of a run, no prompt and no error holds a key, whoever wrote it there and wherever."""

import json

import pytest
from support.messages_api_server import KEY, MessagesServer, Player, error, prompt_text, raw
from support.search_landscape import TEMPLATE, evaluate, experiment

from flyjax.report.html import write_report
from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.journal.state import fold
from flyjax.search.llm.proposer import LLMProposer
from flyjax.search.loop import SearchCallbacks, run_loop
from flyjax.search.proposers.rules import RulesProposer
from flyjax.search.run.status import preview
from flyjax.utils.errors import UserError
from flyjax.utils.secrets import REDACTED

OTHER = "sk-ant-api03-AbCd_0123456789-xyzAA"  # a key that is not in the environment
TABLE = "| Condition |"
INVISIBLE = ("\u200b", "\ufe0f", "\u0301", "\u3164", "\x07", "\ud800", "\U000e0041", "\ue000", "\u0378", "\n", "\u2028")
pytestmark = pytest.mark.usefixtures("key")


def forms(key):
    """A key as it is, and with something inside."""
    return [key, *(key[:9] + c + key[9:] for c in INVISIBLE)]


def check(folder, *more):
    """No key in any file, nor in other texts, also after the invisible characters are gone."""
    texts = {str(p): p.read_text("utf-8", "replace") for p in folder.rglob("*") if p.is_file()}
    texts |= {f"text {k}": str(text) for k, text in enumerate(more)}
    for name, text in texts.items():
        seen = "".join(c for c in text if "!" <= c <= "~")
        found = [key for key in (KEY[9:], OTHER[9:]) if key in text or key in seen]
        assert found == [], (name, seen[max(0, seen.find(found[0]) - 50) :][:200])


def run(folder, exp, proposer, template=TEMPLATE, **callbacks):
    return run_loop(exp, folder, evaluate, proposer, protocol_template=template, callbacks=SearchCallbacks(**callbacks))


@pytest.mark.parametrize("secret", [KEY, OTHER])
def test_a_gateway_that_echoes_it(monkeypatch, tmp_path, capsys, secret):
    """In every field of every answer, each time with another invisible character inside."""

    def spoil(arguments, number):
        echoes = iter(forms(secret) * 20)
        for entry in arguments.get("log", ()):
            entry |= {"activity": next(echoes), "observation": next(echoes)}
        for proposal in arguments["proposals"]:
            proposal["hypothesis"] = f"because {next(echoes)}"
            if number:
                proposal["changes"].append({"name": next(echoes), "value": next(echoes)})
        arguments |= {name: next(echoes) for name in ("reason", "notes", "block_summary", "edit_reason")}
        arguments[next(echoes)] = next(echoes)
        if "edit_old" in arguments:
            arguments |= {"edit_old": TABLE, "edit_new": f"Note: {next(echoes)}\n\n{TABLE}"}

    warned = []
    exp = experiment(n_candidates=2, n_iter_block=2, n_blocks=2, proposer="llm")
    with MessagesServer(Player(spoil=spoil)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        state = run(tmp_path, exp, LLMProposer(exp), warn=warned.append).state
        sent = [json.dumps(r["body"]) for r in server.requests]
    assert len(state.nodes) == 8 and REDACTED in state.notes
    write_report(tmp_path)
    output = capsys.readouterr()
    check(tmp_path, *sent, *warned, output.out, output.err, repr(state))


@pytest.mark.parametrize("character", INVISIBLE)
def test_errors_and_damaged_answers_that_echo_it(ask, tmp_path, character):
    from support.search_contexts import context

    echo = KEY[:9] + character + KEY[9:]
    answers = [
        error(400, words=f"bad key {echo}"),
        raw(f"not JSON {echo}".encode("utf-8", "surrogatepass")),
        raw(json.dumps([echo]).encode()),
        raw(json.dumps(json.dumps({"x": echo})).encode()),
    ]
    for answer in answers:
        caught, _ = ask(answer, context(tmp_path))
        check(tmp_path, caught, repr(caught), json.dumps(getattr(caught, "raw", "")), repr(getattr(caught, "raw", "")))


@pytest.mark.parametrize("secret", [KEY, OTHER])
def test_a_person_who_pastes_it(monkeypatch, tmp_path, secret):
    """Into the template, the run's protocol, the instructions and the configuration."""
    template = tmp_path / "template.md"
    template.write_text(TEMPLATE.read_text("utf-8").replace(TABLE, f"My key: {secret}\n\n{TABLE}", 1) + f"\n{secret}\n")
    folder = tmp_path / "run"
    exp = experiment(n_candidates=2, n_iter_block=2, n_blocks=2, proposer="llm")
    exp = exp.model_validate(exp.model_dump() | {"description": f"key {secret}"})
    pasted = []

    def paste(event, state):
        if event["event"] == "block_ended" and not pasted:
            path = folder / "protocol.md"
            for form in forms(secret):
                path.write_bytes(
                    path.read_bytes().replace(
                        TABLE.encode(), f"- {form}\n\n{TABLE}".encode("utf-8", "surrogatepass"), 1
                    )
                )
            with open(folder / "user_input.md", "ab") as file:
                file.writelines(f"the key is {form}\n".encode("utf-8", "surrogatepass") for form in forms(secret))
            pasted.append(event)

    with MessagesServer(Player()) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        state = run(folder, exp, LLMProposer(exp), template, on_event=paste).state
        sent = [json.dumps(r["body"], ensure_ascii=False) for r in server.requests]
        instructions = prompt_text(server.requests[-1]) + prompt_text(server.requests[-2])
    assert pasted and state.acknowledged and "the key is [redacted]" in instructions
    assert [e["by"] for e in state.edits] == ["user"] and f"- {REDACTED}" in state.protocol
    write_report(folder)
    check(folder, *sent, repr(state), preview(exp, folder, template, ("DAVIS",), "llm"))


def test_the_journal_lets_no_key_through(tmp_path):
    with Journal(tmp_path) as journal:
        event = journal.append("run_paused", reason=forms(KEY), raw={OTHER: [tmp_path / KEY]})
    assert event["reason"] == [REDACTED] * len(forms(KEY)) and list(event["raw"]) == [REDACTED]
    check(tmp_path, event)


def test_a_key_in_the_protocol_of_a_run_that_goes_on(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=2)

    def stop(plan):
        if plan.number == 2:
            raise KeyboardInterrupt
        return evaluate(plan)

    with pytest.raises(KeyboardInterrupt):
        run_loop(exp, tmp_path, stop, RulesProposer(exp), protocol_template=TEMPLATE)
    path = tmp_path / "protocol.md"
    path.write_text(path.read_text("utf-8") + f"\n{KEY}\n", "utf-8")
    with pytest.raises(UserError, match="protocol.md") as refused:  # it stands outside the markers
        run(tmp_path, exp, RulesProposer(exp))
    assert KEY not in str(refused.value)
    path.write_text(fold(read_journal(tmp_path)).protocol.replace(TABLE, f"{KEY}\n\n{TABLE}", 1), "utf-8")
    assert run(tmp_path, exp, RulesProposer(exp)).status == "finished"
    write_report(tmp_path)
    check(tmp_path)
