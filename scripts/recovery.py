"""Train the rows of recovery tables, resumable row by row, and draw the tables."""

from __future__ import annotations

from _cli import ROOT, commit, make_app, prepare_devices, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  # every experiments/recovery_*.yaml\n
  python scripts/recovery.py\n
  python scripts/recovery.py experiments/recovery_learner.yaml --row "all"\n
  # a file instead of flow/0000/000\n
  python scripts/recovery.py --checkpoint flow.npz\n
  # only draw the tables again\n
  python scripts/recovery.py --render
"""


@app.command(epilog=EXAMPLES)
def main(
    context: typer.Context,
    tables: Annotated[
        list[Path] | None,
        typer.Argument(help="Table files whose rows are trained; by default all experiments/recovery_*.yaml."),
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Train only rows whose name contains this; repeatable.")] = None,
    journal: Annotated[Path, typer.Option(help="Finished rows, one line each.")] = ROOT
    / "experiments"
    / "results"
    / "recovery.jsonl",
    table: Annotated[Path | None, typer.Option(help="The Markdown to write; by default beside the journal.")] = None,
    work: Annotated[Path, typer.Option(help="Recordings and checkpoints.")] = Path("runs/recovery"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file of parameters to use instead of flow/0000/000.")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Train nothing.")] = False,
):
    """Train every row that the journal does not have yet, and write the tables.

    A row is a setting with its seeds. After an interruption the same command continues.
    The output has every table with a finished row in the journal, whichever were trained now.
    """
    prepare_devices()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from flyjax.experiments import recovery_report, recovery_table
    from flyjax.experiments.benchmark import provenance
    from flyjax.utils.atomic_io import write_atomic
    from flyjax.utils.errors import UserError
    from flyjax.utils.run_directory import RunDirectory
    from flyjax.utils.signals import interruptible

    if not render:
        context.with_resource(RunDirectory(work, "recovery"))
    console = Console()
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    machine_ = {**provenance(), "commit": commit()}

    def trained(one, setting, experiment):
        with interruptible() as check, Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("recording, compiling", total=None)

            def show(p):
                check()
                loss = "" if p.loss is None else f"loss {p.loss:.3g}"
                bar.update(task, completed=p.lane_steps, total=p.total_lane_steps, description=loss)

            return recovery_table.run_row(one, setting, experiment, work, machine_, show)

    own = sorted((ROOT / "experiments").glob("recovery_*.yaml"))
    asked = [path for path in tables or () if path.resolve() not in own]
    known = {path.resolve(): recovery_table.load_table(path) for path in [*own, *asked]}
    wanted = recovery_table.select_rows([known[path.resolve()] for path in tables or own], row or ())
    done = {event["identity"]: event for event in recovery_table.read_journal(journal)}
    target = table or journal.with_suffix(".md")

    def draw() -> None:
        every = recovery_table.finished_rows(list(known.values()), done)
        asked_for = {known[path.resolve()].name for path in tables or ()}
        shown = [(one, rows) for one, rows in every if rows or one.name in asked_for]
        write_atomic(target, recovery_report.render(shown))

    draw()  # before anything is trained: a table that cannot be read is an error now
    for one, setting in wanted if not render else ():
        experiment = one.experiment(setting)
        identity = recovery_table.identity(experiment, setting)
        if identity in done:
            continue
        if checkpoint is not None and experiment.simulation.parameters == "flow/0000/000":
            experiment = one.experiment(setting, {"simulation.parameters": str(checkpoint)})
        console.print(f"{one.name}: {setting.name}")
        try:
            event = trained(one, setting, experiment)
        except UserError as error:
            console.print(f"  not run: {error}")
            continue
        # The name of the parameters counts, not where this machine keeps them; their checksum is in the line.
        event["identity"], event["config"]["simulation"]["parameters"] = (
            identity,
            one.experiment(setting).simulation.parameters,
        )
        recovery_table.append(journal, event)
        done[identity] = event
        console.print(f"  {recovery_report.summary(event)}", highlight=False)
        draw()
    console.print(f"wrote {target}")


if __name__ == "__main__":
    run(app)
