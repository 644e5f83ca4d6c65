"""Pages of docs/how_to carried out: blocks with a title are (parts of) files, the others are run in order."""

import importlib
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def follow(page: Path) -> list[str]:
    """Write and run every block of a page in the current folder; what the commands printed."""
    printed, written = [], set()
    for language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            with open(title, "a" if title in written else "w", encoding="utf-8") as file:
                file.write(f"\n\n{text}" if title in written else text)
            written.add(title)
        elif language == "python":
            exec(compile(text, page.name, "exec"), {"__name__": page.stem})
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                python, script, *arguments = shlex.split(line)
                assert python == "python" and script.startswith("scripts/")
                result = CliRunner().invoke(importlib.import_module(Path(script).stem).app, arguments)
                if result.exit_code:
                    raise AssertionError(f"{line}\n{result.output}") from result.exception
                printed.append(result.output)
    return printed
