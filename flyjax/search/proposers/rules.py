"""The proposer that follows the protocol without a language model, block-end duties included."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from flyjax.search import memory_notes
from flyjax.search.iteration import block_simulation, root_config
from flyjax.search.journal.state import Node, State
from flyjax.search.policy import moves
from flyjax.search.policy.measures import best_configuration, best_node, clear_gain, measure, noise_floor
from flyjax.search.policy.run_map import information, skilled_map
from flyjax.search.policy.strategy import Slot, assign_slots
from flyjax.search.policy.ucb import score
from flyjax.search.proposals.types import ROOT, Context, Proposal, Step
from flyjax.search.proposals.validation import available_visuals, known_configs, make_candidate, next_simulation
from flyjax.search.protocol.document import Rules, rules
from flyjax.search.protocol.revision import revise

N_COMPARED = 64  # drafts of a slot that the map compares
#: Slots that exploit from which on the last of them mutates to anywhere in the ranges: small steps alone end on the
#: first hill, and leave a map that knows nothing of the rest.
N_EXPLOIT = 3
PATIENCE = 400  # drafts per slot before the space is taken to be exhausted


def generator(context: Context, stream: int = 0) -> np.random.Generator:
    """The proposer's randomness: a function of (run seed, iteration) only."""
    newest = context.state.iteration
    return np.random.default_rng([context.experiment.search.seed, newest.number if newest else 0, stream])


class RulesProposer:
    """Parents by UCB, strategies by the table, changes by what has helped."""

    name = "rules"
    reads_instructions = corrects_answers = False

    def __init__(self, experiment, run_dir=None):
        self.experiment = experiment

    def step(self, context: Context) -> Step:
        state, newest = context.state, context.new_nodes
        chosen = state.chosen(state.iteration.number) if newest else None
        step = Step(
            proposals=(),
            chosen=chosen.id if chosen else None,
            reason=f"node {chosen.id} has the highest UCB among the new nodes (R2 {score(chosen):.3f})"
            if chosen
            else "the run begins at its root",
            activity={n: activity_line(state.nodes[n]) for n in newest},
            observation={n: observe(state, state.nodes[n]) for n in newest},
        )
        if context.is_block_end:
            step = self._end_block(context, step)
        return replace(
            step, proposals=tuple(self.propose(context, context.n_proposals, [], next_simulation(context, step)))
        )

    def propose(
        self, context: Context, n: int, taken: list[dict[str, Any]], simulation: dict[str, Any]
    ) -> list[Proposal]:
        """`n` lawful proposals, their configurations neither `taken` nor known; fewer in an exhausted space."""
        known, rng = rules(context.protocol), generator(context)
        taken = [*taken, *known_configs(context, simulation).values()]
        if context.next_opens_block:
            return self._companions(context, n, taken, known, rng)
        search = context.experiment.search
        slots = assign_slots(
            known, context.state, context.block, n, n_iter_block=search.n_iter_block, ucb_c=search.ucb_c, rng=rng
        )
        sources: dict[tuple, Iterator] = {}  # slots of one kind draw from one stream of drafts
        out = []
        exploiting = [k for k, slot in enumerate(slots) if slot.strategy == "exploit"]
        if len(exploiting) >= N_EXPLOIT:
            slots[exploiting[-1]] = replace(slots[exploiting[-1]], anywhere=True)
        for slot in slots:
            proposal = self._fill(context, slot, taken, known, rng, sources)
            if proposal is None and slot.strategy != "exploit":
                # Nothing left to probe: the slot exploits instead.
                proposal = self._fill(context, replace(slot, strategy="exploit"), taken, known, rng, sources)
            if proposal is not None:
                out.append(proposal)
        return out

    def _fill(self, context, slot: Slot, taken, known: Rules, rng, sources) -> Proposal | None:
        state, ranges = context.state, context.experiment.search.ranges
        parent = state.nodes[slot.parent]
        if slot.strategy == "robustness-test":
            return Proposal(parent.id, {}, slot.strategy, f"node {parent.id} (R2 {score(parent):.3f}) is reproducible")
        key = (slot.strategy, slot.parent, slot.anywhere)
        if key not in sources:
            drafts = self._drafts(context, slot, parent, known, ranges, rng)
            sources[key] = drafts if slot.strategy == "exploit" else _most_informative(context, parent, drafts)
        return _first_new(context, sources[key], parent.id, slot.strategy, taken)

    def _drafts(self, context, slot, parent: Node, known, ranges, rng) -> Iterator[dict[str, Any]]:
        state, block = context.state, context.block
        nodes = state.block_nodes(block)
        if slot.anywhere:
            return (moves.anywhere(ranges, parent.config, rng) for _ in itertools.count())
        if slot.strategy == "failure-probe":
            probed = {k for n in nodes if n.strategy == slot.strategy for k in n.changes}
            return moves.probes(ranges, parent, probed, slot.factor, rng)
        # With one candidate per iteration the root has no companions, which carry over what earlier blocks learned.
        if all(n.strategy in (ROOT, "robustness-test", "failure-probe") for n in nodes):
            earlier = [n for n in state.nodes.values() if n.block < block]
            if learned := self._learned(earlier, parent.config, rng):
                return learned
        if slot.strategy in ("explore", "force-branch"):
            return moves.steps(ranges, parent.config, [], rng, moves.WIDE_STEP)
        return moves.exploit(state, block, parent, ranges, known.hints, rng)

    def _learned(self, nodes, start: dict[str, Any], rng) -> Iterator[dict[str, Any]] | None:
        """Changes that lead from `start` to the best configuration of `nodes`, then to others near it."""
        best, ranges = best_configuration(nodes), self.experiment.search.ranges
        if best is None:
            return None
        near = ({**best.config, **step} for step in moves.steps(ranges, best.config, [], rng, moves.FINE_STEP))
        return ({k: c[k] for k in ranges if c[k] != start[k]} for c in itertools.chain([best.config], near))

    def _companions(self, context, n, taken, known: Rules, rng) -> list[Proposal]:
        """The root's companions: the best configuration of earlier blocks, first moves, then spread steps.

        Each takes one more first move than the one before it: together they go further than any alone.
        """
        root, ranges, out = root_config(context.experiment), context.experiment.search.ranges, []
        learned = self._learned(context.state.nodes.values(), root, rng)
        if learned is not None and n > 0:
            out.append(_first_new(context, learned, ROOT, "exploit", taken))
        drafts = itertools.chain(
            itertools.accumulate(moves.first_moves(known.hints, ranges, root), lambda before, move: before | move),
            moves.steps(ranges, root, [], rng, moves.WIDE_STEP),
        )
        while len(out) < n:
            out.append(_first_new(context, drafts, ROOT, "exploit", taken))
            if out[-1] is None:
                break
        return [p for p in out if p is not None]

    def _end_block(self, context: Context, step: Step) -> Step:
        state, block = context.state, context.block
        measures, best = measure(state, block), best_node(state, block)
        edit = revise(context.protocol, measures)
        tried = moves.moves(state, block)
        if best is None:
            summary = (
                f"no node of {len(state.block_nodes(block))} was trained to a finite result; {measures.describe()}"
            )
        else:
            helped = [m for m in tried if m.gain > max(0.01, m.clear)]
            hurt = [m for m in tried if m.gain < -max(0.05, m.clear)]
            parts = [f"{word}: {_moves_text(m)}" for word, m in (("helped", helped), ("hurt", hurt[::-1])) if m]
            summary = "; ".join([*(parts or ["no change clearly helped or hurt"]), measures.describe()])
        found = {
            "": [f"block {block}: {summary}"],
            **memory_notes.findings(block, tried, self.experiment.search.ranges),
        }
        return replace(
            step,
            block_summary=summary,
            protocol_edit=edit,
            next_simulation=self._next_simulation(context) if context.next_opens_block else {},
            notes=memory_notes.merge(state.notes, found),
        )

    def _next_simulation(self, context: Context) -> dict[str, Any]:
        """Changes that lead to the next entry of `search.simulations`, or to the next stimulus at hand."""
        experiment, current = context.experiment, context.state.blocks[context.block].simulation
        spans = experiment.search.simulation_ranges
        if experiment.search.simulations:
            wanted = block_simulation(experiment, context.block + 1)
        else:
            visuals = available_visuals(context) if "visual_input_type" in spans else ()
            here = current["visual_input_type"]
            after = visuals[(visuals.index(here) + 1) % len(visuals)] if here in visuals else (visuals or (here,))[0]
            wanted = {**current, "visual_input_type": after}
        return {k: wanted[k] for k in spans if wanted[k] != current[k]}


def _most_informative(context: Context, parent: Node, drafts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Drafts of a slot that looks for what is not known: first those of which a training would tell most, by the map
    of the run; as they come where the map has no skill."""
    found = skilled_map(context.state, context.block)
    if found is None:
        return drafts
    if not (some := list(itertools.islice(drafts, N_COMPARED))):
        return drafts
    worth = information(found, [{**parent.config, **changes} for changes in some])
    return itertools.chain((some[k] for k in np.argsort(-worth, kind="stable")), drafts)


def _first_new(
    context: Context, drafts: Iterator[dict[str, Any]], parent, strategy: str, taken: list
) -> Proposal | None:
    """The first draft whose configuration is new; its configuration joins `taken`."""
    for changes in itertools.islice(drafts, PATIENCE):
        if not changes:
            continue
        words = (f"{k}={v:g}" if isinstance(v, (int, float)) else f"{k}={v}" for k, v in changes.items())
        draft = Proposal(parent, changes, strategy, f"try {', '.join(words)}")
        config = make_candidate(context, draft).config
        if config not in taken:
            taken.append(config)
            return draft
    return None


def _moves_text(tried: list[moves.Move]) -> str:
    distinct: dict[str, float] = {}
    for move in tried:
        distinct.setdefault(" and ".join(f"{k}={v}" for k, v in move.changes.items()), move.gain)
    return ", ".join(f"{text} ({gain:+.2f})" for text, gain in list(distinct.items())[:3])


def activity_line(node: Node) -> str:
    """The log's `Activity:` line: what was measured on the node."""
    if node.status == "failed":
        return "none, the training failed"
    return node.activity or "not measured"


def observe(state: State, node: Node) -> str:
    """The log's `Observation:` line: the result against the parent's, noise named as such."""
    if node.status == "failed":
        return f"failed: {node.reason}"
    result = f"R2 {score(node):.3f}"
    if failed := node.spread.get("failed_seeds"):
        result += f" ({failed} of {node.spread['n']} seeds without a result count as {min(0.0, node.spread['min']):g})"
    start = moves.start(state, node)
    if start is None:
        floor = noise_floor(state, node.block)
        return f"{result}, the root" + (f"; repetitions spread by {floor:.3f}" if floor is not None else "")
    change = score(node) - score(start)
    noise = (
        " (noise: within twice the spread of repetitions)"
        if abs(change) < clear_gain(state, node.block, start, node)
        else ""
    )
    return f"{result}, {change:+.3f} against node {start.id}{noise}"
