"""user_input.md: what people write is heard wherever they write it, and none of it is lost."""

import pytest

from flyjax.search.journal import State
from flyjax.search.people import MAX_INPUT, acknowledge, pending_input, write_text

READ = State(acknowledged=((1, "Try more noise.\n\nPlease."), (2, "Thanks.")))


@pytest.fixture
def path(tmp_path):
    acknowledge(tmp_path, READ)
    return tmp_path / "user_input.md"


def test_the_file_as_we_write_it_holds_nothing_pending(tmp_path, path):
    assert pending_input(tmp_path, READ) == ""
    before = path.read_bytes()
    acknowledge(tmp_path, READ)
    assert path.read_bytes() == before


def test_what_is_appended_is_heard_and_stays_until_it_is_read(tmp_path, path):
    with open(path, "a") as file:
        file.write("try noise 0.1\n\nand batch 4\n")
    assert pending_input(tmp_path, READ) == "try noise 0.1\n\nand batch 4"
    acknowledge(tmp_path, READ)  # a resume in between
    assert pending_input(tmp_path, READ) == "try noise 0.1\n\nand batch 4"
    text = path.read_text()
    assert text.index("## Pending") < text.index("try noise 0.1") < text.index("## Acknowledged")
    heard = State(acknowledged=(*READ.acknowledged, (3, "try noise 0.1\n\nand batch 4")))
    acknowledge(tmp_path, heard, just_read="try noise 0.1\n\nand batch 4")
    assert pending_input(tmp_path, heard) == "" and path.read_text().count("try noise 0.1") == 1


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


def test_a_long_text_is_read_in_pieces(tmp_path, path):
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


def test_a_link_stays_a_link(tmp_path):
    run, real = tmp_path / "run", tmp_path / "notes.md"
    run.mkdir()
    real.write_text("Hello.")
    (run / "user_input.md").symlink_to(real)
    acknowledge(run, State())
    assert (run / "user_input.md").is_symlink() and "## Pending\n\nHello." in real.read_text()
    write_text(run / "user_input.md", "x")
    assert real.read_text() == "x" and [p.name for p in tmp_path.iterdir()] in (["run", "notes.md"], ["notes.md", "run"])
