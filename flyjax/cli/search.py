"""Run a search at the terminal: progress, a table after each iteration, approval, and the report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flyjax.cli.console import Console, node_table
from flyjax.cli.fallbacks import apply_stimulus_fallbacks
from flyjax.config import Experiment, Training, read_config
from flyjax.data import with_recording
from flyjax.experiments.forecast import first_result_seconds
from flyjax.experiments.node import NodeSpec, updated_simulation
from flyjax.experiments.train_nodes import train_nodes
from flyjax.report.figures.drawing import Drawing
from flyjax.report.html import write_report
from flyjax.search.confirmation import summary_lines
from flyjax.search.iteration import IterationPlan, circuit_text, n_seeds
from flyjax.search.journal.state import State, objective_metric
from flyjax.search.llm.budget import announce
from flyjax.search.loop import Outcome, Provenance, SearchCallbacks, run_loop
from flyjax.search.policy.run_map import score_text
from flyjax.search.proposers import make_proposer, resolve_name
from flyjax.search.run.opening import (
    changeable,
    changed_settings,
    check_free,
    has_begun,
    resume_experiment,
    setting_text,
    started_run,
)
from flyjax.search.run.status import limits_text, remaining, remaining_text, spent_text
from flyjax.training import Progress
from flyjax.training.loggers import MetricLogger
from flyjax.utils import environment
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, plural
from flyjax.utils.run_directory import check, remove_checkpoints
from flyjax.utils.system import devices

UCB_LINES = 4  # printed after an iteration


class SearchRun:
    """A search at the terminal: the settings of a run, resumed where it has begun, and the callbacks of `run_loop`.

    **Arguments:**

    - `config`, `settings`: the experiment file, and what the call sets besides.
    - `protocol`: of an earlier run, to start from.
    - `allow_fallback`: replace data sets that are missing on this machine.

    **Raises:** `UserError` for a run directory, a change of the config, a protocol or a stimulus that cannot be used.
    """

    def __init__(
        self,
        experiment: Experiment,
        run_dir: Path,
        config: Path,
        settings: Sequence[str] = (),
        protocol: Path | None = None,
        allow_fallback: bool = False,
        dry_run: bool = False,
    ):
        self.console, self.run_dir, self.protocol = Console(), run_dir, protocol
        experiment = with_recording(experiment)
        self.asked_for = experiment.search.proposer
        self.progress = self.console.progress()
        self.state: State | None = None
        log = self.console.log
        check(run_dir, "search")
        earlier, self.config_overrides = started_run(run_dir), changeable(read_config(config))
        if earlier is None:
            check_free(run_dir)
        else:
            experiment, self.config_overrides = resume_experiment(experiment, earlier, self.config_overrides, settings)
        self.experiment, self.available, self.fallbacks = apply_stimulus_fallbacks(experiment, allow_fallback, dry_run)
        for missing, used in self.fallbacks.items():
            log(f"{missing} is not on this machine: replaced by {used} (--allow-fallback)")
        changed = changed_settings(earlier, self.experiment, run_dir) if earlier is not None else {}
        if changed:
            log(f"{run_dir} has begun; this call {'would change' if dry_run else 'changes'}")
        for name, values in changed.items():
            log(f"  {name}: {' -> '.join(map(setting_text, values))}")
        if protocol is not None and not protocol.is_file():
            raise UserError(f"no protocol {protocol}; name the protocol.md of an earlier run")
        if protocol is not None and has_begun(run_dir):
            log(
                f"--protocol has no effect: {run_dir} has begun and continues with its own; choose another --run to "
                "start from it"
            )
        self.proposer = resolve_name(self.experiment.search.proposer, run_dir)

    def run(
        self,
        template: Path,
        commit: str,
        approve: bool = False,
        viewers: Sequence[str] = (),
        startup_s: float = 0.0,
    ) -> Outcome:
        """Run the search, or continue it, with a progress bar, a table after each iteration and a report.

        **Arguments:**

        - `template`: the protocol of a new run.
        - `commit`: of the code, for the journal.
        - `approve`: ask before each iteration.
        - `viewers`: names of further loggers, see `flyjax.training.loggers.MetricLogger`.
        - `startup_s`: seconds of work of the program before this call; they count in `search.max_wall_s`.

        **Raises:** `UserError` where the run pauses because of a problem or a spent budget.
        """
        experiment, run_dir, log = self.experiment, self.run_dir, self.console.log
        search = experiment.search
        if self.asked_for == "auto" and self.proposer == "rules":
            log(
                f"{run_dir} continues with `rules`, as before; --proposer llm switches to the language model."
                if environment.api_key()
                else "No ANTHROPIC_API_KEY: the proposer is `rules`, which follows protocol.md without a language model"
            )
        if self.proposer in ("llm", "hybrid"):
            log(announce(experiment))
        proposer = make_proposer(self.proposer, experiment, run_dir)
        log(
            f"{experiment.name}: {search.n_blocks} blocks x {search.n_iter_block} iterations x {search.n_candidates} "
            f"candidates x {experiment.training.n_seeds} seeds (roots {n_seeds(experiment, True)}), "
            f"{circuit_text(dict(experiment.simulation))}, proposer {proposer.name}, {limits_text(experiment)}; "
            f"run directory {run_dir}"
        )
        self.logger = MetricLogger(viewers, run_dir, experiment.name)
        self.drawing = Drawing(run_dir, lambda line: log(f"warning: {line}"))
        try:
            with self.progress, self.drawing:
                outcome = run_loop(
                    experiment,
                    run_dir,
                    self.evaluate,
                    proposer,
                    provenance=Provenance(
                        {**devices(), "commit": commit},
                        self.fallbacks,
                        self.config_overrides,
                        startup_s,
                    ),
                    callbacks=SearchCallbacks(
                        on_event=self.on_event,
                        on_iteration=self.on_iteration,
                        approve=self.approve if approve else None,
                        warn=lambda line: log(f"warning: {line}"),
                    ),
                    protocol_template=template,
                    earlier_protocol=self.protocol,
                    available_stimuli=self.available,
                )
        except UserError:
            if self.state is not None and self.state.started:
                log(f"paused after {spent_text(experiment, self.state)}")
            raise
        finally:
            self.logger.close()
            self._update_report()
        remove_checkpoints(run_dir)
        report = write_report(run_dir)
        for line in summary_lines(outcome.state, objective_metric(outcome.state.objective)):
            log(line)
        log(f"{outcome.status}: {outcome.reason}; {spent_text(experiment, outcome.state)}. Report: {report}")
        return outcome

    def evaluate(self, plan: IterationPlan) -> dict[int, dict[str, Any]]:
        """Train the nodes of an iteration."""
        specs = [NodeSpec(n.id, Training.model_validate(n.config), n.seeds) for n in plan.nodes]
        place = f"iteration {plan.iter_in_block}/{self.experiment.search.n_iter_block}"
        title = f"block {plan.block}, {plan.kind or place}"
        done = plan.number - 1
        total = done + (remaining(self.experiment, self.state)[1] if self.state is not None else 1)
        first = first_result_seconds(self.experiment) if plan.number == 1 else None
        if first is not None:
            self.console.log(
                f"first result in about {duration(first)} of training, after simulating and compiling: "
                f"{plural(len(plan.nodes), 'node')}; scripts/report.py {self.run_dir} --serve shows it in a browser"
            )
        ids = [n.id for n in plan.nodes]
        with self.progress.iteration(title, ids, done, total, first) as (on_progress, on_stage):
            self._check_time()

            def report(progress: Progress) -> None:
                on_progress(progress)
                self._update_report()
                self._check_time()

            results = train_nodes(
                self.experiment,
                specs,
                self.run_dir,
                simulation=updated_simulation(self.experiment, plan.simulation),
                on_progress=report,
                on_stage=on_stage,
                logger=self.logger,
                drawing=self.drawing,
            )
            if self.proposer in ("llm", "hybrid") and self.experiment.search.llm.images:
                self.drawing.wait()  # the next step looks at them
            return results

    def _update_report(self) -> None:
        """Write the report again where figures were finished since it was written."""
        if self.drawing.has_news():
            write_report(self.run_dir)

    def _check_time(self) -> None:
        """**Raises:** `UserError` where the run has worked as long as it may; the training goes on from here."""
        limit, state = self.experiment.search.max_wall_s, self.state
        if limit is not None and state is not None and state.last_time is not None:
            if state.wall_s + time.time() - state.last_time > limit:
                raise UserError(f"search.max_wall_s={limit:g} reached in an iteration: it is saved; raise it to go on")

    def on_event(self, event: Mapping[str, Any], state: State) -> None:
        """Print proposals that were replaced and edits of the protocol."""
        self.state = state
        if event["event"] == "run_resumed":
            self.drawing.wait()  # for what a killed process left
        elif event["event"] == "proposal":
            for line in event.get("fallbacks") or ():
                self.console.log(f"  replaced by the rules: {line}")
        elif event["event"] == "block_ended":
            edit = event["edit"] or {}
            verb = "edited" if edit.get("old") or edit.get("new") else "unchanged"
            self.console.log(f"block {event['block']} ended: protocol {verb}. {edit.get('reason', '')}")

    def on_iteration(self, state: State, number: int) -> None:
        """Print the results of an iteration and write the report."""
        remove_checkpoints(self.run_dir)
        self.console.rich.print(node_table(state, number))
        scores = self.run_dir / "ucb_scores.txt"
        for line in scores.read_text(encoding="utf-8").splitlines()[:UCB_LINES] if scores.is_file() else ():
            self.console.log(f"  {line}")
        if state.objective == "map":
            self.console.log(f"  map: {score_text(state.choices[number].map_score)}")
        rest = remaining_text(self.experiment, state)
        self.console.log(f"  so far {spent_text(self.experiment, state)}" + (f"; {rest}" if rest else ""))
        self.drawing.has_news()  # no longer, once they are in the report
        write_report(self.run_dir)

    def approve(self, plan: IterationPlan) -> bool:
        """Ask whether to train an iteration."""
        self.drawing.wait()  # who is asked may look at the report
        self._update_report()
        log, simulation = self.console.log, plan.simulation
        log(
            f"  simulation: {simulation['visual_input_type']}, {simulation['n_frames']} frames of "
            f"{simulation['delta_t']} s"
        )
        for node in plan.nodes:
            log(f"  node {node.id}: parent={node.parent}, {node.strategy}, {node.changes}")
        try:
            question = f"train {plan.kind or f'iteration {plan.number}'} (block {plan.block})? [y/N] "
            with self.progress.hidden():
                answer = self.console.rich.input(question, markup=False)
        except (EOFError, RuntimeError):  # no terminal
            log("\nno answer: nothing is lost; --approve needs a terminal, the same command without it does not ask")
            return False
        is_approved = answer.strip().lower() in ("y", "yes")
        if not is_approved:
            log(
                "nothing is lost: the same command asks for this iteration again. To have a language model propose "
                f"something else, write it into {self.run_dir / 'user_input.md'}; rules for later iterations go into "
                f"{self.run_dir / 'protocol.md'}"
            )
        return is_approved
