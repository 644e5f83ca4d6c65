"""Memory notes: what a search has found out so far, in three sections, at most 500 lines.

    ## Established principles    each seen in 3 or more nodes
    ## Open questions
    ## Falsified hypotheses

Lines before the first heading stay as they are.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from flyjax.config.ranges import unit
from flyjax.search.policy.moves import Move

MAX_NOTES = 500  # lines
PRINCIPLES, QUESTIONS, FALSIFIED = SECTIONS = ("Established principles", "Open questions", "Falsified hypotheses")
ENOUGH = 3  # nodes that establish a principle

# A bracket after a number, without a node of its own, in the middle of a list.
_ASIDE = re.compile(r"(?<=\d)\s*[(\[](?:(?!node)[^()\[\]])*[)\]](?=\s*(?:[,;&/–-]|and\b|to\b|through\b))")

#: "node" or "nodes" with the numbers, separators and words that go on with it.
_LIST = re.compile(r"(?<![^\W\d])nodes?(?![^\W\d])((?:[\s,;&/#–-]|(?:and|to|through)\b|\d+(?!\.?\d))*+)")
_SPAN = re.compile(r"(\d+)(?=\s*(?:to\b|through\b|[-–])\s*(\d+)|)")
_COUNT = re.compile(r"(?<![\d.])(\d+)\s*nodes(?![^\W\d])")

Notes = dict[str, list[str]]  # section ("" before the first heading) -> lines


def parse(text: str) -> Notes:
    """The lines of each section; other headings are ordinary lines."""
    out: Notes = {"": [], **{s: [] for s in SECTIONS}}
    here = ""
    for line in text.splitlines():
        heading = re.match(r"#+\s*(.*)", line)
        section = heading and next((s for s in SECTIONS if heading[1].lower().startswith(s.lower())), None)
        if section:
            here = section
        elif line.strip():
            out[here].append(line)
    return out


def write(notes: Notes) -> str:
    """The notes as text; where they are too long the oldest lines of the longest sections go."""
    notes = {section: list(lines) for section, lines in notes.items()}
    while sum(map(len, notes.values())) > MAX_NOTES - len(SECTIONS):
        max(notes.values(), key=len).pop(0)
    parts = [*notes[""]]
    for section in SECTIONS:
        parts += [f"## {section}", *notes[section]]
    return "\n".join(parts)


def count_cited_nodes(line: str, known: Sequence[int]) -> int:
    """How many of the `known` nodes (sorted) a line cites.

    By number, "nodes 3, 5 and 9", "node 2 ... node 7", "nodes 4-9", or by count, "12 nodes". Brackets in a list,
    "nodes 2 (0.91), 3 (0.92)", are skipped.
    """
    text, cited = _ASIDE.sub("", line.lower()), set()
    for numbers in _LIST.findall(text):
        for low, high in set(_SPAN.findall(numbers)):
            first, last = int(low[:9]), int(high[:9] or low[:9])
            cited |= {*known[bisect_left(known, first) : bisect_right(known, max(first, last))]}
    counts = [int(count[:9]) for count in _COUNT.findall(text)]
    return max([len(cited), *(count for count in counts if count <= len(known))])


def _entries(lines: list[str]) -> list[list[str]]:
    """The lines of a section, each entry with the indented lines that go on with it."""
    out: list[list[str]] = []
    for line in lines:
        if out and line[:1].isspace() and not re.match(r"\s*([-*+]|\d+[.)])\s", line):
            out[-1].append(line)
        else:
            out.append([line])
    return out


def demote(text: str, known: Sequence[int]) -> tuple[str, tuple[str, ...]]:
    """Move every principle that cites fewer than three of the `known` nodes to the open questions.

    **Returns:** the notes, and the entries that were moved.
    """
    notes = parse(text)
    entries = [(entry, count_cited_nodes(" ".join(entry), known) >= ENOUGH) for entry in _entries(notes[PRINCIPLES])]
    early = [entry for entry, enough in entries if not enough]
    if not early:
        return text, ()
    notes[PRINCIPLES] = [line for entry, enough in entries if enough for line in entry]
    notes[QUESTIONS] = [*(line for entry in early for line in entry), *notes[QUESTIONS]]
    return write(notes), tuple(" ".join(" ".join(entry).split()) for entry in early)


def merge(text: str, found: Notes) -> str:
    """Notes with what was found added, each line once."""
    notes = parse(text)
    for section, lines in found.items():
        notes[section] += [line for line in lines if line not in notes[section]]
    return write(notes)


def findings(block: int, tried: list[Move], ranges) -> Notes:
    """What the moves of a block show about each parameter."""
    seen: dict[tuple[str, str], list[Move]] = {}
    for move in tried:
        for name, value in move.changes.items():
            if name in ranges:
                way = "raising" if unit(ranges[name], value) > unit(ranges[name], move.origin[name]) else "lowering"
                seen.setdefault((way, name), []).append(move)
    out: Notes = {section: [] for section in SECTIONS}
    for (way, name), found in seen.items():
        gains, clear = [move.gain for move in found], max(0.01, *(move.clear for move in found))
        mean, n = sum(gains) / len(gains), len(gains)
        evidence = f"{mean:+.2f} on average, {n} node{'' if n == 1 else 's'}"
        signs = {gain > 0 for gain in gains}
        if n >= ENOUGH and len(signs) == 1 and abs(mean) > clear:
            out[PRINCIPLES].append(f"- block {block}: {way} {name} {'helps' if mean > 0 else 'hurts'} ({evidence})")
        elif max(gains) < -clear:
            out[FALSIFIED].append(f"- block {block}: {way} {name} would help ({evidence})")
        else:
            out[QUESTIONS].append(f"- block {block}: does {way} {name} help? ({evidence})")
    return out
