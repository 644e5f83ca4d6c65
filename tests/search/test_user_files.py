"""user_input.md: what users write is read wherever they write it, and none of it is lost."""

import json

import pytest
from support.search_landscape import TEMPLATE, experiment
from support.search_runs import EagerRules

from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import State, fold
from flyjax.search.loop import run_loop
from flyjax.search.protocol.revision import BRANCH_ROW
from flyjax.search.run.user_files import MAX_INPUT, acknowledge, pending_input, revert_protocol
from flyjax.utils.run_directory import MARKER

READ = State(acknowledged=((1, "Try more noise.\n\nPlease."), (2, "Thanks.")))


@pytest.fixture
def path(tmp_path):
    acknowledge(tmp_path, READ)
    return tmp_path / "user_input.md"


def test_the_file_as_written_holds_nothing_pending(tmp_path, path):
    assert pending_input(tmp_path, READ) == ""
    before = path.read_bytes()
    acknowledge(tmp_path, READ)
    assert path.read_bytes() == before


def test_appended_text_is_pending_until_it_is_read(tmp_path, path):
    with open(path, "a") as file:
        file.write("try noise 0.1\n\nand batch 4\n")
    assert pending_input(tmp_path, READ) == "try noise 0.1\n\nand batch 4"
    acknowledge(tmp_path, READ)  # a resume in between
    assert pending_input(tmp_path, READ) == "try noise 0.1\n\nand batch 4"
    text = path.read_text()
    assert text.index("## Pending") < text.index("try noise 0.1") < text.index("## Acknowledged")
    read = State(acknowledged=(*READ.acknowledged, (3, "try noise 0.1\n\nand batch 4")))
    acknowledge(tmp_path, read, just_read="try noise 0.1\n\nand batch 4")
    assert pending_input(tmp_path, read) == "" and path.read_text().count("try noise 0.1") == 1


def test_every_place_counts_and_what_comes_meanwhile_stays(tmp_path, path):
    text = path.read_text()
    path.write_text("At the top.\n" + text.replace("## Pending\n", "## Pending\n\nIn its place.\n") + "At the end.\n")
    read = pending_input(tmp_path, READ)
    assert read == "In its place.\n\nAt the end.\n\nAt the top."
    with open(path, "a") as file:
        file.write("Later.\n")
    acknowledge(tmp_path, READ, just_read=read)
    assert pending_input(tmp_path, READ) == "Later."


def test_a_changed_line_was_not_read(tmp_path, path):
    path.write_text(path.read_text().replace("## Pending\n", "## Pending\n\ndo not try noise\n"))
    acknowledge(tmp_path, READ, just_read="try noise")
    assert pending_input(tmp_path, READ) == "do not try noise"


def test_a_kill_between_journal_and_file_with_appended_text(tmp_path, path):
    with open(path, "a") as file:
        file.write("try noise 0.1\n")
    journaled = State(acknowledged=(*READ.acknowledged, (3, "try noise 0.1")))
    acknowledge(tmp_path, journaled)
    assert pending_input(tmp_path, journaled) == "" and "- iteration 3: try noise 0.1" in path.read_text()


def test_a_long_text_is_read_in_parts(tmp_path, path):
    path.write_text("x" * MAX_INPUT + "rest")
    read = pending_input(tmp_path, READ)
    acknowledge(tmp_path, READ, just_read=read)
    assert pending_input(tmp_path, READ) == "rest"


def test_latin_1_and_windows_text_is_kept(tmp_path, path):
    with open(path, "ab") as file:
        file.write("größer à la 0,1\r\n".encode("latin-1"))
        file.write("größer\r\n".encode())
    assert pending_input(tmp_path, READ) == "größer à la 0,1\ngrößer"
    acknowledge(tmp_path, READ)
    assert "größer à la 0,1\ngrößer" in path.read_text("utf-8") and "\ufffd" not in path.read_text("utf-8")
    path.write_bytes(b"\xef\xbb\xbfHello.")
    assert pending_input(tmp_path, READ) == "Hello."


# --- protocol.md of an older run ---

DEFAULT = "| Default |"
#: A row that the guard of an earlier version accepted.
FORMER = f"| best R2 < 0.5 | **explore** | \u26a0\ufe0f W<tau, by the parent selection rules {'x' * 500} |"


@pytest.fixture
def older(tmp_path):
    """(go on, its run directory): a run stopped in its second block, whose rules were given FORMER before the first."""
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)

    def go(stop=0):
        def trainer(plan):
            if plan.block == stop:
                raise KeyboardInterrupt
            return {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes}

        run_loop(exp, tmp_path, trainer, EagerRules(exp), protocol_template=TEMPLATE)

    with pytest.raises(KeyboardInterrupt):
        go(stop=2)
    events = read_journal(tmp_path)
    for event in events:
        if "protocol" in event:
            event["protocol"] = event["protocol"].replace(DEFAULT, f"{FORMER}\n{DEFAULT}", 1)
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (tmp_path / "protocol.md").unlink()
    (tmp_path / MARKER).unlink()
    return go, tmp_path


def test_an_older_run_goes_on_and_its_rules_are_edited_and_restored(older):
    go, run_dir = older
    path = run_dir / "protocol.md"
    with pytest.raises(KeyboardInterrupt):
        go(stop=2)
    assert FORMER in path.read_text("utf-8")
    path.write_text(
        path.read_text("utf-8").replace(FORMER, f"{FORMER}\n| best R2 < 0.4 | **explore** | blue |"), "utf-8"
    )
    go()
    by = [e["by"] for e in fold(read_journal(run_dir)).edits]
    assert by == ["rules", "user", "rules"] and FORMER in path.read_text("utf-8")
    for _ in by:
        revert_protocol(run_dir)
    assert path.read_text("utf-8") == fold(read_journal(run_dir)).protocols[0] and FORMER in path.read_text("utf-8")
    assert BRANCH_ROW not in path.read_text("utf-8").split("## END")[0]


def test_what_an_edit_took_away_comes_back_with_the_version_before_it(older):
    go, run_dir = older
    (run_dir / "protocol.md").write_text(fold(read_journal(run_dir)).protocol.replace(FORMER + "\n", ""), "utf-8")
    go()
    assert FORMER not in (run_dir / "protocol.md").read_text("utf-8")
    revert_protocol(run_dir)
    revert_protocol(run_dir)
    assert FORMER in (run_dir / "protocol.md").read_text("utf-8")
