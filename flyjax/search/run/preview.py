"""What a run would do, as text: `meta_loop.py --dry-run`."""

from __future__ import annotations

from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.iteration import n_seeds, next_nodes
from flyjax.search.journal.state import State
from flyjax.search.proposals.space import block_simulation
from flyjax.search.proposals.types import Context
from flyjax.search.protocol.document import instantiate
from flyjax.search.run.context import next_context
from flyjax.search.run.opening import read_protocol
from flyjax.search.run.resume import started_run
from flyjax.search.run.status import limits_text, remaining_text, spent_text


def preview_context(experiment: Experiment, run_dir: Path, template: Path, available: tuple[str, ...]) -> Context:
    """What the proposer of a run would be asked next; of a run that has not begun, its first question."""
    state = started_run(run_dir) or State(experiment=experiment.model_dump(mode="json"))
    protocol = state.protocol or instantiate(read_protocol(template), experiment)
    n_nodes, _ = next_nodes(experiment, state, state.wall_s)
    return next_context(experiment, state, protocol, run_dir, available, n_nodes)


def plan_text(experiment: Experiment, proposer: str) -> str:
    """Blocks, nodes and trainings of a whole run."""
    search, training = experiment.search, experiment.training
    nodes = search.n_blocks * search.n_iter_block * search.n_candidates
    trainings = nodes * training.n_seeds + search.n_blocks * (n_seeds(experiment, is_root=True) - training.n_seeds)
    lines = [
        f"{experiment.name}: {search.n_blocks} blocks x {search.n_iter_block} iterations x {search.n_candidates} "
        f"candidates = {nodes} nodes, {trainings} trainings; proposer {proposer}, objective {search.objective}"
    ]
    for block in range(1, search.n_blocks + 1):
        s = block_simulation(experiment, block)
        frames = f"{s['n_frames']} frames of {s['delta_t']} s"
        lines.append(f"  block {block}: {s['visual_input_type']}, {frames}, extent {s['extent']}")
    return "\n".join([*lines, f"  {limits_text(experiment)}"])


def progress_text(experiment: Experiment, run_dir: Path) -> str:
    """How far a run has come and what remains; empty where none has begun."""
    state = started_run(run_dir)
    if state is None:
        return ""
    rest = remaining_text(experiment, state) or "nothing is left to train"
    return f"{run_dir} has begun: {spent_text(experiment, state)}; {rest}"


def preview(experiment: Experiment, run_dir: Path, template: Path, available: tuple[str, ...], proposer: str) -> str:
    """The plan, the cost where a language model proposes, and the next prompt. Trains and calls nothing."""
    parts = [plan_text(experiment, proposer), progress_text(experiment, run_dir)]
    parts = [part for part in parts if part]
    if proposer not in ("llm", "hybrid"):
        parts.append(
            f"{proposer} asks no language model: no prompt, no cost. With --proposer llm the prompt is shown here."
        )
        return "\n".join(parts)
    from flyjax.search.llm.prompt import render_prompt
    from flyjax.search.llm.proposer import announce

    context = preview_context(experiment, run_dir, template, available)
    state = context.state
    if state.finished and not next_nodes(experiment, state, state.wall_s)[0]:
        parts.append(f"{run_dir} is finished ({state.finished}): nothing is asked and nothing is paid any more.")
        return "\n".join(parts)
    parts += [announce(experiment), ""]
    if state.pending:
        parts.append(
            f"Iteration {state.iteration.number} is in training: the next prompt will hold its results, "
            "which are missing here."
        )
    elif proposer == "hybrid":
        from flyjax.search.proposers.samplers import with_drafts

        context = with_drafts(context)
    return "\n".join([*parts, render_prompt(context)])
