"""The baseline: every candidate drawn uniformly in the ranges, no learning at all."""

from __future__ import annotations

from dataclasses import replace

from flyjax.search.interface import ROOT, Context, Proposal, Step
from flyjax.search.proposers.rules import RulesProposer, generator
from flyjax.search.ranges import sample
from flyjax.search.space import highest_ucb, root_config


class RandomProposer:
    """Uniform on each range's scale. Choices and block ends as the rules have them; no protocol edits."""

    name = "random"

    def __init__(self, experiment, run_dir=None):
        self._rules = RulesProposer(experiment)

    def step(self, context: Context) -> Step:
        ranges, rng = context.experiment.search.ranges, generator(context, stream=1)
        parent = highest_ucb(context)
        start = root_config(context.experiment) if parent == ROOT else context.state.nodes[parent].config
        drawn = [{k: sample(span, rng) for k, span in ranges.items()} for _ in range(context.n_proposals)]
        proposals = tuple(Proposal(parent, {k: v for k, v in d.items() if v != start[k]}, "explore") for d in drawn)
        step = replace(self._rules.step(replace(context, n_proposals=0)), proposals=proposals)
        if step.protocol_edit is not None:
            unchanged = replace(step.protocol_edit, old="", new="", reason="No changes needed: random search follows no rules")
            step = replace(step, protocol_edit=unchanged)
        return step
