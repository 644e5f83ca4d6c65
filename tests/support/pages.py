"""Pages of docs/how_to carried out: blocks with a title are files, the others are run in their order."""

import importlib
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def follow(page: Path) -> list[str]:
    """Write and run every block of a page in the current folder; what the commands printed."""
    printed = []
    for language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            Path(title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page.name, "exec"), {"__name__": page.stem})
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                python, script, *arguments = shlex.split(line)
                assert python == "python" and script.startswith("scripts/")
                result = CliRunner().invoke(importlib.import_module(Path(script).stem).app, arguments)
                assert result.exit_code == 0, f"{line}\n{result.output}"
                printed.append(result.output)
    return printed
