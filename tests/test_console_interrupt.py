"""Ctrl-C during a training is never lost, and the handler that was there comes back."""

import signal

import pytest

from flyjax.console import stoppable


class Dying:
    """Interrupted where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("later", [True, False])
def test_an_interrupt_that_was_swallowed_is_raised_again(later):
    before, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt):
        with stoppable() as check:
            Dying()
            reached = True
            if later:
                check()
    assert reached and signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_happens():
    with stoppable() as check:
        check()
