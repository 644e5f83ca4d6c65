"""The map of a search: a surrogate of the objective over the settings, from the run's own nodes of one simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from flyjax.config import Range
from flyjax.search.journal.state import State, objective_metric

if TYPE_CHECKING:
    from flyjax.landscape import Landscape

N_PROCESS = 128  # trainings up to which a map is made of Gaussian processes, from there on of the faster trees
N_POINTS = 256  # of the space, among which the most uncertain are looked for
SPACING = 0.25  # of the cube's diagonal: picks of a batch that are closer tell the same


def run_map(state: State, block: int) -> Landscape | None:
    """The map of all trained nodes with the simulation of `block`; None where none lies in the ranges.

    Its `problem` says why it may not be used. A pure function of the journal. Its classes are those of the objective,
    so that a blind search sees no ground truth.
    """
    spans = state.experiment.get("search", {}).get("ranges") or {}
    simulation = state.blocks[block].simulation if block in state.blocks else None
    rows = [
        [{name: node.config.get(name) for name in spans}, values]
        for node in state.nodes.values()
        if node.status != "running" and state.blocks[node.block].simulation == simulation
        for values in [list(node.values) or [0.0]]  # a failed node
    ]
    return _fit(json.dumps([spans, rows]))


# The prompt, the rules and the confirmation of one iteration ask for the same map.
@lru_cache(maxsize=8)
def _fit(table: str) -> Landscape | None:
    from flyjax import landscape  # scikit-learn takes a second to import
    from flyjax.landscape.surrogate import KINDS

    data: tuple[dict[str, dict[str, Any]], list] = tuple(json.loads(table))
    ranges = {name: Range(**span) for name, span in data[0].items()}
    rows = [
        {"settings": settings, "seed": seed, "metrics": {"connectivity_R2": value}}
        for settings, values in data[1]
        if all(settings[name] is not None and span.contains(settings[name]) for name, span in ranges.items())
        for seed, value in enumerate(values)
    ]
    if not rows:
        return None
    kinds = KINDS[1:] if len(rows) <= N_PROCESS else KINDS[:1]
    return landscape.fit(landscape.Trainings.from_rows(rows), ranges, sizes=landscape.FAST, kinds=kinds)


def skilled_map(state: State, block: int) -> Landscape | None:
    """`run_map` where it predicts configurations that it was not fitted on; else None."""
    found = run_map(state, block)
    return None if found is None or found.problem else found


def map_score(state: State, block: int) -> dict[str, float] | None:
    """How well the nodes so far predict the class of configurations that the map was not fitted on; None for too few.

    `skill` is 1 - log loss / log loss of the base rates, by cross-validation, with its 90 % interval; `log_loss` and
    `brier` are per training.
    """
    from flyjax.landscape.landscape import MIN_CONFIGURATIONS

    found = run_map(state, block)
    if found is None or found.n_configurations < MIN_CONFIGURATIONS:
        return None
    score = found.classes.score
    skill, low, high = score.skill.value, score.skill.low, score.skill.high
    values = {"skill": skill, "low": low, "high": high, "log_loss": score.log_loss, "brier": score.brier}
    return {name: round(value, 4) for name, value in values.items()}


def score_text(score: Mapping[str, float] | None) -> str:
    """A score of the map in words."""
    if not score:
        return "too few nodes"
    text = "log-loss skill {skill:.3f} ({low:.3f} to {high:.3f}), log loss {log_loss:.3f}, Brier score {brier:.3f}"
    return text.format(**score)


def information(found: Landscape, configs: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, " n"]:
    """How much a training of each configuration would tell: what the members of the ensemble disagree on.

    The mutual information of the class and the member (Houlsby et al. 2011), in nats, so that a place is not uncertain
    because its seeds differ; where the classes are not predictable, the standard deviation of the expected objective.
    """
    if found.classes.skill.low <= 0:
        return found.predict(configs).deviation
    draws = found.class_draws(configs)
    return _entropy(draws.mean(0)) - _entropy(draws).mean(0)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def most_uncertain(found: Landscape, seed: int, n_points: int = N_POINTS) -> Iterator[dict[str, Any]]:
    """Configurations of which a training would tell most, each taking those before it into account.

    Of `n_points` Sobol' points the one with the largest information is picked, then the information of every point is
    multiplied by 1 - exp(-(distance / `SPACING` of the diagonal)^2), the distance being that to the pick.
    """
    places = found.space.sample(n_points, seed)
    configs = [{**found.space.constant, **settings} for settings in found.space.settings(places)]
    worth, left = information(found, configs), np.ones(len(places), bool)
    for _ in range(len(places)):
        k = int(np.argmax(np.where(left, worth, -np.inf)))
        left[k] = False
        yield configs[k]
        squares = ((places - places[k]) ** 2).mean(1)  # of the distance, as a share of the diagonal
        worth = worth * (1 - np.exp(-squares / SPACING**2))


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def map_text(state: State, block: int, n_uncertain: int = 3) -> str:
    """The map as a compact table for a prompt; empty before anything was trained."""
    found, metric = run_map(state, block), objective_metric(state.objective)
    if found is None:
        return ""
    score = ""
    if state.objective == "map":
        score = (
            "The objective is this map: how well it predicts the class (failed, partial, converged) of configurations "
            f"that were never trained. Now: {score_text(map_score(state, block))}. UCB and the classes still use R2.\n"
        )
    facts = found.summary()
    if found.problem:
        return f"{score}Map of block {block}'s simulation: {found.problem.replace('connectivity_R2', metric)}"
    value, low, high = facts["skill"]
    head = (
        f"Map of block {block}'s simulation: what {facts['trainings']} trainings of {facts['configurations']} "
        f"configurations say of {metric} (surrogate; R2 on held-out configurations {value:.2f}, 90 % interval "
        f"{low:.2f} to {high:.2f})"
    )
    share, least, most = facts["seed_share"]
    noise = f"{share:.0%} of the variance ({least:.0%} to {most:.0%})" if np.isfinite(share) else "not measured"
    stable = facts.get("stable_ranges") or {}
    stated = f"P(R2 > {facts['above']:g}) >= {facts['stable_probability']:g}" if stable else ""
    level = f", stable range ({stated}, others as recommended)" if stable else ""
    lines = [score + head, f"setting | importance (total Sobol' index, 90 % interval) | recommended{level}"]
    for name, (total, least, most) in facts["importance"].items():
        span = f" | {_number(stable[name][0])} to {_number(stable[name][1])}" if name in stable else ""
        best = _number(facts["recommended"][name])
        lines.append(f"{name} | {total:.2f} ({least:.2f} to {most:.2f}) | {best}{span}")
    value, low, high = facts["expected"]
    lines.append(f"Expected there: {value:.3f} ({low:.3f} to {high:.3f}). Share of the seed: {noise}")
    lines.append("Where a training would tell most:")
    for _, config in zip(range(n_uncertain), most_uncertain(found, block)):
        expected = found.predict([config])
        lines.append(
            f"- {', '.join(f'{k}={_number(config[k])}' for k in found.space.names)}: expected "
            f"{expected.mean[0]:.2f} ({expected.low[0]:.2f} to {expected.high[0]:.2f})"
        )
    return "\n".join(lines)
