"""Memory notes: what a search knows by now, in three sections, at most 500 lines.

    ## Established principles    each seen in 3 or more nodes
    ## Open questions
    ## Falsified hypotheses

Lines before the first heading stay as they are.
"""

from __future__ import annotations

import re

from flyjax.search.moves import Move
from flyjax.search.ranges import unit

MAX_NOTES = 500  # lines
PRINCIPLES, QUESTIONS, FALSIFIED = SECTIONS = ("Established principles", "Open questions", "Falsified hypotheses")
ENOUGH = 3  # nodes that make a principle

Notes = dict[str, list[str]]  # section ("" before the first heading) -> lines


def parse(text: str) -> Notes:
    """The lines of each section; headings that are not ours are lines like any other."""
    out, here = {"": [], **{s: [] for s in SECTIONS}}, ""
    for line in text.splitlines():
        heading = re.match(r"#+\s*(.*)", line)
        found = heading and next((s for s in SECTIONS if heading[1].lower().startswith(s.lower())), None)
        if found:
            here = found
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


_LIST = re.compile(r"\bnodes?\s+(\d+(?:(?:\s*(?:,|;|and|to|-|–|&)\s*)+\d+)*)", re.I)


def witnesses(line: str) -> int:
    """How many nodes a line names: "nodes 3, 5 and 9", "node 2 ... node 7", "nodes 4-9", or a count, "12 nodes"."""
    named: set[int] = set()
    for found in _LIST.findall(line):
        numbers = [(int(n), lead) for lead, n in re.findall(r"(to|-|–)?\s*(\d+)", found)]
        for (before, _), (number, lead) in zip([(0, "")] + numbers, numbers):
            named.update(range(before, number + 1) if lead and 0 <= number - before < 10_000 else [number])
    counted = max(map(int, re.findall(r"\b(\d{1,6}) nodes\b", line)), default=0)
    return max(len(named), counted)


def demote(text: str) -> tuple[str, tuple[str, ...]]:
    """(the notes with every principle that names fewer than three nodes among the open questions, those lines)."""
    notes = parse(text)
    early = [line for line in notes[PRINCIPLES] if line.lstrip().startswith(("-", "*")) and witnesses(line) < ENOUGH]
    if not early:
        return text, ()
    notes[PRINCIPLES] = [line for line in notes[PRINCIPLES] if line not in early]
    notes[QUESTIONS] = [*early, *notes[QUESTIONS]]
    return write(notes), tuple(line.strip() for line in early)


def merge(text: str, found: Notes) -> str:
    """Notes with what was found added, each line once."""
    notes = parse(text)
    for section, lines in found.items():
        notes[section] += [line for line in lines if line not in notes[section]]
    return write(notes)


def learned(block: int, tried: list[Move], ranges, clear: float) -> Notes:
    """What a block's moves say on each parameter: `clear` is the gain that is more than noise."""
    seen: dict[tuple[str, str], list[float]] = {}
    for move in tried:
        for name, value in move.changes.items():
            if name in ranges:
                way = "raising" if unit(ranges[name], value) > unit(ranges[name], move.origin[name]) else "lowering"
                seen.setdefault((way, name), []).append(move.gain)
    out: Notes = {section: [] for section in SECTIONS}
    for (way, name), gains in seen.items():
        mean, n = sum(gains) / len(gains), len(gains)
        told = f"{mean:+.2f} on average, {n} node{'' if n == 1 else 's'}"
        signs = {gain > 0 for gain in gains}
        if n >= ENOUGH and len(signs) == 1 and abs(mean) > clear:
            out[PRINCIPLES].append(f"- block {block}: {way} {name} {'helps' if mean > 0 else 'hurts'} ({told})")
        elif max(gains) < -clear:
            out[FALSIFIED].append(f"- block {block}: {way} {name} would help ({told})")
        else:
            out[QUESTIONS].append(f"- block {block}: does {way} {name} help? ({told})")
    return out
