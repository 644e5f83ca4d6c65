"""Search for the training settings that recover the circuit: train, read, choose, propose, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _cli import ROOT, commit, prepare_devices, run

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

EXAMPLES = """
Examples:

  python scripts/meta_loop.py                              the quickstart: minutes on two cores, no key, no download\n
  python scripts/meta_loop.py --proposer rules             without a language model even where ANTHROPIC_API_KEY is set\n
  python scripts/meta_loop.py experiments/full_scale.yaml --run runs/davis --set search.max_usd=20\n
  python scripts/meta_loop.py --set search.n_blocks=1 --set search.n_candidates=2 --run runs/short\n
  python scripts/meta_loop.py --dry-run                    the plan, programs, memory and time; trains nothing\n
  python scripts/meta_loop.py --dry-run --proposer llm     and its cost and first prompt, without a key\n
  python scripts/meta_loop.py --run runs/short --revert-protocol    take the newest edit of the run's protocol back

The same command goes on with a run that was stopped, by Ctrl-C or kill -9. A limit that it leaves out stays the run's own; the
config file names one only where it says otherwise than at an earlier call; --set search.max_usd=null drops it. search.n_blocks lowered
in the middle of a block counts at the block's end. search.max_nodes, max_wall_s, target and patience may end a run inside a block,
which then has no summary until a higher limit lets it go on.

Exit code 0: finished, or not approved; 2: an error or a spent budget, in one line; 130: Ctrl-C.
"""


@app.command(epilog=EXAMPLES)
def main(
    config: Annotated[Path, typer.Argument(help="Experiment file (YAML).", show_default="experiments/quickstart.yaml")] = ROOT / "experiments" / "quickstart.yaml",
    run_dir: Annotated[Path | None, typer.Option("--run", help="Run directory; an existing one is resumed. Default: runs/<config name>.")] = None,
    proposer: Annotated[str | None, typer.Option(help="llm, rules, random, tpe, cmaes, hybrid or replay. Default: the run's own; of a new run llm where ANTHROPIC_API_KEY is set, else rules.")] = None,
    protocol: Annotated[Path | None, typer.Option(help="Start from an earlier run's protocol.md: its learned rules carry over.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. simulation.extent=2; repeatable.")] = None,
    allow_fallback: Annotated[bool, typer.Option("--allow-fallback", help="Replace a missing video data set by a built-in stimulus, and say so everywhere.")] = False,
    approve: Annotated[bool, typer.Option("--approve", help="Ask before each iteration. At N nothing is lost: write into user_input.md of the run what the next step should do otherwise, and run the same command again.")] = False,
    viewers: Annotated[list[str] | None, typer.Option("--log", help="Also watch in tensorboard, wandb or trackio; repeatable. history.jsonl is always written.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, with --proposer llm also the cost and the next prompt; train nothing.")] = False,
    memory: Annotated[float | None, typer.Option(help="With --dry-run: plan for an accelerator of so many GB instead of this machine.")] = None,
    revert: Annotated[bool, typer.Option("--revert-protocol", help="Take back the newest edit of the run's protocol, then stop.")] = False,
):  # fmt: skip
    """Search for the training settings that recover the circuit.

    Trains K candidates at once, reads the results, chooses the parent in a UCB tree and proposes the next K,
    block after block; at block ends it edits the run's own copy of protocol.md. Everything is in the run
    directory: journal.jsonl (the state), analysis.md (the log), nodes/ (metrics, figures, parameters), report.html.
    """
    prepare_devices()
    from flyjax.config import load_experiment, read_config
    from flyjax.search.proposers import make_proposer, resolve_name
    from flyjax.utils import environment

    given = [*(settings or ()), *([f"search.proposer={proposer}"] if proposer is not None else [])]
    experiment = load_experiment(config, given)
    if revert:
        from flyjax.search.run.revert import revert_protocol

        undone = revert_protocol(run_dir or Path("runs") / experiment.name)
        lines = [line for line in undone["diff"].splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        typer.echo(f"protocol.md: {undone['reason']} ({len(lines)} lines changed)")
        return
    from flyjax.cli.console import Console, with_stand_ins
    from flyjax.experiments.run_dir import check_run_dir
    from flyjax.search.run.opening import check_free
    from flyjax.search.run.resume import changeable, changed_settings, resume_experiment, setting_text, started_run
    from flyjax.utils.errors import UserError

    console = Console()
    run_dir = run_dir or Path("runs") / experiment.name
    check_run_dir(run_dir)
    unasked, was = experiment.search.proposer == "auto", started_run(run_dir)
    config_overrides = changeable(read_config(config))
    if was is None:
        check_free(run_dir)
    else:
        experiment, config_overrides = resume_experiment(experiment, was, config_overrides, given)
    experiment, available, stand_ins = with_stand_ins(experiment, allow_fallback, needed=not dry_run)
    for missing, used in stand_ins.items():
        console.say(f"{missing} is not on this machine: {used} stands in for it (--allow-fallback)")
    changed = changed_settings(was, experiment, run_dir) if was is not None else {}
    if changed:
        console.say(f"{run_dir} has begun; this call {'would change' if dry_run else 'changes'}")
        for name, values in changed.items():
            console.say(f"  {name}: {' -> '.join(map(setting_text, values))}")
    if protocol is not None and not protocol.is_file():
        raise UserError(f"no protocol {protocol}; name the protocol.md of an earlier run")
    if protocol is not None and (run_dir / "journal.jsonl").is_file():
        console.say(
            f"--protocol has no effect: {run_dir} has begun and goes on with its own; choose another --run to start from it"
        )
    name = resolve_name(experiment.search.proposer, run_dir)
    if dry_run:
        from flyjax.experiments.forecast import forecast_search, given_memory
        from flyjax.search.run.preview import preview

        console.say(forecast_search(experiment, given_memory(memory)))
        console.say(preview(experiment, run_dir, ROOT / "protocol.md", available, name))
        return
    has_key = bool(environment.api_key())
    if unasked and name == "rules" and has_key:
        console.say(f"{run_dir} goes on with `rules`, as before; --proposer llm asks the language model from here on.")
    elif unasked and name == "rules":
        console.say(
            "No ANTHROPIC_API_KEY: the proposer is `rules`, which follows protocol.md without a language model."
        )
    if name in ("llm", "hybrid"):
        from flyjax.search.llm.proposer import announce

        console.say(announce(experiment))
    console.run(
        experiment,
        run_dir,
        make_proposer(name, experiment, run_dir),
        template=ROOT / "protocol.md",
        earlier=protocol,
        available=available,
        stand_ins=stand_ins,
        ask=approve,
        commit=commit(),
        config_overrides=config_overrides,
        viewers=viewers or (),
    )


if __name__ == "__main__":
    run(app)
