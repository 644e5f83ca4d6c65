"""Code, tests and documentation use the terms of the field: a list of old jargon must not come back."""

import re

import pytest

#: Words that were this project's own: reported, fix, luminance, fallback, evaluate, count ... say it plainly.
JARGON = {
    *("told", "mend", "mends", "mended", "mending", "mendable", "lit", "standins", "unbent", "shine", "worths"),
    *("witness", "witnesses", "hears", "deaf", "judges", "judged", "judging"),
    *("unseen", "believed", "keepable"),
}
#: Where old words have to stay: the names of fields in journals of earlier versions, and this list.
EXCEPTIONS = {"tests/test_language.py", "flyjax/utils/event_lines.py", "tests/search/test_journal.py"}


def words(text):
    """Lower-case words of a text, identifiers split at underscores and capitals."""
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).replace("stand_in", "standin").replace("stand-in", "standin")
    return re.findall(r"[a-z]+", text.replace("_", " ").lower())


def files(root):
    for folder in ("flyjax", "scripts", "tests"):
        yield from (root / folder).rglob("*.py")
    documents = "*.md docs/*.md experiments/*.yaml experiments/results/*.md experiments/*/README.md *.toml"
    for pattern in documents.split():
        yield from root.glob(pattern)
    yield from (root / "flyjax" / "report" / "templates").iterdir()
    yield from (root / "experiments" / "notebooks" / "source").glob("*.py")


@pytest.mark.parametrize("folder", ["flyjax", "scripts", "tests", ""])
def test_no_jargon(root, folder):
    found = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        top = name.split("/")[0] if name.split("/")[0] in ("flyjax", "scripts", "tests") else ""
        if top == folder and name not in EXCEPTIONS:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found += [f"{name}:{number} {word}" for word in JARGON & set(words(line))]
    assert found == []
