"""Pages of the documentation carried out: blocks with a title are (parts of) files, the others are run in order."""

import importlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
#: What a test cannot carry out: an installation, another program, a page that is served or opened.
SKIPPED = re.compile(r"^(?!python scripts/)|--serve|--open|--distributed|--coordinator")


def follow(page: Path, smaller: Mapping[str, str] | None = None) -> list[str]:
    """Write and run every block of a page in the current folder; what the commands printed.

    `smaller`: texts of the page, and what is run in their place, so that it takes seconds.
    """
    text = page.read_text(encoding="utf-8")
    for given, shorter in (smaller or {}).items():
        assert given in text, f"{page.name} no longer has {given!r}"
        text = text.replace(given, shorter)
    if not Path("experiments").exists():
        Path("experiments").symlink_to(ROOT / "experiments")
    printed, written, names = [], set(), {"__name__": page.stem}
    for language, title, block in BLOCK.findall(text):
        if title:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            with open(title, "a" if title in written else "w", encoding="utf-8") as file:
                file.write(f"\n\n{block}" if title in written else block)
            written.add(title)
        elif language == "python":
            exec(compile(block, page.name, "exec"), names)
        elif language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                if not SKIPPED.search(line):
                    printed.append(_run(line))
    return printed


def _run(line: str) -> str:
    _, script, *arguments = shlex.split(line, comments=True)
    result = CliRunner().invoke(importlib.import_module(Path(script).stem).app, arguments)
    if result.exit_code:
        raise AssertionError(f"{line}\n{result.output}") from result.exception
    return result.output
