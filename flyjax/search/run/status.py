"""What a run would do (`meta_loop.py --dry-run`) and how far it has come, as text."""

from pathlib import Path

from flyjax.config import Experiment
from flyjax.search.confirmation import confirmation_size, search_limit
from flyjax.search.iteration import block_simulation, circuit_text, n_seeds, next_context, next_nodes
from flyjax.search.journal.state import State
from flyjax.search.llm.budget import NOT_REPORTED, announce, dollars
from flyjax.search.proposals.types import Context
from flyjax.search.proposers import make_proposer
from flyjax.search.protocol.document import instantiate
from flyjax.search.run.opening import read_protocol, started_run
from flyjax.utils.format import duration, plural

#: What ends or pauses a run early.
LIMITS = ("max_usd", "max_tokens", "max_calls", "max_wall_s", "max_nodes", "target", "patience")


def limits_text(experiment: Experiment) -> str:
    """`limits: max_usd=2, …`"""
    limits = {k: getattr(experiment.search, k) for k in LIMITS if getattr(experiment.search, k) is not None}
    return "limits: " + (", ".join(f"{k}={v:.12g}" for k, v in limits.items()) or "none")


def remaining(experiment: Experiment, state: State) -> tuple[int, int]:
    """How many nodes and iterations a run may still train, those in training included.

    `target` and `patience` may end it before.
    """
    search, newest = experiment.search, state.iteration
    training = sum(n.status == "running" for n in state.all_nodes)
    # A block that has begun goes to its end, also where n_blocks is less by now.
    blocks = max(search.n_blocks, newest.block) if newest else search.n_blocks
    iterations = blocks * search.n_iter_block - (newest.number if newest else 0)
    nodes = max(0, iterations) * search.n_candidates
    limit = search_limit(experiment, len(state.all_nodes) - len(state.nodes))
    if limit is not None:
        nodes = max(0, min(nodes, limit - len(state.nodes)))
    if not next_nodes(experiment, state, state.wall_s)[0]:
        nodes = 0
    done = state.finished is not None or (not nodes and state.number + 1 in state.confirmations)
    again = 0 if done else confirmation_size(experiment, len(state.nodes) + nodes)
    return nodes + again + training, -(-nodes // search.n_candidates) + bool(again) + bool(training)


def remaining_seconds(experiment: Experiment, state: State) -> float | None:
    """Seconds of work that remain at the pace so far; None before an iteration is done."""
    done = len(state.iterations) - (state.pending is not None)
    if not done or not state.wall_s:
        return None
    seconds, limit = remaining(experiment, state)[1] * state.wall_s / done, experiment.search.max_wall_s
    return seconds if limit is None else min(seconds, max(0.0, limit - state.wall_s))


def remaining_text(experiment: Experiment, state: State) -> str:
    """`at most 8 nodes in 2 iterations left, about 4 min at the pace so far`; empty where nothing remains."""
    (nodes, iterations), seconds = remaining(experiment, state), remaining_seconds(experiment, state)
    if not iterations:
        return ""
    at_pace = "" if seconds is None else f", about {duration(seconds)} at the pace so far"
    return f"at most {plural(nodes, 'node')} in {plural(iterations, 'iteration')} left{at_pace}"


def _of(used: str, limit: str | None) -> str:
    return used if limit is None else f"{used} of {limit}"


def spent_text(experiment: Experiment, state: State) -> str:
    """`12 of 20 nodes, 3 of 10 calls, 84,210 tokens, $0.41 of $2 paid, 12 min worked`.

    Costs are shown only where a model was asked.
    """
    search, spent = experiment.search, state.spent

    def limit(name: str, form: str = "{}") -> str | None:
        value = getattr(search, name)
        return None if value is None else form.format(value)

    done = sum(n.status != "running" for n in state.all_nodes)
    parts = [f"{_of(str(done), limit('max_nodes'))} node{'' if done == 1 and search.max_nodes is None else 's'}"]
    if spent.calls:
        tokens = spent.input_tokens + spent.output_tokens
        paid = f"{_of(dollars(spent.usd), limit('max_usd', '${:.12g}'))} paid"
        if spent.unpriced_calls:
            paid += f" (of {spent.unpriced_calls} calls {NOT_REPORTED})"
        parts += [
            f"{_of(str(spent.calls), limit('max_calls'))} call{'s' if spent.calls != 1 else ''}",
            f"{_of(f'{tokens:,}', limit('max_tokens', '{:,}'))} tokens",
            paid if spent.unpriced_calls < spent.calls else f"cost {NOT_REPORTED}",
        ]
    worked = None if search.max_wall_s is None else duration(search.max_wall_s)
    return ", ".join([*parts, f"{_of(duration(state.wall_s), worked)} worked"])


def preview_context(experiment: Experiment, run_dir: Path, template: Path, available: tuple[str, ...]) -> Context:
    """What the proposer of a run would be asked next; of a run that has not begun, its first question."""
    state = started_run(run_dir) or State(experiment=experiment.model_dump(mode="json"))
    protocol = state.protocol or instantiate(read_protocol(template), experiment)
    return next_context(experiment, state, run_dir, available, next_nodes(experiment, state, state.wall_s)[0], protocol)


def plan_text(experiment: Experiment, proposer: str) -> str:
    """Blocks, nodes and trainings of a whole run."""
    search, training = experiment.search, experiment.training
    nodes = search.n_blocks * search.n_iter_block * search.n_candidates
    trainings = nodes * training.n_seeds + search.n_blocks * (n_seeds(experiment, is_root=True) - training.n_seeds)
    confirming = confirmation_size(experiment, nodes)
    again = f", and {plural(confirming, 'node')} on fresh seeds at the end" if confirming else ""
    lines = [
        f"{experiment.name}: {search.n_blocks} blocks x {search.n_iter_block} iterations x {search.n_candidates} "
        f"candidates = {nodes} nodes, {trainings} trainings{again}; proposer {proposer}, objective {search.objective}"
    ]
    for block in range(1, search.n_blocks + 1):
        s = block_simulation(experiment, block)
        frames = f"{s['n_frames']} frames of {s['delta_t']} s"
        lines.append(f"  block {block}: {s['visual_input_type']}, {frames}, {circuit_text(s)}")
    return "\n".join([*lines, f"  {limits_text(experiment)}"])


def preview(experiment: Experiment, run_dir: Path, template: Path, available: tuple[str, ...], proposer: str) -> str:
    """The plan, the cost where a language model proposes, and the next prompt. Trains and calls nothing."""
    parts, begun = [plan_text(experiment, proposer)], started_run(run_dir)
    if begun is not None:
        rest = remaining_text(experiment, begun) or "nothing is left to train"
        parts.append(f"{run_dir} has begun: {spent_text(experiment, begun)}; {rest}")
    if proposer not in ("llm", "hybrid"):
        make_proposer(proposer, experiment, run_dir)  # a package or a transcript that is missing is an error now
        parts.append(
            f"{proposer} asks no language model: no prompt, no cost. With --proposer llm the prompt is shown here."
        )
        return "\n".join(parts)
    from flyjax.search.llm.prompt import render_prompt

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
