"""The terminal side of a run: progress bar, tables, the last line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flyjax import stimulus
from flyjax.cli.node_table import node_table
from flyjax.config import Experiment, Training, parse_experiment
from flyjax.data import SPLITS, stimulus_for_split
from flyjax.experiments.node import NodeSpec, updated_simulation
from flyjax.experiments.run_dir import remove_checkpoints
from flyjax.experiments.train_nodes import train_nodes
from flyjax.report.html import write_report
from flyjax.report.tables import format_cell
from flyjax.search.iteration import IterationPlan, n_seeds
from flyjax.search.loop import Outcome, Provenance, SearchCallbacks, run_loop
from flyjax.search.proposals.space import block_simulation
from flyjax.search.run.status import limits_text, remaining_text, spent_text
from flyjax.training import Progress as TrainingProgress
from flyjax.training.loggers import make_watcher
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, printable
from flyjax.utils.signals import stoppable
from flyjax.utils.system import devices

EVERY_S = 60  # between lines of progress where there is no terminal

#: What may stand in for a data set that is not there, on request only.
STAND_INS = {"DAVIS": "scenes_texture", "optical_flow": "scenes_flow"}


def with_stand_ins(
    experiment: Experiment, allowed: bool, needed: bool = True
) -> tuple[Experiment, tuple[str, ...], dict[str, str]]:
    """(experiment, stimuli this machine can show, what replaced what).

    Nothing is replaced unless `allowed`; then every mention of a missing data set is. Where the data are not
    `needed`, as in a dry run, missing ones are no error.
    """
    available = stimulus.available(experiment.simulation.data_path)
    missing = {name: used for name, used in STAND_INS.items() if name not in available} if allowed else {}
    if not missing:
        for block in range(1, experiment.search.n_blocks + 1) if needed else ():
            # Both splits, before anything is trained: the error says what to download.
            shown = updated_simulation(experiment, block_simulation(experiment, block))
            for split in SPLITS:
                stimulus.fingerprint(stimulus_for_split(shown, split), shown.data_path)
        return experiment, available, {}
    data = experiment.model_dump(mode="json")
    used: dict[str, str] = {}

    def swap(section: dict, key: str) -> None:
        if section.get(key) in missing:
            used[section[key]] = missing[section[key]]
            section[key] = missing[section[key]]

    for section in (data["simulation"], *data["search"]["simulations"]):
        swap(section, "visual_input_type")
        swap(section, "test_visual_input_type")
    span = data["search"]["simulation_ranges"].get("visual_input_type")
    if span and span.get("values"):
        span["values"] = list(dict.fromkeys(missing.get(v, v) for v in span["values"]))
    return parse_experiment(data, "--allow-fallback"), available, used


class LaneTable:
    """The trainings of a batch while they run: step, loss, R2 read along the way, time to go."""

    def __init__(self, ids: Sequence[int] = (), most: int = 16, clock=time.monotonic):
        self._ids, self._most, self._clock = ids, most, clock
        self._rows: dict[tuple[int, int], dict] = {}
        self._began: dict[tuple[int, int], tuple[float, int]] = {}

    def update(self, progress: TrainingProgress) -> None:
        """Take in a chunk."""
        now = self._clock()
        for one in progress.lanes:
            key = one.lane.candidate, one.lane.replicate
            begun, first = self._began.setdefault(key, (now, one.step))  # the chunk that compiled does not count
            left = None
            if one.status == "training" and one.step > first:
                left = (one.n_steps - one.step) * (now - begun) / (one.step - first)
            row = self._rows.setdefault(key, {"loss": None, "R2": None})
            row |= {"step": one.step, "n_steps": one.n_steps, "status": one.status, "left": left}
            row["loss"] = one.values.get("loss", row["loss"])
            row["R2"] = one.values.get("connectivity_R2", row["R2"])

    @property
    def best_r2(self) -> float | None:
        """The highest R2 read so far of those that are best now."""
        return max((row["R2"] for row in self._rows.values() if row["R2"] is not None), default=None)

    def rows(self) -> list[dict[str, str]]:
        """Lines of text: those in training first, then the best."""
        order = sorted(
            self._rows, key=lambda k: (self._rows[k]["status"] != "training", -(self._rows[k]["R2"] or 0.0), k)
        )
        out = []
        for key in order[: self._most]:
            row, (candidate, replicate) = self._rows[key], key
            node = self._ids[candidate] if candidate < len(self._ids) else candidate + 1
            to_go = (
                row["status"] if row["status"] != "training" else "" if row["left"] is None else duration(row["left"])
            )
            out.append(
                {
                    "node": str(node),
                    "seed": str(replicate + 1),
                    "step": f"{row['step']}/{row['n_steps']}",
                    "loss": format_cell("final_loss", row["loss"]),
                    "R2": format_cell("connectivity_R2", row["R2"]),
                    "to go": to_go,
                }
            )
        return out

    def __rich__(self) -> Table:
        table, rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), self.rows()
        for name in rows[0] if rows else ():
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row.values())
        if len(self._rows) > self._most:
            table.caption = f"and {len(self._rows) - self._most} more"
        return table


class Lines:
    """Progress where nobody looks at a terminal: a plain line now and then, for a file that somebody follows."""

    def __init__(self, say, title: str, every: float, clock=time.monotonic):
        self._say, self._title, self._every, self._clock = say, title, every, clock
        self._began: tuple[float, int] | None = None
        self._told = clock()  # what takes less than a line's time says nothing

    def _line(self, text: str) -> None:
        if self._clock() - self._told >= self._every:
            self._told = self._clock()
            self._say(f"  {self._title}: {text}")

    def update(self, progress: TrainingProgress, note: str) -> None:
        """Take in a chunk."""
        now, steps, total = self._clock(), progress.lane_steps, progress.total_lane_steps
        begun, first = self._began = self._began or (now, steps)  # the chunk that compiled does not count
        left = (
            f", about {duration((total - steps) * (now - begun) / (steps - first))} left"
            if first < steps < total
            else ""
        )
        self._line(f"{steps:,} of {total:,} {note}{left}")

    def stage(self, stage: str) -> None:
        self._line(stage)


class Console:
    """Prints for people; what it prints is also in the run directory."""

    def __init__(self):
        self._rich = RichConsole(highlight=False)

    def say(self, text: str) -> None:
        self._rich.print(text, markup=False, soft_wrap=True)

    def table(self, rows, columns) -> None:
        """Rows of plain values as a table."""
        table = Table(box=None, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="left" if rows and isinstance(rows[0].get(name), str) else "right")
        for row in rows:
            table.add_row(*(printable(format_cell(name, row.get(name))) for name in columns))
        self._rich.print(table)

    @contextmanager
    def training_bar(self, title: str, ids: Sequence[int] = ()):
        """A bar over all lanes' steps and a table of them; gives (on_progress, on_stage) for `flyjax.experiments.train_nodes`.

        `ids`: the nodes by candidate number.
        """
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._rich,
        )
        lanes, lines = LaneTable(ids), Lines(self.say, title, EVERY_S)
        seen = self._rich.is_terminal or self._rich.is_jupyter
        live = (
            Live(Group(bar, lanes), console=self._rich, transient=True, refresh_per_second=4) if seen else nullcontext()
        )
        with stoppable() as check, live:
            task = bar.add_task(title, total=None, note="")

            def on_progress(p: TrainingProgress) -> None:
                check()
                lanes.update(p)
                loss = "" if p.loss is None else f"loss {p.loss:.3g}"
                best = lanes.best_r2
                r2 = "" if best is None else f", best R2 {best:.3f}"
                lost = f", {p.n_diverged} diverged" if p.n_diverged else ""
                program = f", program {p.group + 1}/{p.n_groups}" if p.n_groups > 1 else ""
                note = f"steps, {loss}{r2}{lost}{program}"
                bar.update(task, completed=p.lane_steps, total=p.total_lane_steps, note=note)
                if not seen:
                    lines.update(p, note)

            def on_stage(stage: str) -> None:
                check()
                bar.update(task, note=stage)
                if not seen:
                    lines.stage(stage)

            yield on_progress, on_stage

    def run(
        self,
        experiment,
        run_dir: Path,
        proposer,
        *,
        template,
        earlier,
        available,
        stand_ins,
        ask,
        commit,
        config_overrides=None,
        viewers: Sequence[str] = (),
    ) -> Outcome:
        """The loop with a progress bar, a table after each iteration and a report.

        **Raises:** `UserError` where the run pauses and somebody has to mend what stops it; where nobody approved of
        an iteration it just pauses.
        """
        run_dir = Path(run_dir)
        watcher = make_watcher(viewers, run_dir, experiment.name)
        search = experiment.search
        self.say(
            f"{experiment.name}: {search.n_blocks} blocks x {search.n_iter_block} iterations x {search.n_candidates} "
            f"candidates x {experiment.training.n_seeds} seeds (roots {n_seeds(experiment, True)}), "
            f"extent {experiment.simulation.extent}, proposer {proposer.name}, {limits_text(experiment)}; run directory {run_dir}"
        )
        declined, newest = [], []

        def evaluate(plan: IterationPlan) -> dict[int, dict]:
            specs = [NodeSpec(n.id, Training.model_validate(n.config), n.seeds) for n in plan.nodes]
            title = f"block {plan.block}, iteration {plan.iter_in_block}/{search.n_iter_block}"
            with self.training_bar(title, [n.id for n in plan.nodes]) as (on_progress, on_stage):
                return train_nodes(
                    experiment,
                    specs,
                    run_dir,
                    simulation=updated_simulation(experiment, plan.simulation),
                    on_progress=on_progress,
                    on_stage=on_stage,
                    watcher=watcher,
                )

        def on_event(event, state) -> None:
            newest[:] = [state]
            self._on_event(event)

        def on_iteration(state, number: int) -> None:
            remove_checkpoints(run_dir)
            self._rich.print(node_table(state, number))
            for line in _newest_ucb(run_dir):
                self.say("  " + line)
            rest = remaining_text(experiment, state)
            self.say(f"  so far {spent_text(experiment, state)}" + (f"; {rest}" if rest else ""))
            write_report(run_dir)

        def approve(plan: IterationPlan) -> bool:
            if not self._approve(plan, run_dir):
                declined.append(plan.number)
            return not declined

        try:
            outcome = run_loop(
                experiment,
                run_dir,
                evaluate,
                proposer,
                protocol_template=template,
                earlier_protocol=earlier,
                available_stimuli=available,
                provenance=Provenance({**devices(), "commit": commit}, stand_ins, config_overrides),
                callbacks=SearchCallbacks(
                    on_event, on_iteration, approve if ask else None, lambda line: self.say(f"warning: {line}")
                ),
            )
        except UserError:
            if newest and newest[0].started:
                self.say(f"paused after {spent_text(experiment, newest[0])}")
            raise
        finally:
            watcher.close()
        report = write_report(run_dir)
        self.say(f"{outcome.status}: {outcome.reason}; {spent_text(experiment, outcome.state)}. Report: {report}")
        if outcome.status == "paused" and not declined:
            raise UserError(outcome.reason)
        return outcome

    def _on_event(self, event) -> None:
        if event["event"] == "proposal":
            for line in event.get("fallbacks") or ():
                self.say(f"  replaced by the rules: {line}")
        elif event["event"] == "block_ended":
            edit = event["edit"] or {}
            verb = "protocol edited" if edit.get("old") or edit.get("new") else "protocol unchanged"
            self.say(f"block {event['block']} ended: {verb}. {edit.get('reason', '')}")

    def _approve(self, plan: IterationPlan, run_dir: Path) -> bool:
        shown = plan.simulation
        self.say(f"  simulation: {shown['visual_input_type']}, {shown['n_frames']} frames of {shown['delta_t']} s")
        for node in plan.nodes:
            self.say(f"  node {node.id}: parent={node.parent}, {node.strategy}, {node.changes}")
        try:
            answer = self._rich.input(f"train iteration {plan.number} (block {plan.block})? [y/N] ", markup=False)
        except (EOFError, RuntimeError):  # nobody there to ask
            self.say(
                "\nnobody answered: nothing is lost; --approve needs a terminal, without it the same command goes on by itself"
            )
            return False
        if answer.strip().lower() in ("y", "yes"):
            return True
        self.say(
            f"nothing is lost: the same command asks for this iteration again. Where a language model proposes, it proposes anew if you write what "
            f"should come instead into {run_dir / 'user_input.md'}; rules for later steps go into {run_dir / 'protocol.md'}"
        )
        return False


def _newest_ucb(run_dir: Path) -> list[str]:
    path = run_dir / "ucb_scores.txt"
    return path.read_text().splitlines()[:4] if path.is_file() else []
