"""What the proposer of a run is asked next."""

from __future__ import annotations

from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.iteration import at_block_end
from flyjax.search.journal.state import State
from flyjax.search.proposals.types import Context
from flyjax.search.run.user_files import pending_input


def next_context(
    experiment: Experiment, state: State, protocol: str, run_dir: str | Path, stimuli: tuple[str, ...], n_nodes: int
) -> Context:
    """The context of the next step.

    **Arguments:**

    - `protocol`: the text of the run's protocol.
    - `stimuli`: those that proposers may choose from.
    - `n_nodes`: how many nodes the next iteration may have (`flyjax.search.iteration.next_nodes`).
    """
    newest = state.iteration
    opens = newest is None or at_block_end(experiment, state)
    return Context(
        experiment=experiment,
        state=state,
        protocol=protocol,
        block=newest.block if newest else 1,
        iter_in_block=newest.iter_in_block if newest else 0,
        n_iter_block=experiment.search.n_iter_block,
        new_nodes=newest.nodes if newest else (),
        n_proposals=max(0, n_nodes - 1) if opens else n_nodes,
        next_opens_block=opens and n_nodes > 0,
        available_stimuli=stimuli,
        run_dir=Path(run_dir),
        user_input=pending_input(Path(run_dir), state),
    )
