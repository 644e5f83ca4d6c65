"""The map of a training landscape: which settings recover the circuit, which fail, and how sure that is."""

from flyjax.landscape.trainings import Trainings

__all__ = ["Trainings"]
