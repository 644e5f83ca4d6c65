"""Compiled programs outlive a process, in one place, and nowhere else is written."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from flyjax.cli import app; app.prepare_devices()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8)))))
"""


def run(root, home, **more):
    env = (
        {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_", "XLA_"))}
        | {"HOME": str(home), "JAX_PLATFORMS": "cpu"}
        | more
    )
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert out.returncode == 0 and float(out.stdout) == 512, out.stderr
    return out.stderr


def programs(folder):
    return {p.relative_to(folder) for p in folder.rglob("*-cache")}


def test_a_program_is_compiled_once_in_the_users_cache_alone(root, tmp_path):
    run(root, tmp_path)
    made = programs(tmp_path)
    assert made and all(p.parts[:3] == (".cache", "flyjax", "compiled") for p in made)
    assert {p.name for p in tmp_path.iterdir()} == {".cache"} and {p.name for p in (tmp_path / ".cache").iterdir()} == {
        "flyjax"
    }
    assert "rror" not in run(root, tmp_path)
    assert programs(tmp_path) == made, "compiled again"


@pytest.mark.parametrize("how", ["elsewhere", "off", "unwritable"])
def test_the_users_word_counts(root, tmp_path, how):
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    if how == "unwritable":
        (home / ".cache").write_text("a file where the folder would be")
    more = {
        "elsewhere": {"JAX_COMPILATION_CACHE_DIR": str(other)},
        "off": {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        "unwritable": {},
    }[how]
    run(root, home, **more)
    assert {p.name for p in home.iterdir()} == ({".cache"} if how == "unwritable" else set())
    assert bool(programs(tmp_path)) == (how == "elsewhere")
