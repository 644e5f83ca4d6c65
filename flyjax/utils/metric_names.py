"""The lists of metric names that tables, logs and transcripts share; metrics.json of a node has more."""

import math

#: The recovered quantities, each with its symbol in tables.
QUANTITIES = {"connectivity_R2": "W", "tau_R2": "tau", "V_rest_R2": "V_rest"}
RECOVERY = (*QUANTITIES, "cluster_accuracy")
PREDICTION = ("test_R2", "test_pearson")
#: The protocol's classes of connectivity_R2: converged above the first, failed below the second, partial between them.
CONVERGED, FAILED = 0.9, 0.1

#: Of a node in the history that a language model reads.
HISTORY = (*RECOVERY, "test_R2")
#: Of a node in a transcript.
TRANSCRIPT = (*RECOVERY, *PREDICTION)
#: Of a node in the log, in the order of the protocol's log format.
LOG = (*PREDICTION, *QUANTITIES, "external_input_R2", "cluster_accuracy")
#: Of a node in the report's tables.
NODE_TABLE = (*TRANSCRIPT, "external_input_R2", "final_loss")
#: Of a configuration in the tables of a sweep.
SWEEP_TABLE = (*TRANSCRIPT, "external_input_R2", "one_step_R2", "final_loss", "wall_s")

#: Criteria to choose a model by that need no ground truth, and whether larger is better.
BLIND_CRITERIA = {"test_R2": True, "one_step_R2": True, "final_error": False}
#: All that a search with the objective `blind` may show a proposer.
BLIND = (*PREDICTION, "one_step_R2", "final_loss", "n_steps", "wall_s")


def limits(name: str) -> tuple[float, float]:
    """Between which values a metric lies: correlations squared and shares, R2 of predictions, anything else."""
    if name in RECOVERY:
        return 0.0, 1.0
    return (-math.inf, 1.0) if name.endswith("_R2") else (-math.inf, math.inf)
