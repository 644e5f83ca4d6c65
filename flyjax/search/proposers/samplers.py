"""Classical optimisers on the same footing as the rest: the same choices, block ends and budgets.

    random   uniform in the ranges, no learning: the baseline
    tpe      tree-structured Parzen estimator (Optuna)
    cmaes    covariance matrix adaptation (the package behind Optuna's sampler)
    hybrid   CMA-ES (TPE where that cannot run) proposes, a language model may override a share of the slots

Each is rebuilt from the block's results at every step and draws from (run seed, iteration), so a killed
run goes on with the same draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from flyjax.config import Experiment, Range
from flyjax.search.llm.drafts import allowed
from flyjax.search.policy.measures import comparable_rewards
from flyjax.search.proposals.types import ROOT, Context, Proposal, Step
from flyjax.search.proposals.validation import child_config, highest_ucb, next_simulation, root_config
from flyjax.search.proposers.rules import PATIENCE, RulesProposer, generator
from flyjax.search.ranges import at, sample, unit
from flyjax.utils.errors import UserError


def _missing(name: str, package: str) -> UserError:
    return UserError(f"proposer {name} needs the package {package}: pip install {package}, or use --proposer rules")


class SamplerProposer:
    """Everything but the draws: new configurations against the highest UCB node, no rules followed."""

    reads_instructions = False  # reads no instructions of people

    name = "sampler"

    def __init__(self, experiment: Experiment, run_dir=None):
        self._rules = RulesProposer(experiment)

    def draws(self, context: Context) -> Iterator[dict[str, Any]]:
        """Values for every range, without end."""
        raise NotImplementedError

    def step(self, context: Context) -> Step:
        step = self._rules.step(replace(context, n_proposals=0))
        if step.protocol_edit is not None:
            unchanged = replace(
                step.protocol_edit, old="", new="", reason=f"No changes needed: {self.name} follows no rules"
            )
            step = replace(step, protocol_edit=unchanged)
        return replace(
            step, proposals=tuple(self.propose(context, context.n_proposals, [], next_simulation(context, step)))
        )

    def propose(
        self, context: Context, n: int, taken: list[dict[str, Any]], simulation: dict[str, Any]
    ) -> list[Proposal]:
        """`n` proposals with configurations that are new; fewer where the draws do not find them."""
        state, parent = context.state, highest_ucb(context)
        start = root_config(context.experiment) if parent == ROOT else state.nodes[parent].config
        taken = [
            *taken,
            start,
            *(m.config for m in state.nodes.values() if state.blocks[m.block].simulation == simulation),
        ]
        out, draws = [], self.draws(context) if n else iter(())
        for _ in range(PATIENCE if n else 0):
            changes, config = child_config(context.experiment, start, next(draws))
            if config not in taken:
                taken.append(config)
                out.append(Proposal(parent, changes, "explore"))
                if len(out) == n:
                    break
        return out


class RandomProposer(SamplerProposer):
    """Uniform on each range's scale."""

    name = "random"

    def draws(self, context):
        rng = generator(context, stream=1)
        while True:
            yield {k: sample(span, rng) for k, span in context.experiment.search.ranges.items()}


class TPEProposer(SamplerProposer):
    """Optuna's TPE, told all of the block's nodes; the slots of one iteration know of each other."""

    name = "tpe"

    def __init__(self, experiment, run_dir=None):
        super().__init__(experiment)
        try:
            import optuna
        except ImportError:
            raise _missing("tpe", "optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna

    def draws(self, context):
        optuna, ranges = self._optuna, context.experiment.search.ranges
        spans = {k: self._distribution(span) for k, span in ranges.items()}
        with warnings.catch_warnings():
            # Optuna calls the options it has recommended for years experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=int(generator(context, stream=2).integers(2**31)),
                n_startup_trials=8,
                multivariate=True,
                constant_liar=True,
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        nodes = context.state.block_nodes(context.block) if not context.next_opens_block else []
        worth = comparable_rewards(nodes)
        for node in nodes:
            values = {k: _native(span, node.config[k]) for k, span in ranges.items()}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=spans, value=worth[node.id]))
        while True:
            yield study.ask(spans).params

    def _distribution(self, span: Range):
        d = self._optuna.distributions
        if span.scale == "choice":
            return d.CategoricalDistribution(span.values)
        if span.scale == "int":
            return d.IntDistribution(int(np.ceil(span.min)), int(np.floor(span.max)))
        return d.FloatDistribution(span.min, span.max, log=span.scale == "log")


def _native(span: Range, value: Any) -> Any:
    return int(value) if span.scale == "int" else value


def fits_cmaes(experiment: Experiment) -> bool:
    """Whether CMA-ES can adapt: one dimension, or one parent per generation, leaves it no covariance."""
    return len(experiment.search.ranges) > 1 and experiment.search.n_candidates > 3


class CMAESProposer(SamplerProposer):
    """CMA-ES in unit places, from the root, one generation per iteration of the block."""

    name = "cmaes"

    def __init__(self, experiment, run_dir=None):
        super().__init__(experiment)
        try:
            import cmaes
        except ImportError:
            raise _missing("cmaes", "cmaes") from None
        if not fits_cmaes(experiment):
            raise UserError(
                "proposer cmaes needs two or more parameters and n_candidates of 4 or more; use --proposer tpe"
            )
        self._cmaes = cmaes

    def draws(self, context):
        ranges, state = context.experiment.search.ranges, context.state

        def places(config):
            return np.array([unit(span, config[k]) for k, span in ranges.items()])

        root = places(root_config(context.experiment))
        population = context.experiment.search.n_candidates
        # The bounds leave room for the places that round to a range's ends.
        bounds = np.tile([-0.01, 1.01], (len(ranges), 1))
        seed = int(generator(context, stream=3).integers(2**31))
        optimiser = self._cmaes.CMA(mean=root, sigma=0.25, bounds=bounds, seed=seed, population_size=population)
        worth = comparable_rewards(state.block_nodes(context.block)) if not context.next_opens_block else {}
        for number in state.blocks[context.block].iterations if not context.next_opens_block else ():
            told = [(places(state.nodes[i].config), -worth[i]) for i in state.iterations[number].nodes]
            if len(told) == population:
                optimiser.tell(told)
        while True:
            yield {k: at(span, float(x)) for (k, span), x in zip(ranges.items(), optimiser.ask())}


def _classical(experiment: Experiment) -> SamplerProposer:
    return (CMAESProposer if fits_cmaes(experiment) else TPEProposer)(experiment)


def with_drafts(context: Context, classical: SamplerProposer | None = None) -> Context:
    """The context with an optimiser's drafts for every slot, of which `search.llm.share` may be overridden."""
    n, classical = context.n_proposals, classical or _classical(context.experiment)
    # At a block's end the model has yet to choose the next simulation; what it chooses has hardly a node yet.
    drafts = classical.propose(context, n, [], next_simulation(context, Step(())))
    share = allowed(context.experiment.search.llm.share, n) if n else 0
    return replace(context, drafts=tuple(replace(p, by=classical.name) for p in drafts), overrides=share)


class HybridProposer:
    """CMA-ES (TPE where that cannot run) drafts every slot; the language model sees the drafts and may override the
    share `search.llm.share` of them. It chooses, writes the log and edits the rules as `llm` does."""

    name, is_paid = "hybrid", True

    def __init__(self, experiment, run_dir=None):
        from flyjax.search.llm.proposer import LLMProposer

        self._llm = LLMProposer(experiment, run_dir)
        self._classical = _classical(experiment)

    def drafted(self, context: Context) -> Context:
        """The context with the drafts: for every attempt at a step, and for what stands where an override does not."""
        return with_drafts(context, self._classical)

    def step(self, context: Context) -> Step:
        return self._llm.step(context if context.drafts is not None else self.drafted(context))
