"""Do the tests notice? One-line faults, each of which a named test has to find.

    python tests/mutations.py            # every mutation, some minutes
    python tests/mutations.py --fast     # a minute of them, as .ci/run does
    python tests/mutations.py seeds      # those with the word in their name

A mutation is applied to a copy of the package in a temporary folder, and its tests are run there. The exit code is 1
where one survives, where its text is no longer in the file exactly once, or where its test cannot be run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("flyjax", "tests", "scripts", "experiments", "pyproject.toml", "protocol.md")


class Mutation(NamedTuple):
    """In `file`, `old` becomes `new`; `test` has to fail."""

    name: str
    file: str
    old: str
    new: str
    test: str  # a node id below tests/
    fast: bool = False


TRAINING = "training/test_training.py::"
MUTATIONS = (
    # --- variable projection ---
    Mutation(
        "W is trained on after a projection",
        "training/optimizer.py",
        'xp.where(count < hparams["n_steps_W"], rate, xp.float32(0))',
        'xp.where(count < hparams["n_steps"], rate, xp.float32(0))',
        "training/test_projection.py::test_weights_are_those_of_the_messages_at_the_projection",
    ),
    Mutation(
        "projections use held-out frames",
        "training/projection.py",
        "for frames in spread_blocks(n_frames, N_FRAMES):",
        "for frames in spread_blocks(len(recording.voltage), N_FRAMES):",
        "training/test_projection.py::test_held_out_frames_are_not_used",
    ),
    Mutation(
        "a negative gain is floored as a positive one",
        "training/projection.py",
        "gain = np.sign(typical) * np.maximum(np.sign(typical) * gain, MIN_GAIN * abs(typical))",
        "gain = np.maximum(gain, MIN_GAIN * abs(typical))",
        "training/test_projection.py::test_the_sign_of_the_messages_is_that_of_the_update",
    ),
    # --- tuning ---
    Mutation(
        "edges move downwards where they should move up",
        "tuning/stimuli.py",
        "direction = np.array([np.cos(radians), -np.sin(radians)])",
        "direction = np.array([np.cos(radians), np.sin(radians)])",
        "tuning/test_tuning.py::test_an_edge_moves_towards_its_angle",
        fast=True,
    ),
    Mutation(
        "selectivity is relative to each contrast alone",
        "tuning/indices.py",
        "total = np.abs(peaks).sum(axis=0, dtype=np.float64).max(axis=0, keepdims=True)",
        "total = np.abs(peaks).sum(axis=0, dtype=np.float64)",
        "tuning/test_tuning.py::test_selectivity_is_relative_to_the_stronger_contrast",
    ),
    Mutation(
        "a receptive field is one value late",
        "tuning/protocols.py",
        "voltage[lag:].T @ shown[: n - lag]",
        "voltage[lag + 1 :].T @ shown[: n - lag - 1]",
        "tuning/test_tuning.py::test_the_kernel_of_a_linear_neuron_is_its_response_to_one_value",
    ),
    # --- training: groups, frames, seeds, lanes ---
    Mutation(
        "embeddings train at the networks' rate",
        "training/optimizer.py",
        '    "embedding": "embedding",',
        '    "embedding": "networks",',
        TRAINING + "test_each_parameter_learns_at_its_rate",
        fast=True,
    ),
    Mutation(
        "W trains at the embeddings' rate",
        "training/optimizer.py",
        '    "W": "W",',
        '    "W": "embedding",',
        TRAINING + "test_each_parameter_learns_at_its_rate",
    ),
    Mutation(
        "the groups share the scale of their moments",
        "training/optimizer.py",
        "return inner.update(updates, state, params)",
        "return inner.update(jax.tree.map(lambda g: g / optax.global_norm(updates), updates), state, params)",
        TRAINING + "test_steps_are_adam_with_the_rates_and_moments_of_each_parameter",
        fast=True,
    ),
    Mutation(
        "moments are forgotten between steps",
        "training/step.py",
        "optimizer=if_taken(moments, state.optimizer),",
        "optimizer=state.optimizer,",
        TRAINING + "test_steps_are_adam_with_the_rates_and_moments_of_each_parameter",
    ),
    Mutation(
        "every chunk draws the same frames",
        "training/step.py",
        "jax.random.fold_in(state.key, state.step + offset)",
        "jax.random.fold_in(state.key, offset)",
        TRAINING + "test_each_chunk_draws_the_frames_after_those_of_the_last",
        fast=True,
    ),
    Mutation(
        "the last frames are never drawn",
        "training/step.py",
        '(static.batch_size,), 0, hparams["n_starts"], ',
        '(static.batch_size,), 0, hparams["n_starts"] - 1, ',
        TRAINING + "test_every_frame_is_drawn_as_often_as_any_other",
    ),
    Mutation(
        "the last chunk is not trained",
        "training/lanes.py",
        "while done < last:",
        "while done < last - 1:",
        TRAINING + "test_loss_falls_and_seeds_differ",
    ),
    Mutation(
        "the rows of a last, shorter segment are dropped",
        "models/chunked_map.py",
        "length = -(-len(x) // n_segments)",
        "length = len(x) // n_segments; x = x[: length * n_segments]",
        "models/test_chunked_map.py::test_sum_of_squares_and_gradient_do_not_depend_on_the_segments",
    ),
    Mutation(
        "all seeds start from the same weights",
        "training/step.py",
        "params = learner.init(init_key)",
        "params = learner.init(jax.random.key(0))",
        TRAINING + "test_every_seed_starts_from_weights_and_frames_of_its_own",
        fast=True,
    ),
    Mutation(
        "all seeds draw the same frames",
        "training/step.py",
        "params, optimizer.init(params), sample_key,",
        "params, optimizer.init(params), jax.random.key(0),",
        TRAINING + "test_every_seed_starts_from_weights_and_frames_of_its_own",
    ),
    Mutation(
        "a diverged lane trains on",
        "training/step.py",
        "take = running & state.is_finite & healthy",
        "take = running & healthy",
        TRAINING + "test_a_diverged_lane_takes_no_further_step",
        fast=True,
    ),
    Mutation(
        "regularisers at one standard deviation",
        "training/data.py",
        "[1.5 * _std(",
        "[1.0 * _std(",
        TRAINING + "test_the_scale_of_the_regularisers_is_one_and_a_half_standard_deviations",
    ),
    Mutation(
        "a resumed lane begins again",
        "training/lanes.py",
        "if (found := store.restore_latest(like)) is not None:",
        "if (found := None) is not None:",
        TRAINING + "test_resumed_is_uninterrupted",
    ),
    # --- nodes: whose metrics ---
    Mutation(
        "figures and estimates of the seed with the highest loss",
        "experiments/node.py",
        "one.final_loss < best[0]",
        "one.final_loss > best[0]",
        "experiments/test_evaluate_nodes.py::test_each_seed_has_its_own_metrics",
    ),
    Mutation(
        "metrics of the first seed for all",
        "experiments/node.py",
        "evaluate(learner, one.params, train",
        "evaluate(learner, trained[0].params, train",
        "experiments/test_evaluate_nodes.py::test_each_seed_has_its_own_metrics",
    ),
    Mutation(
        "metrics of a recording of another noise level",
        "experiments/node.py",
        "train, test = recordings.train(spec.training.noise_model_level),",
        "train, test = recordings.train(specs[0].training.noise_model_level),",
        "experiments/test_evaluate_nodes.py::test_concurrent_evaluation_gives_the_same_results_in_order",
    ),
    Mutation(
        "networks evaluated together have each other's numbers",
        "experiments/node.py",
        "found[s] = self._newest[1], members.index((k, s))",
        "found[s] = self._newest[1], len(members) - 1 - members.index((k, s))",
        "experiments/test_evaluate_nodes.py::test_nodes_of_one_recording_are_evaluated_together",
    ),
    Mutation(
        "figures of a killed process stay undrawn",
        "report/figures/drawing.py",
        "for path in sorted({*self._nodes.glob(",
        'for path in sorted({*self._nodes.with_name("x").glob(',
        "report/test_drawing.py::test_a_figure_that_fails_is_a_warning_and_is_tried_again",
    ),
    # --- the search: classes, choices, parents, blocks, resuming ---
    Mutation(
        "converged at exactly 0.9",
        "search/journal/state.py",
        "if r2 > CONVERGED",
        "if r2 >= CONVERGED",
        "search/test_measures.py",
        fast=True,
    ),
    Mutation(
        "failed at exactly 0.1",
        "search/journal/state.py",
        "r2 < FAILED",
        "r2 <= FAILED",
        "search/test_measures.py",
    ),
    Mutation(
        "an iteration's R2 is the best candidate's",
        "search/journal/state.py",
        "        if iteration in self.choices:",
        "        if iteration not in self.iterations:",
        "search/test_measures.py",
        fast=True,
    ),
    Mutation(
        "journaled nodes are journaled again",
        "search/loop.py",
        "            if node.id in plan.done:",
        "            if node.id in ():",
        "search/test_interruptions.py::test_a_node_that_is_in_the_journal_is_not_trained_or_journaled_again",
        fast=True,
    ),
    Mutation(
        "the plan forgets which nodes are done",
        "search/iteration.py",
        'done = tuple(n.id for n in nodes if n.status != "running")',
        "done = ()",
        "search/test_interruptions.py::test_a_node_that_is_in_the_journal_is_not_trained_or_journaled_again",
    ),
    Mutation(
        "nodes share their seeds",
        "search/iteration.py",
        "derive_seed(experiment.search.seed, node, index)",
        "derive_seed(experiment.search.seed, 0, index)",
        "search/test_loop.py::test_every_block_begins_at_the_root_and_stays_in_its_simulation",
        fast=True,
    ),
    Mutation(
        "the seeds of a node are one",
        "search/iteration.py",
        "derive_seed(experiment.search.seed, node, index)",
        "derive_seed(experiment.search.seed, node, 0)",
        "search/test_loop.py::test_every_block_begins_at_the_root_and_stays_in_its_simulation",
    ),
    Mutation(
        "a failed node is no visit of its parent",
        "search/policy/ucb.py",
        "        if node.parent in count and node.parent != node.id:",
        "        if node.parent in count and node.parent != node.id and node.reward is not None:",
        "search/test_ucb.py",
        fast=True,
    ),
    Mutation(
        "a failed node is lost from its block",
        "search/journal/state.py",
        'return [n for n in nodes if n.status != "running"]',
        'return [n for n in nodes if n.status == "finished"]',
        "search/test_ucb.py",
    ),
    Mutation(
        "a failed node's event names another parent",
        "search/loop.py",
        'place = {"node": node.id, "parent": node.parent,',
        'place = {"node": node.id, "parent": ROOT,',
        "search/test_loop.py::test_failed_nodes_do_not_stop_the_run",
    ),
    Mutation(
        "the best node of another block",
        "search/policy/measures.py",
        "nodes = state.nodes.values() if block is None else state.block_nodes(block)",
        "nodes = state.nodes.values()",
        "search/test_measures.py::test_a_block_is_measured_by_its_own_nodes_and_objective",
    ),
    Mutation(
        "UCB over all blocks",
        "search/policy/ucb.py",
        "nodes = state.block_nodes(block)",
        'nodes = [n for n in state.nodes.values() if n.status != "running"]',
        "search/test_measures.py::test_a_block_is_measured_by_its_own_nodes_and_objective",
    ),
    Mutation(
        "a blind search that sees the truth",
        "search/journal/state.py",
        '{"blind": "test_R2", ',
        '{"blind": "connectivity_R2", ',
        "search/test_measures.py::test_a_block_is_measured_by_its_own_nodes_and_objective",
        fast=True,
    ),
    Mutation(
        "a failed seed does not count",
        "search/journal/state.py",
        "seeds = known + [min(0.0, *known)] * failed",
        "seeds = known",
        "search/test_loop.py::test_a_seed_without_a_result_counts_as_zero_in_the_reward",
    ),
    # --- the protocol's guard and secrets ---
    Mutation(
        "nothing checks what stands outside the markers",
        "search/protocol/document.py",
        "if split(result)[::2] == (head, tail):",
        "if True:",
        "search/test_protocol.py::test_what_the_guard_misses_still_changes_nothing_outside_the_markers",
        fast=True,
    ),
    Mutation(
        "the journal holds keys",
        "search/journal/journal.py",
        "return redact(json.loads(text, ",
        "return (json.loads(text, ",
        "search/test_secrets.py::test_the_journal_lets_no_key_through",
    ),
    Mutation(
        "text files hold keys",
        "utils/atomic_io.py",
        "redact(content).encode(",
        "content.encode(",
        "utils/test_secrets.py::test_files",
        fast=True,
    ),
    # --- report: what is shown, served and exported ---
    Mutation(
        "R2 is drawn on a linear axis",
        "report/charts.py",
        "return math.log(1 - min(max(0.0, value), self.top)) / math.log(1 - self.top)",
        "return min(max(0.0, value), self.top) / self.top",
        "report/test_tables.py::test_scores_lie_on_a_logarithmic_axis_of_what_is_missing_to_1",
        fast=True,
    ),
    Mutation(
        "a page elsewhere reads a run",
        "report/serve.py",
        "not in HOSTS:",
        'not in (*HOSTS, "evil.example"):',
        "report/test_serve.py::test_a_page_elsewhere_cannot_reach_it",
    ),
    Mutation(
        "a trace is exported where it is drawn",
        "report/figures/exports.py",
        "points = np.column_stack([points[:, 0], noted])",
        "pass",
        "report/test_exports.py::test_traces_and_hexagons_have_their_values_not_their_places",
    ),
    Mutation(
        "a table of nodes lacks their settings",
        "report/run_tables.py",
        "return node.config | {",
        "return {} | {",
        "report/test_run_tables.py::test_load_run_equals_the_journal",
    ),
)


def fate(mutation: Mutation) -> str:
    """Empty where a test found the mutation, else what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
            else:
                shutil.copy(source, copy / name)
        path = copy / "flyjax" / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            return f"does not apply: the old text occurs {text.count(mutation.old)} times in {mutation.file}"
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutation.test}"]
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode == 1:
        return ""
    return "survives" if done.returncode == 0 else f"its test does not run: {done.stdout[-500:]}{done.stderr[-500:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="part of the names of those to apply")
    parser.add_argument("--fast", action="store_true", help="about a minute of them")
    parser.add_argument("--jobs", type=int, default=2, help="at once")
    given = parser.parse_args()
    wanted = [m for m in MUTATIONS if given.name in m.name and (m.fast or not given.fast)]
    with ThreadPoolExecutor(given.jobs) as pool:
        fates = pool.map(fate, wanted)
        bad = 0
        for mutation, problem in zip(wanted, fates, strict=True):
            bad += bool(problem)
            print(f"{'FAIL' if problem else 'ok  '} {mutation.name}{': ' * bool(problem)}{problem}", flush=True)
    print(f"{len(wanted) - bad} of {len(wanted)} mutations were found by their tests")
    return int(bool(bad) or not wanted)


if __name__ == "__main__":
    sys.exit(main())
