"""The report against fabricated runs: every number has to come from the journal, no text may act."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image
from support.made_up_run import DIFF, HOSTILE, Maker, metrics, two_blocks

from flyjax.config import load_experiment, parse_experiment
from flyjax.report.html import write_comparison, write_report
from flyjax.report.run_view import RunView
from flyjax.report.tables import format_score, ucb_scores
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.loop import run_loop
from flyjax.search.policy import measures
from flyjax.search.proposers.rules import RulesProposer
from flyjax.utils.errors import UserError


@pytest.fixture()
def made(tmp_path):
    return two_blocks(tmp_path / "run")


class Page(HTMLParser):
    """Elements of a page, for questions that a search for strings cannot answer."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append((tag, a))
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "a":
            self.links.append(a.get("href", ""))
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def text_of(path):
    return path.read_text(encoding="utf-8")


def rows_of(page_text):
    """Cells of the table of nodes by node id: {id: {heading: data-value}}."""
    table = page_text.split('id="table-of-nodes"')[1].split("</table>")[0]
    heads = re.findall(r"<button[^>]*>([^<]*)</button>", table)
    out = {}
    for chunk in re.findall(r'<tr id="node-(\d+)".*?</tr>', table, re.S):
        body = re.search(rf'<tr id="node-{chunk}".*?</tr>', table, re.S)[0]
        out[int(chunk)] = dict(
            zip(heads, map(unescape, re.findall(r'<td[^>]*data-value="([^"]*)"', body)), strict=True)
        )
    return out


def test_page_is_well_formed_and_loads_nothing(made):
    path = write_report(made)
    assert path == made / "report.html" and not list(made.glob(".report.*"))
    text = text_of(path)
    page = Page(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link.startswith("#") and link[1:] in page.ids, link
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert "srcset" not in attributes and not any(k.startswith("on") for k in attributes)
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/")
    assert "url(" not in text and "@import" not in text and not re.search(r"https?://", text)


def test_texts_of_a_run_cannot_act(made):
    text = text_of(write_report(made))
    assert text.count("<script") == 1 and "<img src=x" not in text
    assert "&lt;script&gt;alert" in text and "{{ 7*7 }}" in text
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The policy admits the page's own script and no other.
    assert f"script-src 'sha256-{digest}'" in text.replace("&#39;", "'")


def test_rows_agree_with_the_journal(made):
    shown, state = rows_of(text_of(write_report(made))), fold(read_journal(made))
    assert sorted(shown) == sorted(state.nodes) == list(range(26))
    for i, node in state.nodes.items():
        row = shown[i]
        assert row["parent"] == str(node.parent) and row["strategy"] == node.strategy
        value = (node.metrics or {}).get("connectivity_R2")
        assert row["W R²"] == ("" if value is None else str(value))
        assert row["reward"] == ("" if node.reward is None else str(node.reward))
    assert shown[5]["status"] == "failed" and shown[24]["status"] == "running"
    assert shown[4]["mutation"] == "batch_size: 1 -> 4"
    assert shown[8]["mutation"] == "none (same configuration)"
    assert float(shown[4]["min"]) == 0.91


def test_failures_reasons_edits_and_instructions_are_shown(made):
    text = text_of(write_report(made))
    assert "loss was not finite at step 40 &lt;b&gt;" in text
    assert 'title="the learned values are constant"' in text
    assert "slot 2: parent 99 is unknown" in text and "replaced by the rules" in text
    assert "learning_rate_start 7 is outside its range" in text
    assert "try noise 0.1" in text and "noise helps" in text and "branching rate 0 %" in text
    assert '<span class="add">+| new &lt;b&gt;row |</span><span class="del">-old row</span>' in text
    assert "No changes needed" not in text
    assert "DAVIS was not available on that machine; scenes_1 was used instead" in text
    assert "abc1234" in text and "9.9.9" in text
    assert "$0 (rules)" in text and "ground-truth" in text


def test_no_changes_needed_has_its_reason(tmp_path):
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=[metrics(0.5)])
    m.choose(0)
    m.journal.append("protocol_edited", block=1, by="user", protocol="x", reason="edited by hand", diff=DIFF)
    m.end_block(1, "all three numbers are fine")
    m.journal.append("run_finished", reason="all blocks done")
    text = text_of(write_report(tmp_path))
    # An edit by a user is no edit of the search.
    assert "Protocol edited by hand" in text
    assert "No changes needed" in text and "all three numbers are fine" in text
    assert 'class="pill finished"' in text and "all blocks done" in text


@pytest.mark.parametrize("stage", ["begun", "training", "all failed", "paused"])
def test_runs_without_a_finished_node(tmp_path, stage):
    m = Maker(tmp_path)
    if stage != "begun":
        result = "running" if stage == "training" else "out of memory"
        m.train(1, 1, [("root", {}, "root"), ("root", {"batch_size": 2}, "exploit")], results=[result] * 2)
    if stage == "paused":
        m.journal.append("run_paused", reason="the budget is spent", usage={})
    text = text_of(write_report(tmp_path))
    assert Page(text).open == []
    assert "No node has finished" in text
    assert ("out of memory" in text) == (stage in ("all failed", "paused"))
    assert (stage == "paused") == ("the budget is spent" in text)


@pytest.mark.parametrize("name", ["config.yaml", "nodes/0013/metrics.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")], ids=["pipe", "link"])
def test_a_pipe_or_a_link_in_the_run_is_refused(tmp_path, name, make):
    folder = two_blocks(tmp_path)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(UserError, match=name):
        write_report(folder)


def test_missing_and_broken_figures(made):
    folder = made / "nodes" / "0013" / "figures"
    (folder / "activity.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    text = text_of(write_report(made))
    assert 'alt="node 13: recovery"' in text and 'alt="node 13: activity"' not in text
    assert "No figures of node 0." in text


def test_figures_are_reduced_without_distortion(made):
    m_folder = made / "nodes" / "0013" / "figures"
    Image.new("RGB", (3000, 1500), "white").save(m_folder / "recovery.png")
    text = text_of(write_report(made))
    uris = re.findall(r'src="data:image/(\w+);base64,([^"]+)" alt="node 13: recovery"', text)
    assert len(uris) == 2  # best of its block, and in the gallery
    for _, data in uris:
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        assert width in (1600, 760) and width == 2 * height


def test_a_blind_search_says_so_and_shows_both(tmp_path):
    m = Maker(tmp_path, objective="blind")
    m.train(1, 1, [("root", {}, "root"), ("root", {"batch_size": 2}, "exploit")], results=[metrics(0.6), metrics(0.3)])
    m.choose(1)
    text, run = text_of(write_report(tmp_path)), RunView(tmp_path)
    assert run.best.id == 1 and run.truth_metric == "connectivity_R2"
    assert "test_R2, best: " in text and "its connectivity_R2" in text and "<b>blind</b>" in text


@pytest.mark.parametrize("damage", ["absent", "empty", "other"])
def test_no_run_is_one_clear_line(tmp_path, damage):
    if damage == "empty":
        (tmp_path / "journal.jsonl").touch()
    if damage == "other":
        (tmp_path / "journal.jsonl").write_text("no json\n" + json.dumps({"event": "x"}) + "\n")
    with pytest.raises(UserError) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_measures_shown_are_those_of_the_tree(made):
    text, state = text_of(write_report(made)), fold(read_journal(made))
    found = measures.measure(state, 1)
    blocks = text.split('<section id="blocks">')[1]
    assert f"<b>{100 * found.branching:.0f} %</b>" in blocks and f"<b>{100 * found.improvement:.0f} %</b>" in blocks
    assert f"<b>{measures.noise_floor(state, 1):.4f}</b>" in blocks


def test_report_of_a_run_of_the_real_loop(tmp_path, root):
    def evaluate(plan):
        # Best at noise 0.1 and batch 4; one seed.
        def r2(c):
            return max(0.0, 0.95 - 3 * abs(c["noise_model_level"] - 0.1) - 0.05 * (4 - c["batch_size"]))

        return {n.id: {"metrics": metrics(r2(n.config)), "activity": "active"} for n in plan.nodes}

    made_up = parse_experiment(
        {"name": "real-loop", "search": {"n_iter_block": 3, "n_blocks": 2, "n_candidates": 3, "proposer": "rules"}}
    )
    outcome = run_loop(made_up, tmp_path, evaluate, RulesProposer(made_up), protocol_template=root / "protocol.md")
    text = text_of(write_report(tmp_path))
    page, shown = Page(text), rows_of(text)
    assert page.open == [] and sorted(shown) == sorted(outcome.state.nodes) and len(shown) == 18
    assert 'class="pill finished"' in text and "2 blocks done" in text and "$0 (rules)" in text
    for block in (1, 2):
        assert outcome.state.blocks[block].ended["summary"] in unescape(text)
        assert outcome.state.blocks[block].ended["edit"]["reason"] in unescape(text)
    best = max(n.reward for n in outcome.state.nodes.values())
    assert f"<b>{best:.3f}</b>" in text


def test_a_click_leads_to_the_figures_and_settings_of_a_node(made):
    page, state = Page(text_of(write_report(made))), fold(read_journal(made))
    marks = [a for tag, a in page.tags if tag == "a" and "data-node" in a]
    assert {a["data-node"] for a in marks} == {str(n) for n in state.nodes}
    assert all(a["href"] == f"#card-{a['data-node']}" for a in marks)


def cards_of(text):
    """Values of the cards by node and name."""
    found = re.findall(r'<details class="card" id="card-(\d+)".*?\n</div></details>', text, re.S)
    bodies = {i: re.search(rf'id="card-{i}".*?\n</div></details>', text, re.S)[0] for i in found}
    return {
        int(i): dict(re.findall(r'data-name="([^"]*)" data-value="([^"]*)"', body)) | {"yaml": unescape(yaml_of(body))}
        for i, body in bodies.items()
    }


def yaml_of(card):
    return re.search(r'class="configuration".*?<pre>(.*?)</pre>', card, re.S)[1]


def test_cards_have_every_setting_and_a_configuration_that_can_be_trained(made, tmp_path):
    cards, state = cards_of(text_of(write_report(made))), fold(read_journal(made))
    assert sorted(cards) == sorted(state.nodes)
    for i, node in state.nodes.items():
        assert {k: cards[i][k] for k in node.config} == {k: str(v) for k, v in node.config.items()}
        assert cards[i]["strategy"] == node.strategy and cards[i]["block"] == str(node.block)
        assert cards[i]["node"] == str(i) and cards[i]["iteration"] == str(node.iteration)
    scores = {i: float(card["UCB"]) for i, card in cards.items() if card["UCB"]}
    assert scores == pytest.approx(ucb_scores(state))
    path = tmp_path / "copied.yaml"
    path.write_text(cards[1]["yaml"])
    assert load_experiment(path).training.model_dump(mode="json") == state.nodes[1].config


def test_a_copied_configuration_of_a_short_recording_can_be_trained(tmp_path):
    made = Maker(tmp_path / "run")  # fewer frames and another stimulus than the default ranges allow
    simulation = {"extent": 1, "visual_input_type": "scenes_texture", "n_frames": 1600, "n_test_frames": 400}
    made.train(1, 1, [("root", {}, "root")], [metrics(0.5)], simulation=simulation)
    run, path = RunView(tmp_path / "run"), tmp_path / "copied.yaml"
    path.write_text(run.as_yaml(run.nodes[0]))
    assert load_experiment(path).simulation.n_frames == 1600


def test_of_a_simulation_only_what_differs_is_shown(made):
    run = RunView(made)
    simulation = run.state.blocks[1].simulation
    assert run.simulation_changes(simulation) == {"visual_input_type": "scenes_1"}  # delta_t is the default
    assert run.simulation_changes(run.state.blocks[2].simulation, simulation) == {"visual_input_type": "scenes_2"}
    assert run.simulation_changes(simulation, simulation) == {}


def test_training_curves_end_at_the_last_value(made):
    values = [0.1, 0.5, 0.93, 0.97]
    lines = [{"lane": "node_0004/seed_0", "step": 250 * k, "loss": 1 / k, "connectivity_R2": v}
             for k, v in enumerate(values, 1)]  # fmt: skip
    lines.append({"lane": "node_0004/seed_1", "step": 250, "loss": 1.0})  # not read off yet
    (made / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = RunView(made)
    curves = run.curves("connectivity_R2", run.state.nodes[4])
    ((lane, points),) = curves.lines
    assert lane == "node_0004/seed_0" and curves.last_step == 1000
    assert points[-1] == (1.0, curves.axis.place(0.97)) and len(points) == 4
    assert run.curves("connectivity_R2", run.state.nodes[5]) is None
    assert 'id="curves"' in text_of(write_report(made))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser on this machine")
def test_the_script_runs_in_a_browser(made):
    page = write_report(made).as_uri()
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"{page}#card-13"]
    dom = subprocess.run(browser, capture_output=True, text=True, timeout=60).stdout
    page = Page(dom)
    opened = [a.get("id") for tag, a in page.tags if tag == "details" and "open" in a]
    assert opened == [None, "card-13"]  # the gallery, and the card that the address names
    assert sum(tag == "option" for tag, _ in page.tags) == 27
    assert not any("hidden" in a for tag, a in page.tags if a.get("id") == "filter")


def test_two_recorded_runs_side_by_side(root, tmp_path):
    runs = [root / "experiments/results/quickstart", root / "experiments/results/whole_eye"]
    text = text_of(write_comparison(runs, tmp_path / "page.html"))
    page, views = Page(text), [RunView(run) for run in runs]
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    assert all(link[1:] in page.ids for link in page.links)
    for k, view in enumerate(views, 1):
        assert {f"{k}-card-{n.id}" for n in view.nodes} <= set(page.ids)
    row = re.search(r'<td class="name">connectivity_R2</td>(.*?)</tr>', text)[1]
    assert re.findall(r">([^<]*)</td>", row) == [format_score(view.best.metrics["connectivity_R2"]) for view in views]
    extents = re.search(r'<td class="name">simulation.extent</td>(.*?)</tr>', text)[1]
    assert re.findall(r">([^<]*)</td>", extents) == [str(v.state.experiment["simulation"]["extent"]) for v in views]


def test_a_comparison_needs_two_runs(made, tmp_path):
    with pytest.raises(UserError, match="--compare"):
        write_comparison([made], tmp_path / "page.html")


def test_hostile_names_do_not_act_in_a_comparison(tmp_path):
    for name in ("a", "b"):
        m = Maker(tmp_path / f"{name}<img src=x onerror=alert(1)>")
        m.train(1, 1, [("root", {"schedule": HOSTILE}, HOSTILE)], results=[metrics(0.6)])
    text = text_of(write_comparison(list(tmp_path.iterdir()), tmp_path / "page.html"))
    assert text.count("<script") == 1 and "<img src=x" not in text and "&lt;img src=x" in text


def test_command_line(made, root):
    def call(*args):
        return subprocess.run(
            [sys.executable, str(root / "scripts" / "report.py"), *args], capture_output=True, text=True
        )

    done = call(str(made), "--csv", str(made / "nodes.csv"))
    assert done.returncode == 0 and (made / "report.html").exists(), done.stderr
    assert len((made / "nodes.csv").read_text().splitlines()) == 27
    absent = call(str(made / "nowhere"))
    assert absent.returncode == 2 and len(absent.stderr.strip().splitlines()) == 1 and "journal.jsonl" in absent.stderr
    shown = call("--help")
    assert shown.returncode == 0 and "runs/quickstart --open" in shown.stdout
