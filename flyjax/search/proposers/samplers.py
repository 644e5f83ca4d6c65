"""Optimisers and designs on the same footing as the rest: the same choices, block ends and budgets.

    random   uniform in the ranges, no learning: the baseline
    tpe      tree-structured Parzen estimator (Optuna)
    cmaes    covariance matrix adaptation (the package behind Optuna's sampler)
    map      where the class of a training is most uncertain by the run's own map; Sobol' points while it has no skill
    hybrid   CMA-ES (TPE where that cannot run) proposes, a language model may override a share of the slots

Each is rebuilt from the block's results at every step and draws from (run seed, iteration), so a resumed
run continues with the same draws.
"""

import importlib
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import qmc

from flyjax.config import Experiment, Range
from flyjax.config.ranges import at, sample, unit
from flyjax.search.iteration import root_config
from flyjax.search.policy.measures import comparable_rewards
from flyjax.search.policy.run_map import most_uncertain, skilled_map
from flyjax.search.proposals.types import ROOT, Context, Proposal, ProtocolEdit, Step
from flyjax.search.proposals.validation import child_config, highest_ucb, known_configs, next_simulation
from flyjax.search.proposers.rules import PATIENCE, RulesProposer, generator
from flyjax.utils.errors import UserError


def _import(name: str, package: str):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"proposer {name} needs the package {package}: pip install 'flyjax[compare]', or use --proposer rules"
        ) from None


class SamplerProposer:
    """Everything but the draws: new configurations against the highest UCB node, no rules followed."""

    name = "sampler"
    reads_instructions = corrects_answers = False

    def __init__(self, experiment: Experiment, run_dir=None):
        self._rules = RulesProposer(experiment)

    def draws(self, context: Context) -> Iterator[dict[str, Any]]:
        """Values for every range, without end."""
        raise NotImplementedError

    def step(self, context: Context) -> Step:
        step = self._rules.step(replace(context, n_proposals=0))
        if step.protocol_edit is not None:
            reason = f"No changes needed: {self.name} follows no rules"
            step = replace(step, protocol_edit=ProtocolEdit("", "", reason))
        proposals = self.propose(context, context.n_proposals, [], next_simulation(context, step))
        return replace(step, proposals=tuple(proposals))

    def propose(
        self, context: Context, n: int, taken: list[dict[str, Any]], simulation: dict[str, Any]
    ) -> list[Proposal]:
        """`n` proposals whose configurations are new; fewer where `PATIENCE` draws do not find them."""
        state, parent = context.state, highest_ucb(context)
        start = root_config(context.experiment) if parent == ROOT else state.nodes[parent].config
        taken, out = [*taken, start, *known_configs(context, simulation).values()], []
        for draw in itertools.islice(self.draws(context), PATIENCE if n else 0):
            changes, config = child_config(context.experiment, start, draw)
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
    """Optuna's TPE on all nodes of the block; a slot takes the earlier ones of its iteration into account."""

    name = "tpe"

    def __init__(self, experiment, run_dir=None):
        super().__init__(experiment)
        self._optuna = _import("tpe", "optuna")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)

    def draws(self, context):
        optuna, ranges = self._optuna, context.experiment.search.ranges
        spans = {k: self._distribution(span) for k, span in ranges.items()}
        with warnings.catch_warnings():
            # Recommended options that Optuna marks as experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=int(generator(context, stream=2).integers(2**31)),
                n_startup_trials=8,
                multivariate=True,
                constant_liar=True,
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        nodes = context.state.block_nodes(context.block) if not context.next_opens_block else []
        rewards = comparable_rewards(nodes)
        for node in nodes:
            values = {k: int(node.config[k]) if s.scale == "int" else node.config[k] for k, s in ranges.items()}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=spans, value=rewards[node.id]))
        while True:
            yield study.ask(spans).params

    def _distribution(self, span: Range):
        d = self._optuna.distributions
        if span.scale == "choice":
            return d.CategoricalDistribution(span.values)
        if span.scale == "int":
            return d.IntDistribution(math.ceil(span.min or 0), math.floor(span.max or 0))
        return d.FloatDistribution(span.min, span.max, log=span.scale == "log")


def fits_cmaes(experiment: Experiment) -> bool:
    """Whether CMA-ES can adapt: one dimension, or one parent per generation, leaves it no covariance."""
    return len(experiment.search.ranges) > 1 and experiment.search.n_candidates > 3


class CMAESProposer(SamplerProposer):
    """CMA-ES in unit places, from the root, one generation per iteration of the block."""

    name = "cmaes"

    def __init__(self, experiment, run_dir=None):
        super().__init__(experiment)
        self._cmaes = _import("cmaes", "cmaes")
        if not fits_cmaes(experiment):
            raise UserError(
                "proposer cmaes needs two or more parameters and n_candidates of 4 or more; use --proposer tpe"
            )

    def draws(self, context):
        ranges, state = context.experiment.search.ranges, context.state

        def places(config):
            return np.array([unit(span, config[k]) for k, span in ranges.items()])

        population = context.experiment.search.n_candidates
        optimiser = self._cmaes.CMA(
            mean=places(root_config(context.experiment)),
            sigma=0.25,
            bounds=np.tile([-0.01, 1.01], (len(ranges), 1)),  # room for the places that round to a range's ends
            seed=int(generator(context, stream=3).integers(2**31)),
            population_size=population,
        )
        rewards = comparable_rewards(state.block_nodes(context.block))
        for number in state.blocks[context.block].iterations if not context.next_opens_block else ():
            results = [(places(state.nodes[i].config), -rewards[i]) for i in state.iterations[number].nodes]
            if len(results) == population:
                optimiser.tell(results)
        while True:
            yield {k: at(span, float(x)) for (k, span), x in zip(ranges.items(), optimiser.ask())}


class MapProposer(SamplerProposer):
    """Configurations of which a training would tell most, by the map of the block's simulation.

    While the map has no skill, the next points of a Sobol' sequence of the block.
    """

    name = "map"

    def draws(self, context):
        search, block = context.experiment.search, context.block + context.next_opens_block
        found = None if context.next_opens_block else skilled_map(context.state, context.block)
        if found is not None:
            yield from most_uncertain(found, int(generator(context, stream=4).integers(2**31)))
        sequence = qmc.Sobol(len(search.ranges), rng=np.random.default_rng([search.seed, block]))
        if n_trained := len(context.state.block_nodes(block)):  # scipy cannot go on by 0
            sequence.fast_forward(n_trained)
        while True:
            yield {k: at(span, float(x)) for (k, span), x in zip(search.ranges.items(), sequence.random(1)[0])}


def with_drafts(context: Context, optimiser: SamplerProposer | None = None) -> Context:
    """The context with an optimiser's drafts for every slot, of which `search.llm.share` may be overridden."""
    n, optimiser = context.n_proposals, optimiser or _optimiser(context.experiment)
    # At a block's end the next simulation is not chosen yet; few nodes are trained in it.
    drafts = optimiser.propose(context, n, [], next_simulation(context, Step(())))
    overrides = min(n, max(1, round(context.experiment.search.llm.share * n)))
    return replace(context, drafts=tuple(replace(p, by=optimiser.name) for p in drafts), overrides=overrides)


def _optimiser(experiment: Experiment) -> SamplerProposer:
    return (CMAESProposer if fits_cmaes(experiment) else TPEProposer)(experiment)


class HybridProposer:
    """CMA-ES (TPE where that cannot run) drafts every slot; the language model sees the drafts and may override the
    share `search.llm.share` of them. It chooses, writes the log and edits the rules as `llm` does."""

    name = "hybrid"

    def __init__(self, experiment, run_dir=None):
        from flyjax.search.llm.proposer import LLMProposer

        self._llm = LLMProposer(experiment, run_dir)
        self._optimiser = _optimiser(experiment)

    def with_drafts(self, context: Context) -> Context:
        """The context with the optimiser's drafts, the same for every attempt at a step."""
        return with_drafts(context, self._optimiser)

    def step(self, context: Context) -> Step:
        return self._llm.step(context if context.drafts is not None else self.with_drafts(context))
