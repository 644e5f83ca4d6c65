"""Files that are replaced as a whole: a reader sees the old content or the new one, never a part."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

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
