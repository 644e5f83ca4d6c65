"""Made-up run directories, written through the real journal, for tests of the report."""

import numpy as np
from PIL import Image

from flyjax.config import parse_experiment
from flyjax.search.journal.journal import Journal

SCRIPT = "<script>alert('x')</script>"
HOSTILE = SCRIPT + "<img src=x onerror=alert(1)>\x1b[31m{{ 7*7 }}"
DIFF = "--- a/protocol.md\n+++ b/protocol.md\n@@ -1 +1,2 @@\n rules\n+| new <b>row |\n-old row\n"


def metrics(r2, **more):
    """Metrics of a node with this connectivity_R2."""
    out = {"connectivity_R2": r2, "tau_R2": r2 * 0.9, "V_rest_R2": r2 * 0.5, "cluster_accuracy": 0.4}
    out |= {"test_R2": 1 - r2, "test_pearson": 0.5, "external_input_R2": 0.6, "final_loss": 0.0123, "reasons": {}}
    return {**out, **more}


class Maker:
    """A run that grows by iterations, choices and block ends."""

    def __init__(self, folder, seed=0, seeds=1, **search):
        self.folder, self.rng, self.seeds = folder, np.random.default_rng(seed), seeds
        self.clock, self.node, self.iteration = 1.7e9, -1, 0
        data = {"name": "made-up", "description": "A made-up run."}
        data["search"] = {"n_iter_block": 4, "proposer": "rules", **search}
        self.experiment = parse_experiment(data).model_dump(mode="json")
        self.root, self.configs = self.experiment["training"], {}
        self.journal = Journal(folder, clock=self.tick)
        self.journal.append(
            "run_started",
            experiment=self.experiment,
            protocol="rules\n",
            stimulus_fallbacks={"DAVIS": "scenes_1"},
            made_with={"versions": {"jax": "0.10.2", "numpy": "9.9.9"}, "devices": ["cpu:0"], "commit": "abc1234"},
        )

    def tick(self):
        self.clock += 7
        return self.clock

    def train(self, block, iter_in_block, candidates, results, simulation=None, seeds=None):
        """One iteration. Candidates are (parent, changes, strategy); a result is a node's metrics (with
        `per_seed` where its seeds differ), the reason why it failed, or "running"."""
        self.iteration += 1
        nodes = []
        for parent, changes, strategy in candidates:
            self.node += 1
            self.configs[self.node] = {**(self.root if parent == "root" else self.configs[parent]), **changes}
            entry = {"node": self.node, "parent": parent, "config": self.configs[self.node], "changes": changes}
            entry |= {"strategy": strategy, "hypothesis": f"why {self.node}", "seeds": list(range(seeds or self.seeds))}
            nodes.append(entry)
        where = {"iteration": self.iteration, "block": block, "iter_in_block": iter_in_block}
        simulation = simulation or {"visual_input_type": f"scenes_{block}", "delta_t": 0.02}
        self.journal.append("iteration_started", **where, simulation=simulation, nodes=nodes)
        for entry, result in zip(nodes, results, strict=True):
            which = {"node": entry["node"], "parent": entry["parent"]}
            if isinstance(result, dict):
                result = dict(result)
                per = result.pop("per_seed", None) or [result] * len(entry["seeds"])
                self.journal.append("node_finished", **which, metrics=result, per_seed=per)
            elif result != "running":
                self.journal.append("node_failed", **which, reason=result)
        return [n["node"] for n in nodes]

    def choose(self, chosen, parents=("root",), **fields):
        self.journal.append("proposal", iteration=self.iteration, by="rules", **fields)
        fields = {"chosen": chosen, "reason": "highest R2", "next_parents": list(parents)}
        self.journal.append("choice", iteration=self.iteration, **fields)

    def end_block(self, block, reason):
        edit, following = {"old": "", "new": "", "reason": reason}, {"visual_input_type": f"scenes_{block + 1}"}
        self.journal.append("block_ended", block=block, summary="noise helps", edit=edit, next_simulation=following)

    def figure(self, node, *names, size=(40, 30)):
        folder = self.folder / "nodes" / f"{node:04d}" / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", size, (node * 9 % 256, 90, 160)).save(folder / f"{name}.png")


def two_blocks(folder):
    """26 nodes: one failed (5), one with a null metric (11), re-runs (8 of 4, 23 of 16), two in training (24, 25)."""
    m = Maker(folder)

    def iteration(block, number, *rows, seeds=None):
        m.train(block, number, [row[:3] for row in rows], [row[3] for row in rows], seeds=seeds)

    def noise(level):
        return {"noise_model_level": level}

    iteration(
        1, 1,
        ("root", {}, "root", metrics(0.6)),
        ("root", noise(0.1), "exploit", metrics(0.8)),
        ("root", {"batch_size": 4}, "exploit", metrics(0.65)),
        ("root", noise(0.0), "explore", metrics(0.05)),
    )  # fmt: skip
    m.choose(1, observation={"1": HOSTILE}, activity={"1": "active"})
    iteration(
        1, 2,
        (1, {"batch_size": 4}, "exploit", metrics(0.93, per_seed=[metrics(0.91), metrics(0.95)])),
        (1, {"learning_rate_W_start": 1e-2}, "failure-probe", "loss was not finite at step 40 <b>"),
        (1, {"learning_rate_start": 1e-3}, "exploit", metrics(0.7)),
        (2, {"coeff_edge_diff": 900.0}, "force-branch", metrics(0.66)),
        seeds=2,
    )  # fmt: skip
    m.choose(4, fallbacks=["slot 2: parent 99 is unknown; the rules chose 1"])
    constant = metrics(0.5, connectivity_R2=None, reasons={"connectivity_R2": "the learned values are constant"})
    iteration(
        1, 3,
        (4, {}, "robustness-test", metrics(0.89)),
        (4, {"coeff_W_L1": 1e-4}, "exploit", metrics(0.91)),
        (4, noise(0.15), "exploit", metrics(0.72)),
        (4, {"batch_size": 2}, "exploit", constant),
    )  # fmt: skip
    m.journal.append("proposal_rejected", iteration=3, errors=["learning_rate_start 7 is outside its range"], usage={})
    m.choose(9)
    iteration(
        1, 4,
        (9, {"data_augmentation_loop": 50}, "exploit", metrics(0.92)),
        (4, {"data_augmentation_loop": 50}, "exploit", metrics(0.94)),
        (9, {"coeff_edge_norm": 10.0}, "failure-probe", metrics(0.3)),
        (9, {"coeff_edge_norm": 2.0}, "exploit", metrics(0.9)),
    )  # fmt: skip
    m.choose(13, parents=["root"] * 4, user_input="try noise 0.1 " + SCRIPT)
    edit = {"reason": "branching rate 0 %", "diff": DIFF}
    m.journal.append("protocol_edited", block=1, by="rules", protocol="rules\n| new row |\n", **edit)
    m.end_block(1, "branching rate 0 %")
    iteration(
        2, 1,
        ("root", {}, "root", metrics(0.4)),
        ("root", noise(0.1), "exploit", metrics(0.7)),
        ("root", noise(0.2), "explore", metrics(0.2)),
        ("root", {"batch_size": 4}, "exploit", metrics(0.5)),
    )  # fmt: skip
    m.choose(17)
    iteration(
        2, 2,
        (17, {"batch_size": 4}, "exploit", metrics(0.85)),
        (17, {"batch_size": 2}, "exploit", metrics(0.8)),
        (17, {"learning_rate_start": 1e-3}, "exploit", metrics(0.75)),
        (16, {}, "robustness-test", metrics(0.42)),
    )  # fmt: skip
    m.choose(20)
    iteration(
        2, 3,
        (20, {"data_augmentation_loop": 60}, "exploit", "running"),
        (20, {"coeff_W_L1": 1e-6}, "exploit", "running"),
    )  # fmt: skip
    for node in (13, 20):
        m.figure(node, "activity", "recovery")
    (m.folder / "analysis.md").write_text("## Iter 1: partial\n" + SCRIPT)
    (m.folder / "config.yaml").write_text("name: made-up\n")
    m.journal.close()
    return m.folder
