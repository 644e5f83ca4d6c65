"""Install the 50 official flyvis models, or list them."""

from __future__ import annotations

from _cli import make_app, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  # from flyvis' own download, or prints how to make it\n
  python scripts/fetch_flyvis.py\n
  python scripts/fetch_flyvis.py results_pretrained_models.zip\n
  python scripts/fetch_flyvis.py ~/flyvis_data/results --to /data/flyvis\n
  python scripts/fetch_flyvis.py --list\n
  python scripts/meta_loop.py --set simulation.parameters=flow/0000/000
"""

GUIDE = """The models are published by the authors of flyvis (Lappalainen et al. 2024); its own command downloads them.
In an environment of its own (flyvis brings torch; Python 3.9 to 3.12):

  python -m venv flyvis-env
  flyvis-env/bin/pip install flyvis
  FLYVIS_ROOT_DIR=flyvis_data flyvis-env/bin/flyvis download-pretrained --skip_large_files

Then, here:

  python scripts/fetch_flyvis.py flyvis_data

Nothing to download is needed for simulation.parameters=sampled."""


@app.command(epilog=EXAMPLES)
def main(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="Folder or zip of the official download.", show_default="what flyvis has downloaded on this machine"
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--to", help="Where to keep the models. Default: FLYJAX_DATA/flyvis or ~/.cache/flyjax/flyvis."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the models that are there and check their sums.")] = False,
):
    """Copy flow/0000/000 .. 049 into the cache: each read, checked, and noted with its SHA-256."""
    from flyjax.ground_truth import flyvis_ensemble
    from flyjax.utils.errors import UserError

    folder = target or flyvis_ensemble.cache_folder()
    if show:
        states = flyvis_ensemble.installed(folder)
        for name, state in states.items():
            print(f"{name}  {state}")
        bad = [name for name, state in states.items() if state in ("changed", "missing")]
        print(f"{len(states) - len(bad)} of {flyvis_ensemble.N_MODELS} models in {folder}")
        if bad:
            raise UserError(f"{len(bad)} changed or missing ({bad[0]}): run this script again with the download")
        return
    source = source or flyvis_ensemble.find_download()
    if source is None:
        print(GUIDE)
        raise typer.Exit(1)
    if source.is_file():
        same = flyvis_ensemble.sha256(source) == flyvis_ensemble.ARCHIVE_SHA256
        print(
            f"{source}: "
            + (
                "flyvis 1.2.0's archive, checksum as published"
                if same
                else "not flyvis 1.2.0's archive by its checksum; every model in it is checked"
            )
        )
    names = flyvis_ensemble.install(source, folder)
    ok = [name for name, state in flyvis_ensemble.installed(folder).items() if state == "ok"]
    print(
        f"{len(names)} models copied from {source}; {len(ok)} of {flyvis_ensemble.N_MODELS} in {folder}, sums checked"
    )
    missing = sorted({f"flow/0000/{k:03d}" for k in range(flyvis_ensemble.N_MODELS)} - set(ok))
    if missing:
        print(f"not there: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    print(f"use one: --set simulation.parameters={names[0]}")


if __name__ == "__main__":
    run(app)
