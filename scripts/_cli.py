"""Put the checkout on the path, so that the scripts run without an installation; options that several have."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  before anything that an older Python cannot read or lacks
    sys.stderr.write("error: flyjax needs Python 3.11 or newer, this is {}.{}\n".format(*sys.version_info))
    sys.exit(2)

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flyjax.cli.app import commit, make_app, prepare_devices, run  # noqa: E402

Settings = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. training.batch_size=4; repeatable.")]
Viewers = Annotated[
    list[str] | None,
    typer.Option(
        "--log", help="Also watch in tensorboard, wandb or trackio; repeatable. history.jsonl is always written."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan (programs, memory, recordings, time), train nothing.")
]
Memory = Annotated[
    float | None, typer.Option(help="With --dry-run: plan for an accelerator of so many GB instead of this machine.")
]


def _also_as(ctx: typer.Context, formats: list[str] | None) -> list[str] | None:
    from flyjax.report.figures.exports import FORMATS, also_as

    for name in formats or ():
        if name not in FORMATS:
            raise typer.BadParameter(f"{name}: one of {', '.join(FORMATS)}")
    ctx.with_resource(also_as(formats or ()))
    return formats


Figures = Annotated[
    list[str] | None,
    typer.Option(
        "--figures",
        callback=_also_as,
        help="Also write every figure as svg or pdf, with the numbers behind it as CSV; repeatable.",
    ),
]
__all__ = ["ROOT", "Figures", "DryRun", "Memory", "Settings", "Viewers", "commit", "make_app", "prepare_devices", "run"]
