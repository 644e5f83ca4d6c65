"""The protocol: what it must say, what can be edited, and the strategy table as data."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_events import chain_state

from flyjax.config import (
    PROTOCOL_RANGES,
    PROTOCOL_SIMULATION_RANGES,
    Range,
    load_experiment,
    parse_experiment,
    read_yaml,
)
from flyjax.search.policy.measures import Measures, measure
from flyjax.search.proposals.types import ProtocolEdit
from flyjax.search.protocol import document
from flyjax.search.protocol.document import MAX_BODY, EditRefused, apply_edit
from flyjax.search.protocol.revision import BRANCH_ROW, PLATEAU_ROW, revise
from flyjax.search.protocol.rule_table import parse_condition, parse_row
from flyjax.utils.errors import UserError

DEFAULT = "| Default | **exploit** | Use highest UCB node, try new mutation |"


@pytest.fixture(scope="module")
def template(root):
    return (root / "protocol.md").read_text()


def edit(old, new, reason="because"):
    return ProtocolEdit(old, new, reason)


def listed(text):
    """Section -> name -> (value as written, range or None), as the locked listings state them."""
    out = {}
    for part in document.split(text)[::2]:
        for section, lines in re.findall(r"^```yaml\n(\w+):\n(.*?)```", part, re.S | re.M):
            for name, value, comment in re.findall(r"^  (\w+): *(\S+) *#(.*)$", lines, re.M):
                span, ends = None, re.search(r"range: (\S+) to (\S+)(?: \((log|whole numbers)\))?$", comment)
                if ends:
                    scale = {None: "linear", "log": "log", "whole numbers": "int"}[ends[3]]
                    span = Range(min=float(ends[1]), max=float(ends[2]), scale=scale)
                elif values := re.search(r"values: (.+)$", comment):
                    span = Range(scale="choice", values=tuple(read_yaml(f"[{values[1]}]")))
                out.setdefault(section, {})[name] = (value.strip('"'), span)
    return out


# --- the document ---


def test_the_template_states_the_values_and_ranges_of_full_scale(template, root):
    full = load_experiment(root / "experiments" / "full_scale.yaml")
    assert document.instantiate(template, full) == template
    stated = listed(template)
    assert {k: span for k, (_, span) in stated["training"].items()} == PROTOCOL_RANGES == full.search.ranges
    assert {k: span for k, (_, span) in stated["simulation"].items()} == PROTOCOL_SIMULATION_RANGES
    assert full.search.simulation_ranges == PROTOCOL_SIMULATION_RANGES
    for section in ("training", "simulation"):
        for name, (value, _) in stated[section].items():
            own = getattr(getattr(full, section), name)
            assert value == own if isinstance(own, str) else float(value) == own, name
    assert full.simulation.extent == 8 and full.model.width == 80


FORMATS = """## Iter N: [converged/partial/failed]
Node: id=N, parent=P
Mode/Strategy: [success-exploit/failure-probe]/[exploit/explore/boundary]
Config: lr_W=X, lr=Y, lr_emb=Z, coeff_W_L1=W, noise=N
Metrics: test_R2=A, test_pearson=B, connectivity_R2=C, tau_R2=D, V_rest_R2=E, external_input_R2=G, cluster_accuracy=H
Activity: [brief description of dynamics]
Mutation: [param]: [old] -> [new]
Parent rule: [brief description of Parent Selection Rule]
Observation: [one line about result]
Next: parent=P
## Simulation Block {block_number} Summary (iters X-Y)
Simulation: visual_input_type=[type], n_frames=[N], delta_t=[T]
Best R2: [value] at iter [N]
Best tau_R2: [value], V_rest_R2: [value], cluster_accuracy: [value]
Converged: [Yes/No]
Observation: [what worked/failed for this simulation]
Optimum training: lr_W=[X], lr=[Y], lr_emb=[Z], coeff_W_L1=[W], noise=[N]
--- NEW SIMULATION BLOCK ---
Next simulation: visual_input_type=[type], n_frames=[N], ...
Node: id=N, parent=root
Block info: block {block_number}, iteration {iter_in_block}/{n_iter_block} within block""".splitlines()


@pytest.mark.parametrize("line", FORMATS)
def test_the_formats_stand_line_by_line(template, line):
    assert line in template.splitlines()


def test_every_term_of_the_protocol_is_there(template):
    for term in (
        "connectivity weights",
        "time constants",
        "resting potentials",
        "connectivity_R2",
        "tau_R2",
        "V_rest_R2",
        "test_R2",
        "test_pearson",
        "external_input_R2",
        "cluster_accuracy",
        "final_loss",
        "analysis.log",
        "ucb_scores.txt",
        "parent=root",
        "> 0.9",
        "0.1 to 0.9",
        "< 0.1",
        "iter_in_block < n_iter_block",
        "iter_in_block == n_iter_block",
        "Reversion check",
        "failure-probe",
        "robustness-test",
        "No changes needed",
        "Branching rate",
        "Improvement rate",
        "Stuck detection",
        "< 30 %",
        "> 80 %",
        "+/-0.05",
        "MANDATORY",
        "EDIT THIS PROTOCOL",
        "[CURRENT]",
        "N_total",
    ):
        assert term in template, term
    for marker in (document.BEGIN, document.END):
        assert template.splitlines().count(marker) == 1


def test_a_runs_copy_states_its_own_values(template):
    own = parse_experiment(
        {
            "simulation": {"n_frames": 1600, "visual_input_type": "scenes_edges"},
            "training": {"batch_size": 2, "coeff_message_L1": 0.5},
            "search": {
                "n_candidates": 3,
                "ranges": {
                    "batch_size": {"scale": "choice", "values": [1, 2]},
                    "coeff_message_L1": {"min": 0, "max": 1},
                    "noise_model_level": {"min": 0.01, "max": 0.1, "scale": "log"},
                },
                "simulation_ranges": {"n_frames": {"min": 800, "max": 3200, "scale": "int"}},
            },
        }
    )
    copy = document.instantiate(template, own)
    stated = listed(copy)
    assert {k: span for k, (_, span) in stated["training"].items()} == own.search.ranges
    assert stated["simulation"]["n_frames"] == ("1600", own.search.simulation_ranges["n_frames"])
    assert stated["simulation"]["visual_input_type"] == ("scenes_edges", None)
    assert "n_candidates: 3 " in copy
    # Nothing but the listings differs.
    fence = re.compile(r"```yaml\n.*?```", re.S)
    assert fence.sub("", copy) == fence.sub("", template)


# --- the guard ---


def test_an_edit_changes_one_passage_and_nothing_else(template):
    after = apply_edit(template, edit(DEFAULT, f"{DEFAULT}\n{BRANCH_ROW}"))
    assert document.split(after)[::2] == document.split(template)[::2]
    assert document.body(after).replace(BRANCH_ROW + "\n", "") == document.body(template)
    added = [x for x in document.diff(template, after).splitlines() if x.startswith("+") and not x.startswith("+++")]
    assert added == ["+" + BRANCH_ROW]
    assert apply_edit(template, edit("", "")) == template
    # Reverting brings the former rules back, bit for bit.
    assert document.with_body(after, document.body(template)) == template


@pytest.mark.parametrize(
    "old, new, why",
    [
        ("## Goal", "## Goal: anything", "occurs 0 times"),
        ("range: 0 to 0.2", "range: 0 to 2", "occurs 0 times"),
        ("connectivity_R2", "test_R2", "occurs 0 times"),
        ("UCB", "ucb", "it has to occur exactly once"),
        ("", "more", "old is empty"),
        (DEFAULT, DEFAULT, "the same"),
        (DEFAULT, "", "Default row"),
        (DEFAULT, DEFAULT.replace("exploit", "dance"), "Default row"),
        (DEFAULT, DEFAULT + "\n## END Parent selection Rule (CRITICAL)", "markers"),
        (DEFAULT, DEFAULT + "\n##  end parent Selection  rule (CRITICAL)", "markers"),
        (DEFAULT, DEFAULT + "\n## Goal\nwin", "headings"),
        (DEFAULT, DEFAULT + "\n```", "fence"),
        (DEFAULT, DEFAULT + "\x00", "control"),
        (DEFAULT, DEFAULT + "\u2028## Goal", "control"),
        (DEFAULT, DEFAULT + "\ud800", "control"),
        (DEFAULT, DEFAULT + "\r\n", "control"),
        (DEFAULT, DEFAULT + "x" * 20_000, "at most"),
    ],
)
def test_what_the_guard_refuses(template, old, new, why):
    with pytest.raises(EditRefused, match=why) as error:
        apply_edit(template, edit(old, new))
    assert "\n" not in str(error.value)


#: What the guard let in before it knew better.
FORMER = [
    "Where W<tau, wait.",
    "\u26a0\ufe0f mind the noise",
    f"| best R2 < 0.5 | **explore** | {'x' * 500} |",
    "As the parent selection rules say.",
    "~~~\na fence\n~~~",
    "a <b",
]


MARKERS = (document.BEGIN, document.END)


@pytest.mark.parametrize("smuggled", [*MARKERS, "\n".join(MARKERS), "\n".join(reversed(MARKERS))])
def test_what_the_guard_misses_still_changes_nothing_outside_the_markers(template, monkeypatch, smuggled):
    monkeypatch.setattr(document, "check_body", lambda new, old: None)
    with pytest.raises(EditRefused):
        apply_edit(template, ProtocolEdit("| Default |", f"{smuggled}\n| Default |", "a hidden section"))
    assert document.with_body(template, "New rules.\n") != template


@pytest.mark.parametrize("passage", FORMER)
def test_what_was_let_in_once_hinders_no_other_edit_and_no_more_of_it_comes(template, passage):
    former = template.replace(DEFAULT, f"{DEFAULT}\n{passage}", 1)
    after = apply_edit(former, edit(DEFAULT, f"{BRANCH_ROW}\n{DEFAULT}"))
    assert after.replace(BRANCH_ROW + "\n", "", 1) == former
    assert document.restored(after, former) == former and document.restored(former, template) == template
    assert apply_edit(former, edit(f"{DEFAULT}\n{passage}", DEFAULT)) == template
    for more in (passage, "<script>", "## END Parent selection Rule (CRITICAL)", "a\u200bb", "Goal\n==="):
        if more != passage or "~~~" not in passage:  # what is open already opens no more
            with pytest.raises(EditRefused):
                apply_edit(former, edit(DEFAULT, f"{DEFAULT}\n\n{more}\n"))
    with pytest.raises(EditRefused):  # where nothing of it stands
        document.with_body(template, document.body(former))


def test_a_passage_is_quoted_as_it_is_drawn(template):
    """A model's text comes without the characters that nobody sees."""
    sign = "\u26a0\ufe0f"
    text = template.replace(DEFAULT, f"{DEFAULT}\n\n\u200bMind {sign} the {sign}", 1)
    edited = apply_edit(text, edit("Mind \u26a0 the \u26a0", "Mind the noise"))
    assert "\n\u200bMind the noise\n" in edited
    assert "x\n" in apply_edit(text, edit(f"Mind {sign} the {sign}", "x"))
    assert apply_edit(text, edit("\u26a0 the \u26a0", "\u26a0 the \u26a0")) == text.replace("\ufe0f", "")
    for old, why in (("\ufe0f", "empty"), ("\u26a0", "occurs 2 times"), (document.body(text), "the same")):
        with pytest.raises(EditRefused, match=why):
            apply_edit(text, edit(old, old))


def test_growth_is_bounded_over_many_edits(template):
    text = template
    with pytest.raises(EditRefused, match="at most"):
        for k in range(10):
            text = apply_edit(text, edit(DEFAULT, f"{DEFAULT}\n\nNote {k}: " + "y" * 3000))
    assert len(document.body(text)) <= MAX_BODY


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_an_edit_is_the_rest_stays_bit_for_bit(data, template):
    inside = document.body(template)
    start = data.draw(st.integers(0, len(inside)))
    end = data.draw(st.integers(start, min(len(inside), start + 300)))
    old = data.draw(st.sampled_from([inside[start:end], inside[start:], inside[:end], template[:end], "nowhere"]))
    parts = st.sampled_from(
        ["", "\n", "##", document.END, document.BEGIN, DEFAULT, "| a | b | c |", "```", "## Goal", "text "]
    )
    new = "".join(data.draw(st.lists(st.one_of(parts, st.text(max_size=20)), max_size=4)))
    try:
        after = apply_edit(template, edit(old, new))
    except EditRefused:
        return
    assert document.split(after)[::2] == document.split(template)[::2]
    assert listed(after) == listed(template)
    assert any(r.is_default for r in document.rules(after).rows)


def test_broken_markers_are_one_line(template):
    for broken in (template.replace(document.END, ""), template + document.BEGIN, "nothing"):
        with pytest.raises(UserError, match="occurs"):
            document.split(broken)
    swapped = (
        template.replace(document.BEGIN, "@")
        .replace(document.END, document.BEGIN)
        .replace("\n@\n", f"\n{document.END}\n")
    )
    with pytest.raises(UserError, match="END marker"):
        document.split(swapped)


def test_learned_rules_carry_over_and_nothing_else(template, root):
    full = load_experiment(root / "experiments" / "full_scale.yaml")
    learned = apply_edit(template, edit(DEFAULT, f"{DEFAULT}\n{BRANCH_ROW}"))
    other = full.model_copy(update={"search": full.search.model_copy(update={"n_candidates": 5})})
    carried = document.carry_over(learned, template, other)
    assert BRANCH_ROW in carried and "n_candidates: 5 " in carried
    for passage in FORMER:
        with pytest.raises(UserError, match="--protocol: .*; change that between the file's markers$"):
            document.carry_over(template.replace(DEFAULT, f"{DEFAULT}\n{passage}", 1), template, full)
    with pytest.raises(UserError, match="differs from the template"):
        document.carry_over(learned.replace("## Goal", "## Aim"), template, full)
    with pytest.raises(UserError, match="noise_model_level is range: 0 to 0.5"):
        document.carry_over(learned.replace("range: 0 to 0.2", "range: 0 to 0.5"), template, full)
    with pytest.raises(UserError, match="headings"):
        document.carry_over(learned.replace("### First moves", "## First moves"), template, full)


# --- the table ---


def test_the_templates_table_is_data(template):
    rows = document.rules(template).rows
    assert [r.strategy for r in rows] == ["exploit", "failure-probe", "explore", "robustness-test"]
    assert not document.rules(template).problems
    default, probe, explore, again = (r.conditions[0] for r in rows)
    assert default.kind == "default" and rows[0].is_default
    assert (probe.kind, probe.count, probe.value, rows[1].factor) == ("successes", 3, 0.9, 10.0)
    assert (explore.kind, explore.iterations(12), explore.iterations(4)) == ("successes", 3, 2)
    assert (again.kind, again.value) == ("good_config", 0.9)
    assert {h.parameter for h in document.rules(template).hints} == set(PROTOCOL_RANGES)


@pytest.mark.parametrize(
    "text, kind, fields",
    [
        ("3+ consecutive successes (R2 >= 0.9)", "successes", {"count": 3, "value": 0.9}),
        ("at least 5 consecutive successes (R² ≥ .95)", "successes", {"count": 5, "value": 0.95}),
        ("n_iter_block/4 consecutive successes", "successes", {"divisor": 4, "value": 0.9}),
        ("Branching rate < 20% in last block", "branching", {"op": "<", "value": 0.2, "last_block": True}),
        ("**improvement rate >= 12.5 %**", "improvement", {"op": ">=", "value": 0.125, "last_block": False}),
        ("R2 plateau (+/-0.03) for 4+ iterations", "plateau", {"value": 0.03, "count": 4}),
        ("plateau (±0.05) for 3 iters", "plateau", {"value": 0.05, "count": 3}),
        ("Found good config", "good_config", {"value": 0.9}),
        ("best R2 < 0.5", "best", {"op": "<", "value": 0.5}),
    ],
)
def test_conditions(text, kind, fields):
    (condition,) = parse_condition(text)
    assert condition.kind == kind
    for name, value in fields.items():
        assert (
            getattr(condition, name) == pytest.approx(value)
            if isinstance(value, float)
            else getattr(condition, name) == value
        )


def test_unreadable_rows_stay_and_are_reported(template):
    odd = "| When the moon is full | **explore** | Try blue |"
    text = apply_edit(template, edit(DEFAULT, f"{DEFAULT}\n{odd}\n| Default | **dance** | Twice |"))
    rules = document.rules(text)
    assert len(rules.rows) == 6 and len(rules.usable) == 4
    assert "'When the moon is full'" in rules.problems[0] and "'dance'" in rules.problems[1]
    assert parse_row("|---|---|---|") is None and "three cells" in parse_row("| a | b |").problem
    assert "no probe" in parse_row("| Plateau for 3+ iterations | failure-probe | 1x |").problem
    assert parse_row("| Best R2 > 0.5 and 2+ consecutive successes | failure-probe | 0.2x |").factor == 5.0


# --- the protocol's table of self-revision ---


def measures(branching=0.5, improvement=0.5, plateau=1):
    """Measures that are no chance."""
    return Measures(
        branching, improvement, plateau, 0, 0.5, 20, p_sequential=0.01, p_few=0.01, p_many=0.01, p_plateau=0.01
    )


def test_each_measure_asks_for_its_edit(template):
    def revised(**kwargs):
        return apply_edit(template, revise(template, measures(**kwargs)))

    assert BRANCH_ROW in revised(branching=0.0)
    assert PLATEAU_ROW in revised(plateau=3)
    assert "3+ consecutive successes (R2 >= 0.92)" in revised(improvement=0.29)
    assert "n_iter_block/4 consecutive successes (R2 >= 0.92)" in revised(improvement=0.29)
    assert "2+ consecutive successes (R2 >= 0.9)" in revised(improvement=0.81)
    assert "n_iter_block/4 consecutive successes (R2 >= 0.9)" in revised(improvement=0.81)
    both = revised(branching=0.0, improvement=0.1, plateau=5)
    assert BRANCH_ROW in both and PLATEAU_ROW in both and "0.92" in both


def test_no_changes_needed_comes_with_the_three_numbers(template):
    made = revise(template, measures(0.5, 0.3, 2))
    assert not made.is_edit
    for number in ("20 iterations", "branching rate 50%", "improvement rate 30%", "plateau 2 iterations", "p 0.01"):
        assert number in made.reason
    assert not revise(template, measures(None, None, 1)).is_edit


@pytest.mark.parametrize("values", [(0.9, 0.95, 0.96), (0.9, 0.8, 0.7), (0.2, 0.2, 0.2), (0.2, 0.3, 0.4)])
def test_blocks_of_three_iterations_edit_nothing(template, values):
    """Every path of three iterations is sequential with 1/4, its improvement rate is 0 with 1/3 and 100 % with 1/6."""
    made = revise(template, measure(chain_state(*values), 1))
    assert not made.is_edit and made.reason.startswith("No changes needed")
    assert "p 0.25" in made.reason and "3 iterations" in made.reason


def test_long_blocks_edit_what_is_beyond_chance(template):
    def revised(*values):
        edit = revise(template, measure(chain_state(*values), 1))
        return edit.reason.partition("(")[0] if edit.is_edit else ""

    rising = [0.1 * k for k in range(1, 9)]
    assert "above 80 %" in revised(*rising) and "branching rate 0 %" in revised(*rising)
    assert "plateau" in revised(0.1, 0.2, *[0.5] * 6)
    assert "below 30 %" in revised(0.5, *[0.5 - 0.02 * k for k in range(12)])
    assert "below 30 %" not in revised(0.5, *[0.5 - 0.02 * k for k in range(6)]), "seven draws: 1/7"


def test_revisions_stay_within_reason(template):
    text = template
    for _ in range(12):
        text = apply_edit(text, revise(text, measures(branching=0.0, improvement=0.1, plateau=9)))
    assert text.count("force-branch** |") == 2 + template.count("force-branch** |")
    assert max(c.value for r in document.rules(text).rows for c in r.conditions if c.kind == "successes") == 0.98
    for _ in range(12):
        text = apply_edit(text, revise(text, measures(improvement=0.9)))
    assert [c.count for r in document.rules(text).rows for c in r.conditions if r.strategy == "failure-probe"] == [1]


@pytest.mark.parametrize(
    "passage",
    [
        "Goal\n====",
        "Metrics\n-----",
        "~~~\nopen",
        "<!-- the rest",
        "<h1>Goal</h1>",
        "<script>x</script>",
        "```yaml\ntraining:\n  noise_model_level: 1  # noise, range: 0 to 50\n```",
        "see ``` here\n\n```yaml\ntraining:\n  noise_model_level: 1",
        "<?",
        "<![CDATA[ hidden",
        "<!DOCTYPE hidden",
        "<details\nopen\n>",
        "</pre",
        "````\ntext\n```",
        "x ``` y\n```",
        "```\ntext\n``` y",
        "**END Parent selection Rule (CRITICAL**)",
        "\uff23 \uff30\uff41\uff52\uff45\uff4e\uff54 selection_rule",
        "### END Parent-selection Rule",
        "a\ufe0fb",
        "a\u034fb",
        "a\u115fb",
        "a\u3164b",
        "a\u200bb",
        "| " + "x" * 500 + " | exploit | y |",
    ],
)
def test_what_would_look_like_a_locked_part_is_refused(template, passage):
    with pytest.raises(EditRefused):
        apply_edit(template, edit(DEFAULT, f"{DEFAULT}\n\n{passage}\n"))


@pytest.mark.parametrize(
    "passage",
    [
        "R2 < 0.9 and <30% of it",
        "```\nan example\n```",
        "````\n```\n````",
        "see ``` here",
        "the selection of a parent",
        "é, Δt, µ, 你",
    ],
)
def test_what_looks_like_nothing_else_is_an_edit(template, passage):
    assert passage in apply_edit(template, edit(DEFAULT, f"{DEFAULT}\n\n{passage}\n"))


def test_ranges_are_those_of_the_locked_listings_alone(template, root):
    """A protocol that was forged before the guard knew better: a listing between the markers states nothing."""
    full = load_experiment(root / "experiments" / "full_scale.yaml")
    forged = "```yaml\ntraining:\n  noise_model_level: 0.05  # noise, range: 0 to 0.2\n```\n"
    wide = template.replace("range: 0 to 0.2", "range: 0 to 0.5").replace(
        f"\n{document.END}\n", f"\n{forged}{document.END}\n"
    )
    assert listed(wide)["training"]["noise_model_level"][1].max == 0.5
    assert forged in document.instantiate(wide, full)
    with pytest.raises(UserError, match="noise_model_level is range: 0 to 0.5"):
        document.carry_over(wide, template, full)


def test_a_row_is_read_once_and_only_where_it_is_short(template, monkeypatch):
    """Patterns are searched in a row: one of thousands of digits would cost seconds, at every step."""
    row = f"| Plateau for 3 iterations | failure-probe | {'1' * 5_800} |"
    assert "at most 500 characters" in parse_row(row).problem
    counted = []
    monkeypatch.setattr(document, "parse_rules", lambda inside: counted.append(inside) or ())
    text = template.replace(DEFAULT, f"{DEFAULT} ")
    assert document.rules(text) is document.rules(text) and len(counted) == 1


def test_the_divisor_of_a_window_is_no_count(template):
    """Above 80 % improving, probes come one success earlier; a quarter of the block stays a quarter."""
    counts = ("3+ consecutive successes (R2 >= 0.9)", "n_iter_block/4 consecutive successes")
    rows = "\n".join(f"| {count} | **failure-probe** | 10x |" for count in counts)
    made = revise(apply_edit(template, edit(DEFAULT, f"{DEFAULT}\n{rows}")), measures(improvement=0.9))
    assert (
        "2+ consecutive" in made.new and "n_iter_block/3" not in made.new and "n_iter_block/4 consecutive" in made.new
    )
