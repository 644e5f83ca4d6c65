"""Memory notes: what a search knows by now, in three sections, at most 500 lines.

    ## Established principles    each seen in 3 or more nodes
    ## Open questions
    ## Falsified hypotheses

Lines before the first heading stay as they are.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from flyjax.search.policy.moves import Move
from flyjax.search.ranges import unit

MAX_NOTES = 500  # lines
PRINCIPLES, QUESTIONS, FALSIFIED = SECTIONS = ("Established principles", "Open questions", "Falsified hypotheses")
ENOUGH = 3  # nodes that make a principle

# A bracket after a number that names no node itself, where a list goes on.
_ASIDE = re.compile(r"(?<=\d)\s*[(\[](?:(?!node)[^()\[\]])*[)\]](?=\s*(?:[,;&/–-]|and\b|to\b|through\b))")

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


def witnesses(line: str, known: Sequence[int]) -> int:
    """How many of the `known` nodes (sorted) a line names: "nodes 3, 5 and 9", "node 2 ... node 7", "nodes 4-9", or a count, "12 nodes".

    What brackets say of a node in a list, "nodes 2 (0.91), 3 (0.92)", is passed over.
    """
    spans, listed, last, reach, number, counted = [], False, None, False, None, 0
    for token in re.findall(r"\d+(?:\.\d+)?|nodes?(?=\d)|\w+|[^\w\s]", _ASIDE.sub("", line.lower())):
        before, number = number, int(token[:9]) if token.isdecimal() else None
        if token in ("node", "nodes"):
            counted = max(counted, before or 0) if token == "nodes" and (before or 0) <= len(known) else counted
            listed, last, reach = True, None, False
        elif listed and number is not None:
            spans.append((last if reach and last is not None and last <= number else number, number))
            last, reach = number, False
        elif token in ("to", "through", "-", "–"):
            reach = True
        elif token not in (",", ";", "and", "&", "/", "#"):
            listed = False
    return max(_members(spans, known), counted)


def _members(spans: list[tuple[int, int]], known: Sequence[int]) -> int:
    """How many of the sorted numbers lie in any of the spans; a span costs no more for being wide."""
    found, end = 0, -1
    for low, high in sorted(spans):
        if high > end:
            found += bisect_right(known, high) - bisect_left(known, max(low, end + 1))
            end = high
    return found


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
    """(the notes with every principle that names fewer than three of the `known` nodes among the open questions, those entries)."""
    notes = parse(text)
    entries = [(entry, witnesses(" ".join(entry), known) >= ENOUGH) for entry in _entries(notes[PRINCIPLES])]
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
