# %% [markdown]
# # 2. Train a network and recover the circuit from it
#
# A graph neural network sees voltages, stimulus, and which neuron connects to which. From the trained network the
# synaptic weights W, time constants tau and resting potentials V_rest are read off. About a minute on a CPU.

# %%
import os
import tempfile
from pathlib import Path

from IPython.display import Image, display

import flyjax

TINY = bool(os.environ.get("FLYJAX_TINY"))  # smallest sizes, for a test of this notebook
extent = 0 if TINY else 1
folder = Path(tempfile.mkdtemp())
simulation = flyjax.Simulation(
    extent=extent, visual_input_type="scenes_texture", n_frames=160 if TINY else 1600, n_test_frames=40 if TINY else 400
)

# %% [markdown]
# ## What could be recovered?
#
# Least squares with the known equation is the limit of every method: it says which edges and neurons the recording
# determines at all.

# %%
recording = flyjax.record(simulation, noise_model_level=0.1)
print(flyjax.closed_form(recording))

# %% [markdown]
# ## Train
#
# Two seeds, in one program. Process noise in the training recording (`noise_model_level`) excites the neurons
# independently of each other and makes the circuit easier to recover.

# %%
candidate = {"noise_model_level": 0.1, "batch_size": 4, "learning_rate_start": 1e-3}
if TINY:
    candidate["data_augmentation_loop"] = 2
(result,) = flyjax.train_candidates(simulation, [candidate], seeds=[0, 1])
for seed, metrics in zip(result.seeds, result.per_seed):
    values = {name: metrics[name] for name in ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2")}
    print(f"seed {seed}:", {name: None if value is None else round(value, 3) for name, value in values.items()})

# %% [markdown]
# ## Learned against true
#
# From left to right: weights by the published formula, raw trained weights, time constants, resting potentials.

# %%
from flyjax.report.figures import contents
from flyjax.report.figures.node import recovery_figure

if result.evaluation is not None:
    display(Image(recovery_figure(folder / "recovery.png", contents.recovery(result.evaluation, recording))))

# %% [markdown]
# Every read-out beside the limit: the published formula, planes at the training frames, least squares on the learned
# messages (refit), and least squares on the true ones (ceiling).

# %%
from flyjax.experiments.reevaluate import recovery_table
from flyjax.utils.format import aligned_table, finite

rows = [
    {"of": row["of"], "read-out": row["read-out"], "R2": "-" if finite(row["R2"]) is None else f"{row['R2']:.4f}"}
    for row in recovery_table(result.metrics)
]
print(aligned_table(rows))

# %% [markdown]
# ## Does the network see as the fly does?
#
# Moving edges, which neither was trained on, shown to the true circuit and to the free rollout of the network.

# %%
from flyjax.experiments.tuning import agreement
from flyjax.report.figures.tuning import edges_figure
from flyjax.tuning import Circuit, MovingEdges, Network, moving_edges

settings = MovingEdges(speeds=(19.0,), dt=simulation.delta_t)
best = min(range(len(result.seeds)), key=lambda k: result.per_seed[k].get("final_loss") or float("inf"))
true = moving_edges(Circuit(*recording.ground_truth), settings)
learned = moving_edges(Network(result.learner, result.params[best]), settings)
print(agreement(true, learned))
display(Image(edges_figure(folder / "edges.png", [true, learned], "Moving edges, learned beside true")))

# %% [markdown]
# Next: [3. A batched sweep](03_a_batched_sweep.ipynb).
