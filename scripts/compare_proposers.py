"""Compare proposers: regret at equal budgets from the same root."""

from __future__ import annotations

import datetime
import time
from _cli import ROOT, make_app, prepare_devices, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  # synthetic landscapes, 10 seeds each; minutes\n
  python scripts/compare_proposers.py\n
  # real trainings, as many as the time allows\n
  python scripts/compare_proposers.py --landscape trainings --minutes 15\n
  # the study of real trainings, answered from its table; minutes\n
  python scripts/compare_proposers.py --landscape study --seeds 30\n
  python scripts/compare_proposers.py --landscape valley --proposer tpe\n
  python scripts/compare_proposers.py --proposer llm --set search.max_usd=2\n
  # recorded answers, no key\n
  python scripts/compare_proposers.py --transcripts experiments/transcripts

llm and hybrid need ANTHROPIC_API_KEY or recorded answers (--transcripts, files LANDSCAPE_SEED_PROPOSER.jsonl as
scripts/report.py --transcript writes them); replay needs --set search.transcript=FILE, the journal of a run of the
same size. Proposers that cannot run are omitted, and the table names them. Finished rows and trainings are stored in
--cache: the same command continues, and may add proposers and landscapes. Remove the folder after changing a proposer.
"""


def chosen_proposers(
    named: list[str] | None, transcript: str | None, recorded: Path | None
) -> tuple[list[str], list[str]]:
    """(proposers to run, why others are left out)."""
    from flyjax.search.proposers import NAMES
    from flyjax.utils import environment
    from flyjax.utils.errors import UserError, nearest

    for name in named or ():
        if name not in NAMES:
            raise UserError(f"no proposer {name!r}; there are: {', '.join(NAMES)}.{nearest(name, NAMES)}")
    left_out = {} if environment.api_key() else dict.fromkeys(("llm", "hybrid"), "no ANTHROPIC_API_KEY")
    if recorded is not None:
        recorded_names = [name for name in ("llm", "hybrid") if any(recorded.glob(f"*_{name}.jsonl"))]
        if not recorded_names:
            raise UserError(
                f"{recorded} has no recorded answers (LANDSCAPE_SEED_llm.jsonl); see scripts/report.py --transcript"
            )
        left_out = {name: f"no answers in {recorded.name}" for name in ("llm", "hybrid") if name not in recorded_names}
    if transcript is None:
        left_out["replay"] = "no search.transcript"
    if named:
        refused = [f"{n} ({left_out[n]})" for n in named if n in left_out]
        if refused:
            raise UserError(f"cannot run {', '.join(refused)}; see --help")
        return list(dict.fromkeys(named)), []
    return [n for n in NAMES if n not in left_out], [f"{n} ({why})" for n, why in left_out.items()]


def study_line(name: str, fidelity, best: float) -> str:
    """What is known of a condition's benchmark."""
    return (
        f"- {name}: answered from {fidelity.n} real trainings; on held-out configurations the expected value has an R2 "
        f"of {fidelity.skill.value:.2f} ({fidelity.skill.low:.2f} to {fidelity.skill.high:.2f}, at most "
        f"{fidelity.attainable:.2f}), a drawn training a rank correlation of {fidelity.rank:.2f} with a real one (two "
        f"seeds: {fidelity.rank_of_seeds:.2f}); best expected W R2 {best:.2f}."
    )


@app.command(epilog=EXAMPLES)
def main(
    landscapes: Annotated[
        list[str] | None,
        typer.Option(
            "--landscape",
            help="bowl, valley, hills, plateau, cliff, or made-up for these five; trainings; study, or study-tuning "
            "for the conditions to tune a proposer on; repeatable.",
            show_default="made-up",
        ),
    ] = None,
    proposers: Annotated[
        list[str] | None, typer.Option("--proposer", help="Repeatable. Default: all that can run here.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Landscapes of each kind; for trainings, run seeds.", min=1)] = 10,
    candidates: Annotated[int, typer.Option(help="Nodes per iteration on made-up landscapes.", min=1)] = 4,
    iterations: Annotated[int, typer.Option(help="Iterations on made-up landscapes.", min=1)] = 12,
    config: Annotated[
        Path, typer.Option(help="Experiment file of the real trainings.", show_default="experiments/proposers.yaml")
    ] = ROOT / "experiments" / "proposers.yaml",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. search.max_usd=2; repeatable.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="No real training begins after so many minutes.")] = 15.0,
    transcripts: Annotated[
        Path | None, typer.Option(help="Folder of recorded answers of llm and hybrid, played instead of asking.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Table of trainings, or the run of a sweep with output trainings, for study and study-tuning.",
            show_default="experiments/results/landscape/trainings.csv.gz",
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Finished rows and trainings.")] = Path("runs/proposers"),
    out: Annotated[Path, typer.Option(help="Where proposers.md, .csv and .png go.")] = Path("runs/proposers"),
):
    """Compare proposers at equal budgets from the same root, with paired tests.

    Writes proposers.md (tables), proposers.csv (a row per search) and proposers.png (regret curves) from all
    rows of the landscapes named.
    """
    prepare_devices()
    from flyjax.config import apply_overrides, load_experiment, parse_experiment
    from flyjax.search.synthetic import FAMILIES, NOISE, REAL, STUDY, STUDY_TUNING
    from flyjax.utils.errors import UserError, nearest

    wanted = [x for name in landscapes or ["made-up"] for x in (FAMILIES if name == "made-up" else [name])]
    known = (*FAMILIES, REAL, STUDY, STUDY_TUNING)
    for name in wanted:
        if name not in known:
            raise UserError(f"no landscape {name!r}; there are: {', '.join(known)}, made-up.{nearest(name, known)}")
    transcript = apply_overrides({}, settings).get("search", {}).get("transcript")
    names, left_out = chosen_proposers(proposers, transcript, transcripts)
    # From here on it takes seconds to load.
    from flyjax.cli.console import Console
    from flyjax.experiments import proposer_benchmark
    from flyjax.report.proposers import add_regret, write_comparison
    from flyjax.search.proposers.samplers import fits_cmaes

    made_up = parse_experiment(
        apply_overrides(
            proposer_benchmark.made_up_experiment(candidates, iterations).model_dump(mode="json"), settings
        ),
        "--set",
    )
    trainings = load_experiment(config, settings)
    for name in ("target", "patience", "max_nodes", "max_wall_s"):
        if getattr(made_up.search, name) is not None or (
            REAL in wanted and getattr(trainings.search, name) is not None
        ):
            raise UserError(
                f"search.{name} ends searches at different lengths: a comparison has equal budgets; leave it out"
            )
    unfit = [
        e.name for e, used in ((made_up, wanted != [REAL]), (trainings, REAL in wanted)) if used and not fits_cmaes(e)
    ]
    if unfit and "cmaes" in names and not proposers:
        names.remove("cmaes")
        left_out.append("cmaes (it needs two or more parameters and four or more candidates)")
    console, began = Console(), time.monotonic()
    real = (
        proposer_benchmark.RealTrainings(trainings, cache / "trainings", began + 60 * minutes)
        if REAL in wanted
        else None
    )
    study: dict[str, proposer_benchmark.StudyLandscape] = {}
    for name in {STUDY, STUDY_TUNING} & {*wanted}:
        study |= proposer_benchmark.study_landscapes(table, name == STUDY_TUNING)
    cases = [*dict.fromkeys(name for name in wanted if name not in (STUDY, STUDY_TUNING)), *study]
    rows = proposer_benchmark.compare(
        [(name, seed) for name in cases for seed in range(seeds)],
        names,
        lambda name: trainings if name == REAL else made_up,
        cache,
        ROOT / "protocol.md",
        real,
        console.log,
        transcripts,
        study,
    )
    complete = add_regret(rows)
    if not complete:
        raise UserError("no seed is complete for all proposers yet; run the same command again, or give more --minutes")
    spent = sum(r["wall_s"] for r in complete) / 60
    from flyjax.utils.system import devices, hardware

    found = devices()
    machine = f"{hardware()}, JAX {found['versions']['jax']} on {found['device_kind']}"
    about = [f"- {datetime.date.today().isoformat()}, {machine}; {spent:.0f} minutes of searching in all."]
    about += [study_line(name, one.benchmark.fidelity, one.benchmark.best) for name, one in study.items()]
    if {*wanted} & {*FAMILIES}:
        about.append(
            f"- Synthetic landscapes (flyjax/search/synthetic.py; their number in the panel's title): {candidates} "
            f"candidates x {iterations} iterations = {candidates * iterations} nodes for each proposer, noise of a "
            f"training {NOISE:g}. The protocol's first moves are no prior knowledge there."
        )
    done = [r for r in complete if r["landscape"] == REAL]
    if done:
        s, t = trainings.search, trainings.simulation
        about.append(
            f"- Trainings ({config.name}): extent {t.extent}, {t.n_frames} frames, width {trainings.model.width}, "
            f"{s.n_candidates} x {s.n_iter_block} = {s.n_candidates * s.n_iter_block} nodes for each proposer, "
            f"{len({r['seed'] for r in done})} seeds complete for all; regret 0 is the best single training that any "
            f"search found. Here the protocol's first moves, which `rules` follows, are knowledge of the problem."
        )
    if transcripts is not None:
        about.append(f"- llm and hybrid: recorded answers, see the README in {transcripts.name}.")
    if left_out:
        about.append(f"- Left out: {', '.join(left_out)}.")
    path = write_comparison(out, rows, "\n".join(about))
    trained = f"; {real.trained} trainings in {real.seconds:.0f} s" if real else ""
    console.log(path.read_text(encoding="utf-8"))
    console.log(f"Wrote {path}, .csv and .png after {time.monotonic() - began:.0f} s{trained}")


if __name__ == "__main__":
    run(app)
