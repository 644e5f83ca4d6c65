"""Errors that the user can fix: one line with the remedy, no traceback."""

import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flyjax.utils import environment
from flyjax.utils.secrets import redact


class UserError(ValueError):
    """Bad input, a missing file or key: one line with the problem and the remedy.

    Scripts print the message without a traceback and exit with code 2. It never shows a key.
    """

    def __init__(self, *args: object):
        super().__init__(*map(redact, args))


def nearest(name: object, known: Iterable[object]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    names = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name)[:200].lower(), names, n=1, cutoff=0.5)
    return f" Did you mean {names[close[0]]!r}?" if close else ""


@contextmanager
def reading(path: str | os.PathLike, remedy: str = "remove or replace it") -> Iterator[None]:
    """Turn whatever a decoder raises for a damaged file into a `UserError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = lines[-1][:160] if lines else type(error).__name__
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(f"cannot read {name} ({reason}): {remedy}") from None


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT), ("No space left on device", "Disk quota exceeded")
_OUT_OF_MEMORY = (errno.ENOMEM,), ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
#: Numbers of an OSError caused by the file or its folder, not by the code.
_FILE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE),  # limits, failing disks
)


def user_message(error: BaseException) -> str | None:
    """One line for an error that the user can fix, None for any other.

    Besides `UserError` these are a device that is not there, a full disk, exhausted memory and a file that cannot be
    used. Orbax raises plain ValueErrors and jaxlib RuntimeErrors for them, so that only the text
    of the message identifies them.
    """
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())
    if "Unable to initialize backend" in text or _is_from(error, "xla_bridge.py"):
        asked = environment.jax_platforms()
        where = f"for JAX_PLATFORMS={asked}" if asked else f"({text[:200]})"
        return f"JAX finds no device {where}: set JAX_PLATFORMS=cpu, or unset it to use what this machine has"
    file = getattr(error, "filename2", None) or getattr(error, "filename", None)
    code = re.search(r"os_error_code='(\d+)'", text)  # in messages of tensorstore, which orbax uses
    number = int(code[1]) if code else getattr(error, "errno", None)

    def is_a(kind: tuple[tuple[int, ...], tuple[str, ...]]) -> bool:
        return number in kind[0] or any(words in text for words in kind[1])

    if is_a(_DISK_FULL):
        where = f" ({file})" if file else ""
        return f"the disk is full{where}: nothing is lost; free some space and run the same command again"
    if isinstance(error, MemoryError) or is_a(_OUT_OF_MEMORY):
        detail = (text.partition("RESOURCE_EXHAUSTED: ")[2] or text)[:120] or type(error).__name__
        return (
            f"out of memory ({detail}): free some and run the same command again, or start another --run with fewer "
            "candidates or a smaller model.width; --dry-run shows what fits"
        )
    if number in _FILE and (file or code or number == errno.EROFS):  # without a file it may be a socket's
        what = f"{file} ({getattr(error, 'strerror', '')})" if file else f"a file ({text[:200]})"
        return f"cannot use {what}: correct it and run the same command again, or choose another place"
    return None


def _is_from(error: BaseException, file: str) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == file


@contextmanager
def as_user_errors() -> Iterator[Any]:
    """Turn errors that have a `user_message` into `UserError`; a context manager or a decorator."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from None
