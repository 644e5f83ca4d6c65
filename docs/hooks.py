"""Build steps of the documentation site: pages made from the repository, and links to its files.

The pages are plain Markdown that reads well in the repository. There a link such as `../experiments/quickstart.yaml`
leads to the file; on the site it leads to the repository, and a picture is copied.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from posixpath import normpath

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()(\.\./[^)\s#]+)(#[^)\s]+)?\)")
PICTURES = {".png", ".svg", ".gif"}


def commands_page() -> str:
    """The `--help` of every script."""
    parts = ["# Commands", "", "What `--help` of each script prints.", ""]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}
    for script in sorted((ROOT / "scripts").glob("[!_]*.py")):
        shown = subprocess.run(
            [sys.executable, script, "--help"], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        parts += [f"## scripts/{script.name}", "", "```text", shown.stdout.strip(), "```", ""]
    return "\n".join(parts)


def on_files(files, config):
    """Add the pages that are made, and the pictures that pages show from outside of docs/."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "commands.md", content=commands_page()))
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text("utf-8")))
    for page in (ROOT / "docs").rglob("*.md"):
        for _, path, _ in LINK.findall(page.read_text("utf-8")):
            name = f"pictures/{Path(path).name}"
            if Path(path).suffix in PICTURES and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str((page.parent / path).resolve())))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links to files of the repository where the site has them."""

    def target(match):
        start, link, anchor = match.groups()
        path, up = normpath(f"docs/{page.file.src_uri}/../{link}"), "../" * page.file.src_uri.count("/")
        if path.startswith("docs/"):
            return match[0]
        if Path(path).suffix in PICTURES and start.startswith("!"):
            return f"{start}{up}pictures/{Path(path).name})"
        if path == "CHANGELOG.md":
            return f"{start}{up}changelog.md{anchor or ''})"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{start}{config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor or ''})"

    return LINK.sub(target, markdown)
