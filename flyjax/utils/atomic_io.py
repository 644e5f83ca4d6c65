"""Files that are replaced as a whole, so that a reader sees the old content or the new one, never a part; and files of
JSON lines, which are added to and outlive a kill in the middle of a line."""

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

from flyjax.utils.secrets import redact

#: Name of a file that is being written, by the process and the name it will have.
PARTIAL = ".flyjax-{}-{}.partial"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: str | Path, content: str | bytes, *, sync: bool = False) -> None:
    """Replace a file; text is written as UTF-8, without keys. Unchanged content is not written again.

    A link is replaced, what it points to is left alone.

    **Arguments:** `sync` waits until the content is on disk.
    """
    path = Path(path)
    data = redact(content).encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.is_file() and not path.is_symlink() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL.format(os.getpid(), path.name))
    try:
        with open(partial, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON; arrays become lists.

    **Raises:** `ValueError` for a number that is not finite.
    """
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False, default=lambda x: x.tolist()) + "\n")


def open_lines(path: Path) -> IO[bytes]:
    """A file to add lines to: what a killed process left half-written is cut off first.

    A last line that is whole but for its end is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab+")
    try:
        size = file.seek(0, os.SEEK_END)
        at, tail = size, b""
        while at and b"\n" not in tail:  # from the end, not the whole file
            begin = max(0, at - 65_536)
            file.seek(begin)
            tail, at = file.read(at - begin) + tail, begin
        tail = tail.rpartition(b"\n")[2]
        if tail:
            try:
                json.loads(tail)
            except ValueError:
                file.truncate(size - len(tail))
            else:
                file.write(b"\n")
        file.seek(0, os.SEEK_END)
    except BaseException:
        file.close()
        raise
    return file


def write_line(file: IO[bytes], entry: dict, sync: bool = False) -> None:
    """One line, handed to the system before this returns; with `sync` on disk.

    **Raises:** `ValueError` for a number that is not finite.
    """
    file.write(redact(json.dumps(entry, allow_nan=False, default=str)).encode() + b"\n")
    file.flush()
    if sync:
        os.fsync(file.fileno())
