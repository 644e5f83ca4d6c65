"""Search for the training settings that recover the circuit: train, evaluate, choose, propose, repeat."""

from __future__ import annotations

from _cli import (
    ROOT,
    Coordinator,
    Devices,
    Distributed,
    Figures,
    Memory,
    Process,
    Processes,
    Viewers,
    Workers,
    commit,
    connect,
    is_follower,
    make_app,
    prepare_devices,
    run,
    use_workers,
)
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  # the quickstart: minutes on two cores, no key, no download\n
  python scripts/meta_loop.py\n
  # without a language model even if ANTHROPIC_API_KEY is set\n
  python scripts/meta_loop.py --proposer rules\n
  python scripts/meta_loop.py --run runs/short --set search.n_blocks=1\n
  python scripts/meta_loop.py experiments/full_scale.yaml --run runs/davis\n
  # the plan, with memory and time; with llm also cost and first prompt\n
  python scripts/meta_loop.py --dry-run\n
  python scripts/meta_loop.py --dry-run --proposer llm\n
  # undo the newest edit of the run's protocol\n
  python scripts/meta_loop.py --run runs/short --revert-protocol

The same command continues a run that was stopped, by Ctrl-C or kill -9. A limit that is not given stays the run's
own; the config file changes one only where the file was edited; --set search.max_usd=null removes it. A lower
search.n_blocks takes effect at the end of a block. search.max_nodes, max_wall_s, target and patience may end a run
inside a block, which has no summary until a higher limit continues it.

Exit code 0: finished, or not approved; 2: an error or a spent budget, in one line; 130: Ctrl-C; 143, 129, 138: SIGTERM,
SIGHUP, SIGUSR1; 75: one of several processes was lost. A signal saves the training at the end of its chunk of 250
steps.
"""


@app.command(epilog=EXAMPLES)
def main(
    config: Annotated[
        Path, typer.Argument(help="Experiment file (YAML).", show_default="experiments/quickstart.yaml")
    ] = ROOT / "experiments" / "quickstart.yaml",
    run_dir: Annotated[
        Path | None,
        typer.Option("--run", help="Run directory; an existing one is resumed. Default: runs/<config name>."),
    ] = None,
    proposer: Annotated[
        str | None,
        typer.Option(
            help="llm, rules, random, tpe, cmaes, map, hybrid or replay. Default: the run's own; for a new run llm if "
            "ANTHROPIC_API_KEY is set, else rules."
        ),
    ] = None,
    protocol: Annotated[
        Path | None, typer.Option(help="Start from the protocol.md of an earlier run, with its learned rules.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. simulation.extent=2; repeatable.")
    ] = None,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback",
            help="Replace a missing video data set by a built-in stimulus; config, journal, log and report name it.",
        ),
    ] = False,
    approve: Annotated[
        bool,
        typer.Option(
            "--approve",
            help="Ask before each iteration. After N nothing is lost: write instructions for the next iteration into "
            "user_input.md of the run and run the same command again.",
        ),
    ] = False,
    viewers: Viewers = None,
    figures: Figures = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan, with --proposer llm also the cost and the next prompt; train nothing."
        ),
    ] = False,
    memory: Memory = None,
    devices: Devices = None,
    revert: Annotated[
        bool, typer.Option("--revert-protocol", help="Undo the newest edit of the run's protocol, then stop.")
    ] = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process: Process = None,
    processes: Processes = None,
    workers: Workers = None,
):
    """Search for the training settings that recover the circuit.

    Trains K candidates at once, evaluates them, chooses the parent in a UCB tree and proposes the next K, block after
    block; at block ends it edits the run's own copy of protocol.md. Everything is in the run directory:
    journal.jsonl (the state), analysis.md (the log), nodes/ (metrics, figures, parameters), report.html.
    """
    began = monotonic()
    prepare_devices()
    connect(distributed, coordinator, process, processes, dry_run)
    use_workers(workers, dry_run)
    from flyjax.config import load_experiment
    from flyjax.utils.run_directory import run_path

    given = [*(settings or ()), *([f"search.proposer={proposer.lower()}"] if proposer is not None else [])]
    experiment = load_experiment(config, given)
    run_dir = run_path(run_dir, experiment.name)
    if revert:
        from flyjax.search.run.user_files import revert_protocol

        undone = revert_protocol(run_dir)
        lines = [line for line in undone["diff"].splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        typer.echo(f"protocol.md: {undone['reason']} ({len(lines)} lines changed)")
        return
    if is_follower(run_dir, experiment, dry_run):
        return
    from flyjax.cli.search import SearchRun
    from flyjax.training.loggers import MetricLogger

    MetricLogger(viewers or (), run_dir, experiment.name)  # a missing package is an error of a dry run, too
    search, template = (
        SearchRun(experiment, run_dir, config, given, protocol, allow_fallback, dry_run),
        ROOT / "protocol.md",
    )
    if dry_run:
        from flyjax.experiments.forecast import forecast_search, given_memory
        from flyjax.search.run.status import preview

        search.console.log(forecast_search(search.experiment, given_memory(memory), devices))
        search.console.log(preview(search.experiment, run_dir, template, search.available, search.proposer))
        return
    search.run(template, commit(), approve, viewers or (), monotonic() - began)


if __name__ == "__main__":
    run(app)
