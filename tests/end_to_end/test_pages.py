"""The way of a new user through the documentation: every block of every page is carried out, at smaller sizes.

Pages with files of their own are carried out where their results are tested: `ELSEWHERE`.
"""

import importlib
import json
import re

import pytest
import typer
from PIL import Image
from support.pages import follow

#: Other tests of this folder and of tests/experiments.
ELSEWHERE = {"own_connectome.md", "own_ground_truth.md", "own_parts.md", "own_recording.md"}
#: Commands of studies and measurements that take minutes: `test_commands_have_only_options_that_exist` reads them.
NOT_RUN = {"CONTRIBUTING.md", "protocol.md", "results.md", "performance.md", "scaling.md"}
SMALL = (
    " --set simulation.extent=0 --set simulation.n_frames=200 --set simulation.n_test_frames=40 --set model.width=8"
    " --set training.data_augmentation_loop=10"
)
SEARCH = (
    f"{SMALL} --set search.n_blocks=1 --set search.n_candidates=2 --set search.n_iter_block=1"
    " --set search.simulation_ranges={} --set search.simulations=[] --set search.confirm_share=0"
)
#: In the order in which they are read, for what one makes is used by the next.
TOUR = {
    "docs/README.md": {"python scripts/meta_loop.py\n": f"python scripts/meta_loop.py{SEARCH}\n"},
    "README.md": {"n_frames=1600": "n_frames=100, n_test_frames=40", "extent=1": "extent=0"},
    "docs/tutorial.md": {
        "python scripts/meta_loop.py\n": f"python scripts/meta_loop.py{SEARCH}\n",
        "--node 7": "--node 2",
        "--extent 3 --show": "--extent 0 --n-frames 40 --show",
        "n_frames=1600": "n_frames=100, n_test_frames=40",
        "extent=1": "extent=0",
        "n_frames=200, dt": "n_frames=20, dt",
    },
    "docs/tuning.md": {
        " flow/0000/000  ": " sampled --extent 0  ",
        "extent=3": "extent=0",
        "speeds=(9.7, 19.0)": "speeds=(19.0,)",
        "--protocol moving_edges  ": "--protocol moving_edges --set speeds=[19]  ",
    },
    "docs/how_to/read_a_run.md": {
        " --open": "",
        "runs/a runs/b": "runs/quickstart experiments/results/quickstart",
        "--node 7": "--node 2",
    },
    "docs/landscape.md": {
        "runs/a runs/b": "runs/quickstart experiments/results/quickstart",
        "--set sweep.n_sobol=512": "--set sweep.n_sobol=2"
        " --set simulation.extent=0 --set simulation.n_frames=40 --set simulation.n_test_frames=20",
        "benchmark().items()": "{}.items()",  # it fits eleven maps
    },
    "docs/how-to.md": {"DIR_OR_FILM": f"film.gif{SMALL} --set search.simulation_ranges={{}}"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tour takes place."""
    return tmp_path_factory.mktemp("tour")


@pytest.mark.parametrize("page", TOUR)
def test_a_page_can_be_followed(page, root, folder, monkeypatch):
    monkeypatch.chdir(folder)
    frames = [Image.new("L", (64, 64), shade) for shade in range(20, 240, 10)]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])
    follow(root / page, TOUR[page])


#: Endings that docs/metrics.md explains once for all metrics.
ENDINGS = re.compile(
    r"(_(data|refit|refit_corrected|ceiling|identifiable|slope|identity|dropped|inliers|outliers|true))+$"
)


def test_every_metric_of_a_node_is_documented(root, folder):
    documented = set(re.findall(r"`(\w+)`", (root / "docs" / "metrics.md").read_text("utf-8")))
    metrics = json.loads((folder / "runs" / "quickstart" / "nodes" / "0001" / "metrics.json").read_text())
    other = {"computed_on", "reasons", "per_seed"}
    names = {n for n in metrics if n not in documented | other}
    assert {n for n in names if ENDINGS.sub("", n) not in documented} == set()


def test_every_page_with_code_is_followed(root):
    pages = {p.relative_to(root).as_posix() for p in (*root.glob("*.md"), *(root / "docs").rglob("*.md"))}
    with_code = {p for p in pages if re.search(r"^```(python|bash|yaml)", (root / p).read_text("utf-8"), re.M)}
    assert {p for p in with_code if p.split("/")[-1] not in ELSEWHERE | NOT_RUN} == set(TOUR)


def options(script):
    """Every option of a script and of its subcommands."""
    commands = [typer.main.get_command(importlib.import_module(script).app)]
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
    return {o for command in commands for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}


def test_commands_have_only_options_that_exist(root):
    unknown = []
    for page in (*root.glob("*.md"), *(root / "docs").rglob("*.md")):
        text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))
        for script, arguments in re.findall(r"scripts/(\w+)\.py\b([^`\n#]*)", text):
            used = set(re.findall(r"(?<![\w-])--[\w-]+", arguments))
            unknown += [f"{page.name}: {script} {o}" for o in used - options(script)]
    assert unknown == []
