"""Files that are replaced atomically, and files of JSON lines."""

import json
import os

import pytest

from flyjax.utils.atomic_io import open_lines, write_atomic, write_json, write_line


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    write_atomic(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_atomic(path, "new", sync=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.md"], "no partial file remains"


@pytest.mark.parametrize("content", ["new", "old"])
def test_a_link_is_replaced_and_not_written_through(tmp_path, content):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_atomic(link, content)
    assert not link.is_symlink() and link.read_text() == content and target.read_text() == "old"


def test_json_refuses_numbers_that_are_not_finite(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"R2": float("nan")})
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(b"", [1]), (b'{"n": 2', [1]), (b'{"n": 2}', [1, 2]), (b'{"n": 2}\n', [1, 2])],
)
def test_a_torn_last_line_is_dropped_and_a_complete_one_kept(tmp_path, tail, expected):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n' + tail)
    with open_lines(path) as file:
        write_line(file, {"n": 9})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [*expected, 9]
