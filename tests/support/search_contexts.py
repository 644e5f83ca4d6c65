"""Contexts and runs made of events, for tests of proposers: no training."""

from __future__ import annotations

import struct
import zlib

from flyjax.config import parse_experiment
from flyjax.search.iteration import root_config
from flyjax.search.journal.state import fold
from flyjax.search.proposals.types import ROOT, Context
from flyjax.search.proposals.validation import child_config

PROTOCOL = """# Study

## Goal
Recover the connectome.

## Parent Selection Rule (CRITICAL)

| Condition | Strategy | Action |
|---|---|---|
| Default | **exploit** | Use highest UCB node, try new mutation |
| 3+ consecutive successes (R2 >= 0.9) | **failure-probe** | Push one parameter to an extreme (10x or 0.1x) |

## END Parent selection Rule (CRITICAL)

## Log Format
One entry for each node.
"""


def experiment(**search):
    """Two stimuli, K = 3, blocks of 3 iterations, by default."""
    stimuli = ["scenes_texture", "scenes_flow"]
    return parse_experiment(
        {
            "name": "played",
            "simulation": {"extent": 1, "visual_input_type": stimuli[0], "n_frames": 2000},
            "search": {
                "n_candidates": 3,
                "n_iter_block": 3,
                "n_blocks": 2,
                "confirm_share": 0,
                "simulation_ranges": {
                    "visual_input_type": {"scale": "choice", "values": stimuli},
                    "n_frames": {"min": 1000, "max": 4000, "scale": "int"},
                    "delta_t": {"min": 0.01, "max": 0.05},
                },
                **search,
            },
        }
    )


def metrics(r2):
    names = ("tau_R2", "V_rest_R2", "cluster_accuracy", "test_R2", "test_pearson")
    return {"connectivity_R2": r2, **{name: round(0.9 * r2, 4) for name in names}, "final_loss": 0.1}


def events(exp, iterations, protocol=PROTOCOL):
    """Events of a run with so many iterations trained, every step but the newest taken."""
    out = [{"event": "run_started", "experiment": exp.model_dump(mode="json"), "protocol": protocol}]
    search, node, chosen = exp.search, 0, ROOT
    configs = {ROOT: root_config(exp)}
    for number in range(1, iterations + 1):
        block, here = (number - 1) // search.n_iter_block + 1, (number - 1) % search.n_iter_block + 1
        nodes = []
        for k in range(search.n_candidates):
            node += 1
            parent = ROOT if here == 1 else chosen
            changes = {} if here == 1 and k == 0 else {"coeff_edge_diff": float(100 + 7 * node)}
            changes, configs[node] = child_config(exp, configs[parent], changes)
            nodes.append({"node": node, "parent": parent, "config": configs[node], "changes": changes, "seeds": [node]})
            nodes[-1] |= {"strategy": "root" if not changes else "exploit", "hypothesis": "h"}
        simulation = exp.simulation.model_dump(mode="json")
        started = {"iteration": number, "block": block, "iter_in_block": here, "simulation": simulation, "nodes": nodes}
        out.append({"event": "iteration_started", **started})
        out += [
            {
                "event": "node_finished",
                "node": n["node"],
                "metrics": metrics(0.5 + n["node"] / 100),
                "activity": f"rank {n['node']}",
            }
            for n in nodes
        ]
        chosen = node
        if number < iterations:
            out.append(
                {"event": "choice", "iteration": number, "chosen": chosen, "reason": "best", "next_parents": [chosen]}
            )
    return [{"schema": 1, "time": float(t), **e} for t, e in enumerate(out)]


def context(run_dir, exp=None, iterations=1, protocol=PROTOCOL, more=(), **fields):
    """What a proposer is asked after so many iterations (0: the first step of a run)."""
    exp = exp or experiment()
    search = exp.search
    state = fold([*events(exp, iterations, protocol), *({"schema": 1, "time": 1e3, **e} for e in more)])
    here = 0 if iterations == 0 else (iterations - 1) % search.n_iter_block + 1
    opens = here in (0, search.n_iter_block)
    known = {
        "experiment": exp,
        "state": state,
        "protocol": state.protocol,
        "block": max(1, (iterations - 1) // search.n_iter_block + 1),
        "iter_in_block": here,
        "n_iter_block": search.n_iter_block,
        "new_nodes": state.iterations[iterations].nodes if iterations else (),
        "n_proposals": search.n_candidates - opens,
        "next_opens_block": opens,
        "available_stimuli": ("scenes_texture", "scenes_flow", "scenes_edges"),
        "run_dir": run_dir,
    }
    return Context(**{**known, **fields})


def png(width=30, height=20) -> bytes:
    """A grey picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
