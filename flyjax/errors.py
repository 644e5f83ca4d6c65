"""The one exception that means "the user can fix this", and what the machine runs out of, turned into it."""

import errno
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


def exhausted(error: BaseException) -> str | None:
    """One line for a full disk or memory, whichever library noticed it; None for any other error.

    Known by number or by words: orbax has plain ValueErrors, jaxlib RuntimeErrors of one class for everything.
    """
    text, number = " ".join(str(error).split()), getattr(error, "errno", None)
    no_room = "No space left on device", "Disk quota exceeded", "Failed to write"
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in no_room):
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        return f"the disk is full{where}: nothing is lost; make room and run the same command again"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in text for words in ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")):
        told = text.partition("RESOURCE_EXHAUSTED: ")[2] or text
        return (
            f"out of memory ({told[:120] or type(error).__name__}): free some and run the same command again, or begin another --run with "
            "fewer candidates or a smaller model.width; --dry-run shows what fits"
        )
    return None


@contextmanager
def in_one_line():
    """Around work, or as a decorator: a full disk or memory is a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = exhausted(error)
        if told is None:
            raise
        raise UserError(told) from None
