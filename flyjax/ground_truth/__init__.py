"""Ground truths: the circuits whose recovery is studied, and what of them a learner is given."""

from flyjax.ground_truth.sampling import sample_parameters

__all__ = ["sample_parameters"]
