"""Output of a search at a terminal and in a log file, and exit codes of scripts."""

import errno
import importlib
import io
import logging
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console as RichConsole
from support.search_landscape import metrics, r2

from flyjax.cli import app, console, progress
from flyjax.cli import search as cli_search
from flyjax.config import Training, parse_experiment
from flyjax.experiments import forecast, train_nodes
from flyjax.report.figures.drawing import save_contents
from flyjax.report.figures.node import Embedding
from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.proposers import make_proposer
from flyjax.training import LaneProgress, Progress, train_sweep
from flyjax.training.grouping import Lane
from flyjax.utils.errors import UserError, as_user_errors, user_message

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "name": "small",
    "simulation": {"extent": 1, "visual_input_type": "scenes_texture", "n_frames": 1600},
    "search": {"n_candidates": 2, "n_iter_block": 2, "n_blocks": 2, "confirm_share": 0, "simulation_ranges": {}},
}


def trained(experiment, specs, run_dir, **options):
    """On the landscape, in no time."""
    out = {}
    for spec in specs:
        values = [r2(spec.training.model_dump(), None, seed) for seed in spec.seeds]
        out[spec.id] = {
            "metrics": metrics(sum(values) / len(values)),
            "per_seed": [metrics(v) for v in values],
            "reason": "",
            "activity": "quiet",
        }
    return out


@pytest.fixture
def cli(root, monkeypatch):
    """The scripts' shared part, as they import it; what it does to loggers is undone."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    own = logging.getLogger("flyjax")
    before = {name: logging.getLogger(name).level for name in ("orbax", "absl", "jax._src.xla_bridge")}
    state = own.propagate, list(own.handlers)
    yield app
    own.propagate, own.handlers[:] = state
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def call(cli, tmp_path, monkeypatch, capsys):
    """`meta_loop.py small.yaml --run run …`; gives (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.setattr(cli_search, "train_nodes", trained)
    monkeypatch.setattr(cli_search, "write_report", lambda run_dir: run_dir / "report.html")
    monkeypatch.setattr(forecast, "measured_rate", lambda: forecast.Rate(1.0, "given"))
    meta_loop = importlib.import_module("meta_loop")

    def command(*arguments, config="small.yaml", run="run"):
        monkeypatch.setattr(sys, "argv", ["meta_loop.py", config, "--run", run, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.run(meta_loop.app)
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return command


def limits(tmp_path, run="run"):
    events = [e for e in read_journal(tmp_path / run) if e["event"] in ("run_started", "run_resumed")]
    return events[-1]["experiment"]["search"]


# --- limits that were given are kept ---


def test_a_call_that_forgets_its_limits_keeps_them(call, tmp_path):
    given = [
        "--set",
        "search.max_usd=5",
        "--set",
        "search.max_nodes=3",
        "--set",
        "search.llm.model=m1",
        "--set",
        "search.llm.effort=low",
    ]
    code, out, _ = call("--proposer", "rules", *given)
    assert (
        code == 0
        and "limits: max_usd=5, max_nodes=3" in out
        and "finished: search.max_nodes=3 reached; 3 of 3 nodes" in out
    )
    code, out, _ = call()
    assert code == 0 and "3 of 3 nodes" in out and "changes" not in out
    _, plan, _ = call("--dry-run")
    assert (
        "limits: max_usd=5, max_nodes=3" in plan
        and "run has begun: 3 of 3 nodes" in plan
        and "nothing is left to train" in plan
    )
    # What is named counts and is printed; null drops a limit; what is not named stays, key by key.
    named = [
        "--proposer",
        "random",
        "--set",
        "search.max_usd=null",
        "--set",
        "search.max_nodes=5",
        "--set",
        "search.llm.effort=high",
    ]
    for dry in (["--dry-run"], []):
        code, out, _ = call(*named, *dry)
        out = out.replace("call would change", "call changes")
        changes = [line.strip() for line in out.splitlines() if " -> " in line and line.startswith("  search.")]
        assert code == 0 and "run has begun; this call changes" in out
        assert set(changes) == {
            "search.max_usd: 5 -> none",
            "search.max_nodes: 3 -> 5",
            "search.proposer: rules -> random",
            "search.llm.effort: low -> high",
        }
        assert "limits: max_nodes=5" in out
    assert "at most 2 nodes in 1 iteration left" in call(*named[2:], "--set", "search.max_nodes=7", "--dry-run")[1]
    now = limits(tmp_path)
    assert (now["max_usd"], now["max_nodes"], now["llm"]["model"], now["llm"]["effort"]) == (None, 5, "m1", "high")
    call()
    assert limits(tmp_path) == now


def test_a_file_that_names_a_limit_changes_it(call, tmp_path):
    call("--set", "search.max_usd=5", "--set", "search.max_nodes=3")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**SMALL, "search": {**SMALL["search"], "max_usd": 2}}))
    _, out, _ = call("--set", "search.max_nodes=5", config="other.yaml")
    assert "  search.max_usd: 5 -> 2\n" in out and limits(tmp_path)["max_usd"] == 2


def test_a_limit_given_once_is_not_lifted_by_a_file_that_says_what_it_always_said(call, tmp_path):
    def write(**search):
        (tmp_path / "small.yaml").write_text(yaml.safe_dump({**SMALL, "search": {**SMALL["search"], **search}}))

    write(max_usd=2, n_blocks=3)
    call(
        "--set",
        "search.max_usd=0.5",
        "--set",
        "search.n_blocks=1",
        "--set",
        "search.max_nodes=2",
        "--proposer",
        "rules",
    )
    for config in ("small.yaml", "run/config.yaml", "small.yaml"):
        for dry in (["--dry-run"], []):
            code, out, _ = call(*dry, config=config)
            assert code == 0 and "this call" not in out and "limits: max_usd=0.5, max_nodes=2" in out
    call("--set", "search.max_nodes=3")
    assert (limits(tmp_path)["max_usd"], limits(tmp_path)["n_blocks"]) == (0.5, 1)
    # The file is changed: what it says anew counts, once, and --set counts before it.
    write(max_usd=3, n_blocks=3)
    assert "\n  search.max_usd: 0.5 -> 3\n" in call("--dry-run")[1]
    assert "this call" not in call("--set", "search.max_usd=0.5")[1]
    _, out, _ = call("--set", "search.max_usd=0.25", "--set", "search.max_nodes=4")
    assert "  search.max_usd: 0.5 -> 0.25\n" in out and "  search.max_nodes: 3 -> 4\n" in out
    assert "this call" not in call()[1]
    write(max_usd=4, n_blocks=3)
    assert "\n  search.max_usd: 0.25 -> 4\n" in call()[1] and limits(tmp_path)["max_usd"] == 4
    call("--set", "search.max_usd=null")
    assert limits(tmp_path)["max_usd"] is None and "this call" not in call()[1]


def test_what_is_announced_on_a_finished_run_is_kept_and_a_dry_run_keeps_nothing(call, tmp_path):
    call("--set", "search.max_nodes=2")
    dry, real = call("--dry-run", "--set", "search.max_usd=1")[1], call("--set", "search.max_usd=1")[1]
    assert "run has begun; this call would change\n  search.max_usd: none -> 1\n" in dry
    assert (
        "run has begun; this call changes\n  search.max_usd: none -> 1\n" in real
        and "finished: search.max_nodes=2 reached" in real
    )
    assert limits(tmp_path)["max_usd"] == 1
    before = read_journal(tmp_path / "run")
    code, out, _ = call()
    assert code == 0 and "limits: max_usd=1, max_nodes=2" in out and read_journal(tmp_path / "run") == before


def test_a_runs_own_config_is_one(call, tmp_path):
    call("--set", "search.max_nodes=3")
    assert "made_with" in yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    code, out, _ = call(config="run/config.yaml")
    assert code == 0 and "finished: search.max_nodes=3 reached" in out


# --- what stops a run is one line ---


def test_a_dry_run_refuses_what_the_run_refuses(call):
    call("--set", "search.max_nodes=2")
    dry, real = call("--dry-run", "--set", "search.ucb_c=2"), call("--set", "search.ucb_c=2")
    assert dry == real and dry[0] == 2 and dry[1] == ""
    assert (
        dry[2] == "error: the config differs from the one run began with: search.ucb_c was 1.414, is 2.0; "
        "restore it, or choose another --run\n"
    )


def test_a_dry_run_refuses_a_folder_that_holds_something_else(call, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: other\n")
    dry, real = call("--dry-run"), call()
    assert dry == real and dry[0] == 2 and "config.yaml" in dry[2]


@pytest.mark.parametrize("run", ["afile", "afile/x", "/proc/nope"])
def test_what_cannot_be_a_run_directory_is_one_line(call, tmp_path, run):
    (tmp_path / "afile").write_text("")
    for dry in ([], ["--dry-run"]) if run != "/proc/nope" else ([],):  # only trying tells of the last
        code, _, err = call(*dry, run=run)
        assert (
            code == 2
            and err.startswith("error: ")
            and f"the run directory {run}: " in err
            and len(err.splitlines()) == 1
        )


@pytest.mark.parametrize("limit", ["max_calls=0", "max_tokens=0", "max_usd=0"])
def test_a_spent_budget_is_an_error_to_a_script(call, tmp_path, monkeypatch, limit):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    code, out, err = call("--proposer", "llm", "--set", f"search.{limit}")
    assert code == 2 and f"search.{limit.split('=')[0]}" in err and "--proposer rules" in err
    assert (
        len(err.splitlines()) == 1 and "paused" in out and read_journal(tmp_path / "run")[-1]["event"] == "run_paused"
    )


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_who_does_not_approve_reads_how_to_go_on(call, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    code, out, err = call("--approve")
    assert (code, err) == (0, "") and "paused: not approved" in out and "nothing is lost" in out
    if answer:
        assert "the same command asks for this iteration again" in out and "run/user_input.md" in out
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 4))
    code, out, _ = call("--approve")
    assert code == 0 and "finished: 2 blocks done; 8 nodes" in out


def test_a_pause_says_what_was_spent(call, monkeypatch):
    monkeypatch.setattr(
        cli_search,
        "train_nodes",
        as_user_errors()(lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))),
    )
    code, out, err = call()
    assert code == 2 and out.splitlines()[-1].startswith("paused after 0 nodes, ")
    assert err.startswith("error: the disk is full") and len(err.splitlines()) == 1


SHOWN = {"embedding": Embedding(("R1", "Mi1"), np.array([0, 1]), np.eye(2), ())}


def drawn(experiment, specs, run_dir, *, drawing, **options):
    for spec in specs:
        drawing.add(spec.id, SHOWN)
    return trained(experiment, specs, run_dir)


def without_figure(run):
    """The nodes in the journal that are not drawn."""
    nodes = [e["node"] for e in read_journal(run) if e["event"] == "node_finished"]
    return [k for k in nodes if not (run / "nodes" / f"{k:04d}" / "figures" / "embedding.png").exists()]


def test_the_last_report_of_a_run_has_all_figures(call, tmp_path, monkeypatch):
    missing = []
    monkeypatch.setattr(cli_search, "train_nodes", drawn)
    monkeypatch.setattr(cli_search, "write_report", lambda run: missing.append(without_figure(run)) or run)
    assert call("--proposer", "rules")[0] == 0
    assert missing[-1] == [] and len(read_journal(tmp_path / "run")) > 8
    # What a killed process left is drawn, though the run is finished.
    save_contents(tmp_path / "run" / "nodes" / "0002.figures.npz", SHOWN)
    (tmp_path / "run" / "nodes" / "0002" / "figures" / "embedding.png").unlink()
    assert without_figure(tmp_path / "run") == [2]
    assert call()[0] == 0 and missing[-1] == []


def test_who_is_asked_finds_all_figures_in_the_report(call, tmp_path, monkeypatch):
    missing, asked = [], []

    def answer(console, *arguments, **options):
        asked.append(missing[-1] if missing else None)
        return "y"

    monkeypatch.setattr(cli_search, "train_nodes", drawn)
    monkeypatch.setattr(cli_search, "write_report", lambda run: missing.append(without_figure(run)) or run)
    monkeypatch.setattr(RichConsole, "input", answer)
    assert call("--proposer", "rules", "--approve")[0] == 0
    assert asked == [None, [], [], []]


def test_a_model_that_looks_at_figures_finds_them(call, tmp_path, monkeypatch):
    """Also those that a killed process left, which are drawn before the run goes on."""
    run, seen = tmp_path / "run", []

    class Looks:
        name = "llm"

        def __init__(self, experiment):
            self.rules = make_proposer("rules", experiment, run)

        def step(self, context):
            seen.append((len(context.new_nodes), without_figure(run)))
            return self.rules.step(context)

    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setattr(cli_search, "make_proposer", lambda name, experiment, run_dir: Looks(experiment))
    monkeypatch.setattr(cli_search, "train_nodes", drawn)
    assert call("--proposer", "llm", "--set", "search.n_blocks=1")[0] == 0
    save_contents(run / "nodes" / "0001.figures.npz", SHOWN)
    (run / "nodes" / "0001" / "figures" / "embedding.png").unlink()
    assert call("--proposer", "llm", "--set", "search.n_blocks=2")[0] == 0
    assert len(seen) > 3 and all(missing == [] for _, missing in seen) and sum(n for n, _ in seen) > 4


def test_an_iteration_that_takes_too_long_pauses_and_can_go_on(call, tmp_path, monkeypatch):
    def slow(experiment, specs, run_dir, *, on_progress, **options):
        time.sleep(0.5)
        on_progress(Progress(0, 1, 250, 1000, 1.0, 0))
        return trained(experiment, specs, run_dir, on_progress=on_progress, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cli_search, "train_nodes", slow)
        for _ in range(2):
            code, _, err = call("--set", "search.max_wall_s=0.4")
            assert code == 2 and len(err.splitlines()) == 1 and "search.max_wall_s=0.4" in err
            events = [e["event"] for e in read_journal(tmp_path / "run")]
            assert events[-1] == "run_paused" and "node_finished" not in events
    code, out, _ = call("--set", "search.max_wall_s=1000")
    assert code == 0 and "finished: 2 blocks done" in out


ORBAX = (
    'RESOURCE_EXHAUSTED: Error writing "x/0" in OCDBT database: Failed to write 812374 bytes to file 11: '
    "No space left on device [os_error_code='28']"
)

REFUSED = (
    'PERMISSION_DENIED: Error writing "x/0" in OCDBT database: Failed to write "a/b": Permission denied '
    "[os_error_code='13']"
)


@pytest.mark.parametrize(
    "error, reported",
    [
        (ValueError(ORBAX), "the disk is full: nothing is lost"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), "the disk is full (a/b): nothing is lost"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 400000000000000 bytes.\nmore"),
            "out of memory (Out of memory allocating 4",
        ),
        (RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY"), "out of memory (INTERNAL: CUDA_ERROR_OUT_OF_MEMORY)"),
        (MemoryError(), "out of memory (MemoryError)"),
        (ValueError(REFUSED), "cannot use a file (PERMISSION_DENIED: Error writing"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"), "cannot use a/b (Is a directory)"),
        (OSError(errno.EFBIG, "File too large", "a/b"), "cannot use a/b (File too large)"),
        (OSError(errno.EMFILE, "Too many open files", "a/b"), "cannot use a/b (Too many open files)"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot use a file ([Errno 30] Read-only file system)"),
    ],
)
def test_what_the_machine_runs_out_of_is_one_line(cli, capsys, error, reported):
    def program(standalone_mode):
        raise error

    assert user_message(error).startswith(reported) and "\n" not in user_message(error)
    with pytest.raises(SystemExit, match="2"):
        cli.run(program)
    assert capsys.readouterr().err.startswith(f"error: {reported}")
    with pytest.raises(UserError, match="and run the same command again"), as_user_errors():
        raise error


def test_trainings_that_run_out_of_memory_say_so_in_one_line(tmp_path, monkeypatch):
    def too_much(*arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 400 bytes.")

    monkeypatch.setattr(train_nodes, "learner_for", too_much)
    for work in (
        lambda: train_nodes.train_nodes(parse_experiment(SMALL), [], tmp_path),
        lambda: train_sweep(None, [Training()], [[0]], too_much),
    ):
        with pytest.raises(
            UserError, match="out of memory .* fewer candidates or a smaller model.width; --dry-run shows what fits"
        ):
            work()


def test_a_file_that_refuses_is_one_line_and_a_bug_stays_a_traceback(cli, capsys):
    def program(standalone_mode):
        raise PermissionError(errno.EACCES, "Permission denied", "results.csv")

    def bug(standalone_mode):
        raise ValueError("a bug")

    with pytest.raises(SystemExit, match="2"):
        cli.run(program)
    err = capsys.readouterr().err
    assert err.startswith("error: cannot use results.csv (Permission denied)") and len(err.splitlines()) == 1
    with pytest.raises(ValueError, match="a bug"):
        cli.run(bug)
    with pytest.raises(KeyError), as_user_errors():
        raise KeyError("x")
    for other in (
        ValueError("Failed to write x"),
        PermissionError(errno.EACCES, "a socket's"),
        FileNotFoundError(errno.ENOENT, "none", "x"),
        OSError("truncated"),
    ):
        assert user_message(other) is None


def test_a_warning_is_printed_once(cli, capsys):
    root = logging.StreamHandler(sys.stderr)  # as libraries add one
    logging.getLogger().addHandler(root)
    try:
        cli.configure_logging()
        cli.configure_logging()
        logging.getLogger("flyjax.training.checkpoint").warning("checkpoint 5 cannot be read")
    finally:
        logging.getLogger().removeHandler(root)
    assert capsys.readouterr().err == "checkpoint 5 cannot be read\n"


# --- how far it has come ---


def test_after_an_iteration_a_line_says_what_is_done_spent_and_left(call, tmp_path):
    call("--set", "search.max_nodes=3")
    with Journal(tmp_path / "run") as journal:
        journal.append(
            "run_paused", reason="x", usage={"calls": 3, "input_tokens": 80_000, "output_tokens": 4_210, "usd": 0.41}
        )
    _, out, _ = call("--set", "search.max_nodes=7", "--set", "search.max_usd=2", "--set", "search.max_calls=9")
    money = "3 of 9 calls, 84,210 tokens, $0.41 of $2 paid"
    reported = [line for line in out.splitlines() if line.startswith("  so far ")]
    assert (
        reported[0].startswith(f"  so far 3 of 7 nodes, {money}, ")
        and "; at most 4 nodes in 2 iterations left, about" in reported[0]
    )
    assert (
        reported[1].startswith(f"  so far 5 of 7 nodes, {money}, ")
        and "; at most 2 nodes in 1 iteration left, about" in reported[1]
    )
    assert reported[-1].startswith(f"  so far 7 of 7 nodes, {money}, ") and reported[-1].endswith(" worked")
    assert f"finished: 2 blocks done; 7 of 7 nodes, {money}, " in out.splitlines()[-1]


def test_without_a_terminal_a_line_is_printed_now_and_then():
    now, lines = [0.0], []
    run = progress.RunProgress(RichConsole(file=io.StringIO()), lines.append, lambda: now[0])
    with run, run.iteration("block 1, iteration 2/3") as (on_progress, on_stage):

        def chunk(at, steps):
            now[0] = at
            on_progress(Progress(0, 1, steps, 64_000, 0.0123, 0))

        on_stage("compiling")
        chunk(20, 2_000)
        chunk(59, 4_000)
        assert lines == [], "what is short prints nothing"
        for at in range(65, 200, 5):
            chunk(at, 4_000 + 200 * at)
        assert len(lines) == 3 and "17,000 of 64,000 steps" in lines[0] and "2.4 min left" in lines[0]
        now[0] = 300
        on_stage("drawing node 3")
        assert "drawing node 3" in lines[-1]


def trainings(step, r2, n_steps=4_000):
    status = "finished" if step == n_steps else "training"
    values = {"loss": 0.1} | ({} if r2 is None else {"connectivity_R2": r2})
    return tuple(LaneProgress(Lane(k, 0, 1, n_steps, 0.05), step, values, status) for k in range(2))


class Screen:
    """What a terminal of some width shows."""

    def __init__(self, width):
        self.now, self.width = 0.0, width
        console = RichConsole(width=width, force_terminal=True, file=io.StringIO())
        self.run = progress.RunProgress(console, print, lambda: self.now)

    def lines(self):
        out = RichConsole(width=self.width, record=True, file=io.StringIO(), force_terminal=True)
        out.print(self.run.renderable())
        return out.export_text().splitlines()

    def styled(self):
        out = RichConsole(width=self.width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        out.print(self.run.renderable())
        return out.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_bar_keeps_total_elapsed_and_time_left(width):
    screen = Screen(width)
    # A session that continues: 20 of 40 iterations, and 6,000 steps, were done before it.
    with screen.run.iteration("block 11, iteration 1/4", [3, 4], 20, 40) as (on_progress, on_stage):
        for step in (3_000, 3_500):
            screen.now += 100
            on_progress(Progress(0, 1, 2 * step, 8_000, 0.0123, 0, trainings(step, None)))
        run, stage = screen.lines()[:2]
        assert "20/40 iterations" in run and "0:03:20" in run
        assert "7,000/8,000 steps" in stage and "0:01:40" in stage, "the stage began with its first update"
        assert "100 s left" in stage, "1,000 steps in 100 s; what was done before does not count"
        screen.now += 40
        assert "60 s left" in screen.lines()[1]
    with screen.run.iteration("block 11, iteration 2/4", [5, 6], 21, 40) as (_, on_stage):
        on_stage("simulating")
        assert "21/40 iterations" in screen.lines()[0] and "76 min left" in screen.lines()[0]  # 19 x 240 s
    assert all(len(line) <= width for line in screen.lines())


@pytest.mark.parametrize("stage", ["simulating", "compiling", "evaluating", "drawing node 3"])
def test_every_stage_moves_and_names_itself(stage):
    screen = Screen(80)
    with screen.run.iteration("block 1, iteration 1/3", [1], 0, 9) as (on_progress, on_stage):
        on_progress(Progress(0, 1, 4_000, 4_000, 0.01, 0))
        on_stage(stage)
        screen.now += 7
        first = screen.lines()[1], screen.styled()
        assert stage in first[0] and "0:00:07" in first[0] and "left" not in first[0] and "4,000" not in first[0]
        assert len(first[0].rstrip()) > 76, "as wide as the terminal, also without a time left"
        screen.now += 1.04
        assert screen.lines()[1] != first[0] and "0:00:08" in screen.lines()[1]
        assert screen.styled() != first[1]


def test_a_live_r2_names_its_step_until_it_is_final():
    screen = Screen(80)
    with screen.run.iteration("block 1, iteration 1/3", [1, 2], 0, 9) as (on_progress, _):

        def at(step, r2):
            on_progress(Progress(0, 1, 2 * step, 8_000, 0.0123, 0, trainings(step, r2)))
            return "\n".join(screen.lines())

        assert "at step" not in at(500, None)
        assert at(1_000, 0.298).count("0.298 at step 1,000") == 3  # two rows, and the best
        assert at(2_000, None).count("0.298 at step 1,000") == 3
        assert at(4_000, None).count("0.298 at step 1,000") == 3, "not the result of the training"
        final = at(4_000, 0.898)
        assert final.count("0.898") == 3 and "at step" not in final


def test_the_first_result_is_announced_until_it_is_there():
    screen = Screen(80)
    with screen.run.iteration("block 1, iteration 1/3", [1, 2], 0, 9, first_result_s=300) as (on_progress, on_stage):
        on_stage("compiling")
        screen.now += 60
        assert "first result in about 4 min" in screen.lines()[2]
        for step in (1_000, 2_000):  # twice as fast as forecast
            screen.now += 20
            on_progress(Progress(0, 1, step, 8_000, 0.0123, 0))
        assert "first result in about 2 min" in screen.lines()[2] and "loss" in screen.lines()[2]
        screen.now += 200
        assert "first result due" in screen.lines()[2]
    with screen.run.iteration("block 1, iteration 2/3", [3], 1, 9):
        assert "first result" not in screen.lines()[2]


def test_a_search_says_when_its_first_result_is_due(call):
    said = "first result in about"
    code, out, _ = call()
    assert code == 0 and out.count(said) == 1
    assert said not in call()[1], "it is there"


def test_progress_reaches_a_file_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0)
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with console.Console().training_bar("block 1") as (on_progress, on_stage):
            on_stage("simulating")
            on_progress(Progress(0, 1, 250, 1_000, 0.5, 0))
            assert (tmp_path / "log").read_text() == "  block 1: simulating\n  block 1: 250 of 1,000 steps, loss 0.5\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_cut_no_number_and_no_word(terminal):
    """At any width; where there is no terminal, a row is one line."""
    row = {"of": "W", "read-out": "published", "R2": 0.98765, "R2 identifiable": -123456.789, "n": 1234567}
    row |= {f"slope {k}": 0.5 + k for k in range(6)} | {"note": "a text of several words " * 4}
    out = io.StringIO()
    shown = console.Console()
    shown.rich = RichConsole(file=out, force_terminal=terminal, width=40, color_system=None)
    shown.table([row], list(row))
    words = out.getvalue().split()
    assert {"published", "0.988", "-1.23e+05", "1234567", "identifiable", "5.500", "several"} <= set(words)
    assert terminal or len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "scripts").glob("[a-z]*.py")))
def test_an_example_can_be_copied_from_the_help_of_a_narrow_terminal(script, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = script(name, "--help")
    commands = [c.strip() for c in importlib.import_module(name).EXAMPLES.split("\n") if "python scripts/" in c]
    assert code == 0 and commands and {*commands} <= {line.strip() for line in output.splitlines()}
