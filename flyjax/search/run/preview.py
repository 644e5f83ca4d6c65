"""What a run would do, as text: `meta_loop.py --dry-run`."""

from __future__ import annotations

from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.iteration import at_block_end, next_nodes, seeds_of
from flyjax.search.journal.journal import FILE_NAME, read_journal
from flyjax.search.journal.state import State, fold
from flyjax.search.proposals.types import Context
from flyjax.search.proposals.validation import block_simulation
from flyjax.search.protocol.document import instantiate
from flyjax.search.run.status import left_text, limits_text, spent_text
from flyjax.search.run.user_files import pending_input


def next_context(experiment: Experiment, run_dir: Path, template: Path, available: tuple[str, ...]) -> Context:
    """What the proposer of a run would be asked next; of a run that is not begun, its first question."""
    begun = (Path(run_dir) / FILE_NAME).is_file()
    state = fold(read_journal(run_dir)) if begun else State(experiment=experiment.model_dump(mode="json"))
    protocol = state.protocol or instantiate(Path(template).read_text(encoding="utf-8"), experiment)
    newest, search = state.iteration, experiment.search
    opens, (limit, _) = newest is None or at_block_end(experiment, state), next_nodes(experiment, state, state.wall_s)
    return Context(
        experiment=experiment,
        state=state,
        protocol=protocol,
        block=newest.block if newest else 1,
        iter_in_block=newest.iter_in_block if newest else 0,
        n_iter_block=search.n_iter_block,
        new_nodes=newest.nodes if newest else (),
        n_proposals=max(0, limit - 1) if opens else limit,
        next_opens_block=opens and limit > 0,
        available_stimuli=available,
        run_dir=Path(run_dir),
        user_input=pending_input(Path(run_dir), state),
    )


def plan_text(experiment: Experiment, proposer: str) -> str:
    """Blocks, nodes and trainings of a whole run."""
    search, training = experiment.search, experiment.training
    nodes = search.n_blocks * search.n_iter_block * search.n_candidates
    trainings = nodes * training.n_seeds + search.n_blocks * (seeds_of(experiment, True) - training.n_seeds)
    lines = [
        f"{experiment.name}: {search.n_blocks} blocks x {search.n_iter_block} iterations x {search.n_candidates} candidates "
        f"= {nodes} nodes, {trainings} trainings; proposer {proposer}, objective {search.objective}"
    ]
    for block in range(1, search.n_blocks + 1):
        s = block_simulation(experiment, block)
        lines.append(
            f"  block {block}: {s['visual_input_type']}, {s['n_frames']} frames of {s['delta_t']} s, extent {s['extent']}"
        )
    return "\n".join([*lines, f"  {limits_text(experiment)}"])


def begun_text(experiment: Experiment, run_dir: Path) -> str:
    """How far a run has come and what is left; empty where none has begun."""
    if not (Path(run_dir) / FILE_NAME).is_file():
        return ""
    state = fold(read_journal(run_dir))
    rest = left_text(experiment, state) or "nothing is left to train"
    return f"{run_dir} has begun: {spent_text(experiment, state)}; {rest}" if state.started else ""


def preview(experiment: Experiment, run_dir: Path, template: Path, available: tuple[str, ...], proposer: str) -> str:
    """The plan, the cost where a language model proposes, and the next prompt. Trains and calls nothing."""
    begun = begun_text(experiment, run_dir)
    parts = [plan_text(experiment, proposer), *([begun] if begun else [])]
    if proposer in ("llm", "hybrid"):
        from flyjax.search.llm.prompt import render_prompt
        from flyjax.search.llm.proposer import announce

        context = next_context(experiment, run_dir, template, available)
        if proposer == "hybrid" and not context.state.pending:
            from flyjax.search.proposers.samplers import with_drafts

            context = with_drafts(context)
        if context.state.finished and not next_nodes(experiment, context.state, context.state.wall_s)[0]:
            return "\n".join(
                [
                    *parts,
                    f"{run_dir} is finished ({context.state.finished}): nothing is asked and nothing is paid any more.",
                ]
            )
        parts += [announce(experiment), ""]
        if context.state.pending:
            parts.append(
                f"Iteration {context.state.iteration.number} is in training: the next prompt will hold its results, which are missing here."
            )
        parts.append(render_prompt(context))
    else:
        parts.append(
            f"{proposer} asks no language model: no prompt, no cost. With --proposer llm the prompt is shown here."
        )
    return "\n".join(parts)
