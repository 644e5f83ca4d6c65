"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """Bad input, a missing file or key: one line that says what is wrong and what to do.

    Scripts print the message without a traceback and exit with code 2.
    """


def nearest(name: str, known) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
