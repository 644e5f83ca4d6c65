"""Train the rows of recovery tables, resumable row by row, and draw the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from _cli import ROOT, prepare_devices, run

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

EXAMPLES = """
Examples:

  python scripts/recovery.py                                         every experiments/recovery_*.yaml\n
  python scripts/recovery.py experiments/recovery_learner.yaml --row "all of it"\n
  python scripts/recovery.py --checkpoint flow.npz                   a file in the place of flow/0000/000\n
  python scripts/recovery.py --render                                only draw the tables again
"""


@app.command(epilog=EXAMPLES)
def main(
    tables: Annotated[Optional[list[Path]], typer.Argument(help="Table files; by default all experiments/recovery_*.yaml.")] = None,
    row: Annotated[Optional[list[str]], typer.Option(help="Only rows whose name contains this; repeatable.")] = None,
    journal: Annotated[Path, typer.Option(help="Finished rows, one line each.")] = ROOT / "experiments" / "results" / "recovery.jsonl",
    table: Annotated[Optional[Path], typer.Option(help="The Markdown to write; by default beside the journal.")] = None,
    work: Annotated[Path, typer.Option(help="Recordings and checkpoints.")] = Path("runs/recovery"),
    checkpoint: Annotated[Optional[Path], typer.Option(help="A file of parameters to read in the place of flow/0000/000.")] = None,
    render: Annotated[bool, typer.Option("--render", help="Train nothing.")] = False,
):
    """Train every row that the journal does not hold yet, and write the tables.

    A row is a setting with its seeds. The same command after an interruption goes on with the row it was in.
    """
    prepare_devices()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from flyjax import rows
    from flyjax.benchmarking import machine
    from flyjax.errors import UserError

    console = Console()
    columns = TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn()

    def trained(setting, experiment):
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("recording, compiling", total=None)

            def show(p):
                loss = "" if p.loss is None else f"loss {p.loss:.3g}"
                bar.update(task, completed=p.lane_steps, total=p.total_lane_steps, description=loss)

            return rows.run_row(one, setting, experiment, work, machine(), show)

    known = [rows.load_table(path) for path in tables or sorted((ROOT / "experiments").glob("recovery_*.yaml"))]
    done = {event["identity"]: event for event in rows.read_journal(journal)}
    found: list[tuple] = []
    target = table or journal.with_suffix(".md")

    for one in known:
        found.append((one, {}))
        for setting in one.rows:
            experiment = one.experiment(setting)
            identity = rows.identity(experiment, setting)
            wanted = not render and (not row or any(part in setting.name for part in row))
            if identity not in done and wanted:
                if checkpoint is not None and experiment.simulation.parameters == "flow/0000/000":
                    experiment = one.experiment(setting, {"simulation.parameters": str(checkpoint)})
                console.print(f"{one.name}: {setting.name}")
                try:
                    event = trained(setting, experiment)
                except UserError as error:
                    console.print(f"  not run: {error}")
                    continue
                # The name of the parameters counts, not where this machine keeps them.
                event["identity"], event["config"]["simulation"]["parameters"] = identity, one.experiment(setting).simulation.parameters
                rows.append(journal, event)
                done[identity] = event
                console.print(f"  {rows.line(event)}", highlight=False)
            if identity in done:
                found[-1][1][setting.name] = done[identity]
        target.write_text(rows.render(found))  # after every table: nothing is lost
    console.print(f"wrote {target}")


if __name__ == "__main__":
    run(app)
