"""flyjax in environments other than its authors': another encoding, no home, another system, an older Python."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flyjax import train_candidates
from flyjax.config import Simulation
from flyjax.utils import environment
from flyjax.utils.errors import UserError


def trees(root):
    for folder in ("flyjax", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"))


def _reads_text_without_encoding(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if any(k.arg == "encoding" for k in call.keywords):
        return False
    if name == "open" and isinstance(call.func, ast.Name):
        mode = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else "r"
        return "b" not in mode
    return (name == "read_text" and not call.args) or (name == "write_text" and len(call.args) < 2)


def test_text_is_read_and_written_as_utf8(root):
    calls = ((path, n) for path, tree in trees(root) for n in ast.walk(tree) if isinstance(n, ast.Call))
    assert [f"{path}:{n.lineno}" for path, n in calls if _reads_text_without_encoding(n)] == []


def test_modules_that_windows_lacks_are_not_imported_at_the_top(root):
    lacking = {"resource", "fcntl", "pwd", "grp", "termios", "pty"}
    found = []
    for path, tree in trees(root):
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            found += [f"{path}: {name}" for name in names if name in lacking]
    assert found == []


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path))  # what it does without HOME and passwd entry
    monkeypatch.setenv("FLYJAX_DATA", "~/data")
    assert environment.cache_dir().is_absolute() and environment.data_root() == Path("~/data")


def test_an_older_python_is_one_line(root):
    """The check runs before anything is imported, in syntax that every Python 3 reads."""
    code = (
        "import sys; sys.version_info = (3, 10, 4, 'final', 0); sys.path.insert(0, 'scripts')\n"
        "sys.modules['typer'] = None\n"  # not installed either
        "import meta_loop"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "3.11" in done.stderr and "3.10" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, named",
    [
        (([{}], 3), "seeds"),
        (([{}], ["a"]), "seeds"),
        (([{}], "12"), "seeds"),
        (({"batch_size": 2},), "candidates"),
        ((3,), "candidates"),
        (([{"batchsize": 2}],), "'batch_size'"),
    ],
)
def test_wrong_arguments_of_train_candidates_are_one_line(arguments, named):
    with pytest.raises(UserError, match=named) as error:
        train_candidates(Simulation(extent=0, n_frames=100), *arguments)
    assert "\n" not in str(error.value)
