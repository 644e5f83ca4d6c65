"""Programs that are compiled in the background."""

import subprocess
import sys
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flyjax.utils import ahead


@pytest.fixture
def compiled():
    """How often programs were compiled, by name."""
    found = Counter()

    def count(name, seconds, **more):
        if name.endswith("backend_compile_duration"):
            found[more.get("fun_name")] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    yield found
    jax.monitoring.unregister_event_duration_listener(count)


def test_a_program_compiled_ahead_is_the_one_that_runs(compiled):
    @jax.jit
    def once(x):
        return 2.0 * x

    ahead.compile_ahead(once, lambda: once.lower(jax.ShapeDtypeStruct((3,), jnp.float32)))
    assert once is ahead.ready(once)
    np.testing.assert_array_equal(once(np.ones(3, np.float32)), [2, 2, 2])
    assert compiled["jit(once)"] == 1


def test_what_has_not_begun_is_left_to_the_caller_and_an_error_to_the_call():
    @jax.jit
    def waiting(x):
        return x + 1

    @jax.jit
    def wrong(x):
        raise ValueError("of the program")

    begun, go = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go.wait(60)
        return wrong.lower(1.0)

    ahead.compile_ahead(wrong, slow)
    ahead.compile_ahead(waiting, lambda: pytest.fail("it was not left"))
    assert begun.wait(60)
    ahead.ready(waiting)
    go.set()
    assert waiting(1) == 2
    with pytest.raises(ValueError, match="of the program"):
        ahead.ready(wrong)(1.0)


def test_a_process_that_ends_compiles_nothing_more():
    code = (
        "import threading, time\n"
        "from flyjax.utils.ahead import compile_ahead\n"
        "begun = threading.Event()\n"
        "compile_ahead('first', lambda: (begun.set(), time.sleep(0.5), print('first', flush=True)))\n"
        "compile_ahead('second', lambda: print('second', flush=True))\n"
        "assert begun.wait(60)\n"
        "raise KeyboardInterrupt\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == ["first"] and "KeyboardInterrupt" in found.stderr
