"""The one exception that means "the user can fix this", and what machine and files refuse, turned into it."""

import errno
import re
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input, a missing file or key: one line that says what is wrong and what to do.

    Scripts print the message without a traceback and exit with code 2.
    """


def nearest(name: str, known) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


#: Of an OSError that names a file: what is wrong with the file or its place, not with the code.
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def mendable(error: BaseException) -> str | None:
    """One line for what the user can mend, a full disk or memory or a file that refuses, whichever library noticed it; else None.

    Known by number or by words: orbax has plain ValueErrors, jaxlib RuntimeErrors of one class for everything.
    """
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())
    file = getattr(error, "filename2", None) or getattr(error, "filename", None)  # of a renaming: what it was to become
    code = re.search(r"os_error_code='(\d+)'", text)  # as tensorstore, below orbax, ends its messages
    number = int(code[1]) if code else getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or any(
        words in text for words in ("No space left on device", "Disk quota exceeded")
    ):
        return (
            f"the disk is full{f' ({file})' if file else ''}: nothing is lost; make room and run the same command again"
        )
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or any(words in text for words in ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"))
    ):
        told = text.partition("RESOURCE_EXHAUSTED: ")[2] or text
        return (
            f"out of memory ({told[:120] or type(error).__name__}): free some and run the same command again, or begin another --run with "
            "fewer candidates or a smaller model.width; --dry-run shows what fits"
        )
    if number in _OF_THE_FILE and (file or code or number == errno.EROFS):  # without a file it may be a socket's
        why = f"{file} ({error.strerror})" if file else f"a file ({text[:200]})"
        return f"cannot use {why}: mend it and run the same command again, or name another place"
    return None


@contextmanager
def in_one_line():
    """Around work, or as a decorator: what is `mendable` is a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = mendable(error)
        if told is None:
            raise
        raise UserError(told) from None
