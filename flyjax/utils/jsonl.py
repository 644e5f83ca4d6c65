"""Files of JSON lines that are added to and outlive a kill in the middle of a line."""

import json
import os
from pathlib import Path
from typing import IO

from flyjax.utils.secrets import redact


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
