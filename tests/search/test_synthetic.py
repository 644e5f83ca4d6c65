"""Made-up landscapes: their optimum is where they say, they are equally hard, and favour nobody's first move."""

import numpy as np
import pytest
from support.search_landscape import TEMPLATE, experiment

from flyjax.config.ranges import sample
from flyjax.search.iteration import root_config
from flyjax.search.policy.moves import first_moves
from flyjax.search.protocol.document import rules
from flyjax.search.synthetic import EASY, FAILING, FAMILIES, NOISE, make_landscape

EXP = experiment()
ROOT = root_config(EXP)


def draws(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return [{**ROOT, **{k: sample(s, rng) for k, s in EXP.search.ranges.items()}} for _ in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_shares_of_an_optimum_and_the_root_is_no_good(family):
    values, roots, profiles = [], [], []
    for seed in range(8):
        landscape = make_landscape(family, seed, EXP)
        got = [landscape.value(c) for c in draws(100, seed)]
        values += got
        roots.append(landscape.value(ROOT))
        profiles.append(tuple(landscape.value(c) for c in draws(60)))
        assert all(v is None or 0 <= v <= 1 for v in got)
        assert [make_landscape(family, seed, EXP).value(c) for c in draws(3, seed)] == got[:3], (
            "drawn from the seed alone"
        )
    known = [v for v in values if v is not None]
    assert max(roots) < EASY and all(root is not None for root in roots)
    assert len(set(profiles)) == 8, "every seed has a landscape of its own"
    assert np.ptp(roots) > 0.1 or family == "plateau"
    assert np.mean([v is None for v in values]) == pytest.approx(FAILING if family == "cliff" else 0, abs=0.06)
    assert np.median(known) == 0 if family == "plateau" else 0.01 < np.median(known) < 0.5
    assert np.mean([v > 0.9 for v in known]) < 0.08, "not to be hit by luck"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimum_can_be_reached(family):
    """A climb by single steps with many restarts comes near 1: the top is there and belongs to the space."""
    landscape, rng = make_landscape(family, 1, EXP), np.random.default_rng(0)
    best = max(draws(600), key=lambda c: landscape.value(c) or 0)
    for size in (0.3, 0.1, 0.03):
        for _ in range(500):
            moved = dict(best)
            for name in rng.choice(list(EXP.search.ranges), 2):
                span = EXP.search.ranges[name]
                other = sample(span, rng)
                moved[name] = other if span.scale in ("choice", "int") else best[name] + size * (other - best[name])
            best = max(best, moved, key=lambda c: landscape.value(c) or 0)
    assert landscape.value(best) > (0.6 if family in ("valley", "hills") else 0.8)


def test_noise_is_the_seeds_and_the_cliff_fails():
    landscape = make_landscape("bowl", 0, EXP)
    config = next(c for c in draws() if 0.3 < landscape.value(c) < 0.7)  # 0 and 1 cut nothing off
    seen = [landscape.observe(config, seed) for seed in range(300)]
    assert np.std(seen) == pytest.approx(NOISE, rel=0.15) and np.mean(seen) == pytest.approx(
        landscape.value(config), abs=0.005
    )
    assert landscape.observe(config, 5) == seen[5]
    cliff = make_landscape("cliff", 0, EXP)
    failing = next(c for c in draws() if cliff.value(c) is None)
    assert cliff.observe(failing, 1) is None


def test_the_protocols_first_moves_are_no_better_than_their_opposites():
    """Over many landscapes a first move helps about as often as it hurts: nothing was shaped after the rules."""
    hints = rules(TEMPLATE.read_text()).hints
    gains = []
    for family in FAMILIES:
        for seed in range(25):
            landscape = make_landscape(family, seed, EXP)
            start = landscape.value(ROOT)
            moved = [landscape.value({**ROOT, **change}) for change in first_moves(hints, EXP.search.ranges, ROOT)]
            gains += [(v or 0) - start for v in moved if v != start]
    helped = np.mean([g > 0 for g in gains])
    assert len(gains) > 500 and 0.35 < helped < 0.6
