"""The map of a landscape: surrogates of the metrics, classes, seed noise and the recommended setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flyjax.config import PROTOCOL_RANGES, Range
from flyjax.landscape import effects, regions
from flyjax.landscape.classes import CLASSES, ClassMap, Exceedance
from flyjax.landscape.effects import Curve, Surface
from flyjax.landscape.importance import Importance, importance
from flyjax.landscape.seeds import SeedNoise, seed_noise, targets
from flyjax.landscape.space import Space
from flyjax.landscape.surrogate import FULL, KINDS, LEVEL, Estimate, Sizes, Surrogate
from flyjax.landscape.trainings import Trainings, is_score
from flyjax.utils.errors import UserError
from flyjax.utils.format import plural
from flyjax.utils.metric_names import CONVERGED

MIN_CONFIGURATIONS = 12
LEVELS = (CONVERGED, 0.7, 0.5, 0.3)  # of connectivity_R2, at which a boundary may be drawn
Z = 1.645  # standard deviations of a 90 % interval
REACH = 0.1  # half the width of a neighbourhood, in parts of every range
N_NEIGHBOURS = 16
N_BEST = 48  # points whose neighbourhoods are evaluated
N_ROUNDS = 3  # of the refinement of the recommended setting


@dataclass(frozen=True)
class Prediction:
    """What a map expects of configurations, seeds averaged, with 90 % intervals."""

    mean: Float[np.ndarray, " n"]
    deviation: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Setting:
    """A configuration and what the map says of it.

    **Attributes:**

    - `settings`: values of the map's axes.
    - `place`: in the unit cube.
    - `expected`: the map's metric there.
    - `around`: the same averaged over the neighbourhood (a tenth of every range to either side).
    - `probabilities`: of `CLASSES`.
    - `observed`, `n`: mean of its trainings and their number; NaN and 0 where it was not trained.
    - `outside`: settings that lie outside the map's ranges, which was evaluated at the nearest end.
    """

    settings: dict[str, Any]
    place: Float[np.ndarray, " d"]
    expected: Estimate
    around: Estimate
    probabilities: Float[np.ndarray, " 3"]
    observed: float = np.nan
    n: int = 0
    outside: tuple[str, ...] = ()


class Landscape:
    """The map of trainings of one condition; make it with `fit`.

    Everything is computed when it is first asked for. A map whose surrogate has no skill has a `problem`, and what it
    predicts must not be shown.
    """

    def __init__(self, trainings: Trainings, space: Space, metric: str, sizes: Sizes, kinds: Sequence[str], seed: int):
        self.trainings, self.space, self.metric = trainings, space, metric
        self.sizes, self.kinds, self.seed = sizes, tuple(kinds), seed
        self._surrogates: dict[str, Surrogate] = {}
        self._importance: dict[str, Importance] = {}

    @cached_property
    def groups(self) -> Int[np.ndarray, " trainings"]:
        """The configuration of every training."""
        return self.trainings.groups(self.space.names)

    @cached_property
    def x(self) -> Float[np.ndarray, "trainings d"]:
        """The settings of every training in the unit cube."""
        columns = [self.trainings.settings[name] for name in self.space.names]
        return self.space.places([dict(zip(self.space.names, row)) for row in zip(*columns)])

    @property
    def n_configurations(self) -> int:
        return int(self.groups.max(initial=-1)) + 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics with values, the map's own first."""
        known = self.trainings.metrics
        names = dict.fromkeys((self.metric, *self.sizes.metrics))
        return tuple(n for n in names if n in known and np.isfinite(known[n]).any())

    @cached_property
    def problem(self) -> str:
        """Why there is no map, in one line; empty where there is one."""
        values = self.trainings.values(self.metric)
        if not np.isfinite(self.trainings.metrics[self.metric]).any():
            reason = next(filter(None, self.trainings.reasons), f"no value of {self.metric}")
            return f"nothing to map: all {plural(len(values), 'training')} failed (for example: {reason})"
        if not self.space.names:
            return "nothing to map: no setting was varied"
        if self.n_configurations < MIN_CONFIGURATIONS:
            return (
                f"too few nodes: {plural(self.n_configurations, 'configuration')} of this condition, and a map needs "
                f"at least {MIN_CONFIGURATIONS}"
            )
        if np.nanmin(values) == np.nanmax(values):
            return f"nothing to map: {self.metric} is {np.nanmin(values):g} in all trainings"
        skill = self.surrogate().skill
        if skill.low <= 0:
            return (
                f"too few nodes: with {plural(self.n_configurations, 'configuration')} the surrogate of {self.metric} "
                f"predicts held-out ones no better than their mean (R2 {skill.value:.2f}, {LEVEL:.0%} interval "
                f"{skill.low:.2f} to {skill.high:.2f})"
            )
        return ""

    def surrogate(self, metric: str | None = None) -> Surrogate:
        """The surrogate of a metric, by default the map's own."""
        metric = metric or self.metric
        if metric not in self._surrogates:
            data = targets(self.x, self.trainings.values(metric), self.groups, is_score(metric))
            self._surrogates[metric] = Surrogate.fit(data, self.sizes, self.kinds, self.seed)
        return self._surrogates[metric]

    @cached_property
    def classes(self) -> ClassMap:
        """Probabilities of converged, partial and failed."""
        values = self.trainings.values("connectivity_R2")
        return ClassMap.fit(self.x, values, self.groups, self.sizes, self.seed)

    @cached_property
    def above(self) -> Exceedance | None:
        """Where trainings exceed the highest of `LEVELS` for which that is predicted; None without one.

        Where too few trainings converge, a lower level may still be known.
        """
        return next((one for one in map(self.classes.above, LEVELS) if one.skill.low > 0), None)

    @property
    def tells_where(self) -> bool:
        """Whether it is known where trainings converge."""
        return self.above is not None and self.above.level == CONVERGED

    def seed_noise(self, metric: str | None = None) -> SeedNoise:
        """How much of a metric is the seed's."""
        metric = metric or self.metric
        return seed_noise(self.trainings.values(metric), self.groups, self.surrogate(metric).held_out, self.seed)

    def importance(self, metric: str | None = None) -> Importance:
        """Which settings matter for a metric."""
        metric = metric or self.metric
        if metric not in self._importance:
            self._importance[metric] = importance(self.surrogate(metric), self.space, self.sizes.points, self.seed)
        return self._importance[metric]

    def predict(self, settings: Sequence[Mapping[str, Any]], metric: str | None = None) -> Prediction:
        """What the map expects of configurations, seeds averaged."""
        surrogate = self.surrogate(metric)
        mean, deviation = surrogate.predict(self.space.places(settings))
        low, high = np.clip([mean - Z * deviation, mean + Z * deviation], *surrogate.data.bounds)
        return Prediction(mean, deviation, low, high)

    def class_probabilities(self, settings: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "n 3"]:
        """Probabilities that a training of each configuration is failed, partial or converged (`CLASSES`)."""
        return self.classes.probabilities(self.space.places(settings))

    def class_draws(self, settings: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "members n 3"]:
        """The same by every member of the ensemble: where they disagree, a training would tell most."""
        return self.classes.draws(self.space.places(settings))

    def curve(self, name: str, metric: str | None = None) -> Curve:
        """The effect of one setting on a metric."""
        return effects.curve(self.surrogate(metric).draws, self.space, name, n_points=self.sizes.points // 16)

    def class_curve(self, name: str, level: float = CONVERGED) -> Curve:
        """The effect of one setting on the probability to exceed a level of connectivity_R2."""
        return effects.curve(self.classes.above(level).draws, self.space, name, n_points=self.sizes.points // 16)

    def surface(self, names: tuple[str, str]) -> Surface:
        """The effect of two settings on the map's metric."""
        return effects.surface(self.surrogate().draws, self.space, names, n_points=self.sizes.points // 16)

    # --- single settings ---

    def setting(self, place: Float[np.ndarray, " d"], **facts: Any) -> Setting:
        """What the map says of a point of the unit cube."""
        (around,), (deviation,) = self._around(place[None])
        return Setting(
            self.space.settings(place[None])[0],
            place,
            self.expected(place),
            self._interval(self.metric, around, deviation),
            self.classes.probabilities(place[None])[0],
            **facts,
        )

    def expected(self, place: Float[np.ndarray, " d"], metric: str | None = None) -> Estimate:
        """What the map expects of a metric at a point of the unit cube, seeds averaged."""
        (mean,), (deviation,) = self.surrogate(metric).predict(place[None])
        return self._interval(metric or self.metric, mean, deviation)

    def reaches(self, place: Float[np.ndarray, " d"], level: float = CONVERGED) -> Estimate:
        """The probability that a training exceeds a level of connectivity_R2 at a point of the unit cube."""
        draws = self.classes.above(level).draws(place[None])[:, 0]
        return Estimate.of(draws.mean(), draws)

    def _interval(self, metric: str, mean: float, deviation: float) -> Estimate:
        bounds = self.surrogate(metric).data.bounds
        low, high = np.clip([mean - Z * deviation, mean + Z * deviation], *bounds)
        return Estimate(float(mean), float(low), float(high))

    def _around(self, places: Float[np.ndarray, "n d"], metric: str | None = None):
        """(mean, standard deviation) of a metric averaged over the neighbourhood of each point."""
        surrogate = self.surrogate(metric)
        offsets = REACH * (2 * self.space.sample(N_NEIGHBOURS, self.seed) - 1)
        for k, span in enumerate(self.space.ranges.values()):
            if span.scale == "choice":
                offsets[:, k] = 0
        near = np.clip(places[:, None] + offsets, 0, 1).reshape(-1, places.shape[1])
        draws = surrogate.draws(near).reshape(-1, len(places), N_NEIGHBOURS).mean(2)
        return draws.mean(0), surrogate.deviation(draws)

    def recommend(self, metric: str | None = None) -> Setting:
        """The setting of the highest lower confidence bound, averaged over its neighbourhood."""
        surrogate, rng = self.surrogate(metric), np.random.default_rng(self.seed)
        points = np.concatenate([self.space.sample(1024, self.seed), surrogate.data.x])
        mean, deviation = surrogate.predict(points)
        best = points[np.argsort(Z * deviation - mean)[:N_BEST]]
        fixed = [k for k, span in enumerate(self.space.ranges.values()) if span.scale == "choice"]
        for step in range(N_ROUNDS):
            mean, deviation = self._around(best, metric)
            top = best[np.argmax(mean - Z * deviation)]
            steps = rng.normal(0, REACH / 2**step, (N_BEST - 1, len(top)))
            steps[:, fixed] = 0
            best = np.concatenate([top[None], np.clip(top + steps, 0, 1)])
        # As it would be written into a config: three significant digits.
        return self.setting(self.space.places(self.space.settings(top[None]))[0])

    @cached_property
    def recommended(self) -> Setting:
        """The recommended setting by the map's metric."""
        return self.recommend()

    @cached_property
    def recommended_blind(self) -> Setting | None:
        """The setting that would be recommended without the ground truth, by test_R2; None without skill for it."""
        usable = "test_R2" in self.metrics and self.surrogate("test_R2").skill.low > 0
        return self.recommend("test_R2") if usable else None

    @cached_property
    def blind_cost(self) -> Estimate | None:
        """What the metric loses at the blind choice."""
        if self.recommended_blind is None:
            return None
        places = np.stack([self.recommended.place, self.recommended_blind.place])
        draws = self.surrogate().draws(places)
        return Estimate.of(float(draws.mean(0) @ [1, -1]), draws @ [1, -1])

    @cached_property
    def best_node(self) -> Setting:
        """The configuration with the highest mean over its trainings, which luck has helped to choose."""
        data = self.surrogate().data
        k = int(np.argmax(data.y))
        return self.setting(data.x[k], observed=float(data.y[k]), n=int(data.n[k]))

    def given(self, settings: Mapping[str, Any]) -> Setting:
        """What the map says of a given configuration, the protocol's defaults for example."""
        missing = [name for name in self.space.names if name not in settings]
        if missing:
            raise UserError(f"{missing[0]} is missing in the given setting: the map has the axis")
        outside = tuple(n for n, span in self.space.ranges.items() if not span.contains(settings[n]))
        place = self.space.places([settings])[0]
        data = self.surrogate().data
        at = np.flatnonzero(np.isclose(data.x, place).all(1))
        known = {} if not len(at) or outside else {"observed": float(data.y[at[0]]), "n": int(data.n[at[0]])}
        return self.setting(place, outside=outside, **known)

    def stable_ranges(self, setting: Setting) -> tuple[float | None, list[regions.StableRange]]:
        """(probability to exceed the level of `above` that holds in them, the stable range of every setting)."""
        reliability = None if self.above is None else regions.reliability_at(self.above, setting.place)
        if self.above is None or reliability is None:
            return None, []
        return reliability, regions.stable_ranges(self.above, self.space, setting.place, reliability)

    def summary(self) -> dict[str, Any]:
        """The map as a compact table of plain values, for a prompt or a JSON file."""
        out: dict[str, Any] = {
            "metric": self.metric,
            "trainings": len(self.trainings),
            "configurations": self.n_configurations,
            "problem": self.problem,
        }
        if self.problem:
            return out

        def row(e: Estimate) -> list[float]:
            return [round(v, 3) for v in (e.value, e.low, e.high)]

        reliability, stable = self.stable_ranges(self.recommended)
        found = self.importance()
        classes = {
            "probabilities": dict(zip(CLASSES, self.recommended.probabilities.round(3).tolist())),
            "above": None if self.above is None else self.above.level,
            "stable_probability": reliability,
            "stable_ranges": {s.name: [s.low, s.high] for s in stable},
        }
        return out | {
            "interval": LEVEL,
            "skill": row(self.surrogate().skill),
            "class_skill": row(self.classes.skill),
            "seed_share": row(self.seed_noise().share),
            "importance": {name: row(found.total[name]) for name in found.ranked()},
            "pairs": {" x ".join(names): row(e) for names, e in found.pairs.items() if e.low > 0.01},
            "recommended": self.recommended.settings,
            "expected": row(self.recommended.expected),
            **(classes if self.above is not None else {}),
        }


def fit(
    trainings: Trainings,
    ranges: Mapping[str, Range] = PROTOCOL_RANGES,
    metric: str = "connectivity_R2",
    *,
    sizes: Sizes = FULL,
    kinds: Sequence[str] = KINDS,
    pool: bool = False,
    seed: int = 0,
) -> Landscape:
    """The map of trainings.

    **Arguments:**

    - `trainings`: of one condition, see `Trainings.split`.
    - `ranges`: the axes of the map; settings that do not vary are left out.
    - `metric`: what is mapped; the classes are those of connectivity_R2 in any case.
    - `sizes`: what it costs; `FAST` for a map that is drawn while a run goes on.
    - `kinds`: of surrogates that are compared.
    - `pool`: whether trainings of different conditions may share a map.

    **Raises:** `UserError` for no trainings, an unknown metric, trainings of other ranges, or of several conditions.
    """
    if not len(trainings):
        raise UserError("no trainings to map: name runs with finished nodes")
    if metric not in trainings.metrics:
        raise UserError(f"no training has the metric {metric}; known: {', '.join(trainings.metrics)}")
    if not pool and (mixed := trainings.varied(trainings.conditions)):
        raise UserError(f"the trainings differ in {', '.join(mixed)}: map each condition on its own, or pool them")
    return Landscape(trainings, Space.of(trainings, ranges), metric, sizes, kinds, seed)
