"""The map of a training landscape: which settings recover the circuit, which fail, and how sure that is.

trainings = Trainings.read(["runs/quickstart"])
for condition, part in trainings.split(PROTOCOL_RANGES).items():
    landscape = fit(part, PROTOCOL_RANGES)
    print(condition, landscape.problem or landscape.summary())
"""

from flyjax.landscape.classes import CLASSES
from flyjax.landscape.importance import Importance
from flyjax.landscape.landscape import Landscape, Prediction, Setting, fit
from flyjax.landscape.space import Space
from flyjax.landscape.study import Benchmark, Fidelity, benchmark
from flyjax.landscape.surrogate import FAST, Estimate, Sizes
from flyjax.landscape.trainings import Trainings

__all__ = [
    "CLASSES",
    "Benchmark",
    "FAST",
    "Estimate",
    "Fidelity",
    "Importance",
    "Landscape",
    "Prediction",
    "Setting",
    "Sizes",
    "Space",
    "Trainings",
    "benchmark",
    "fit",
]
