# %% [markdown]
# # 6. Your own circuit
#
# A circuit is two tables, neurons and edges; it needs no hexagonal lattice. Here three neurons, written by hand, are
# simulated, recorded, trained and read off. `docs/how_to/own_connectome.md` has every column, a subset of the fly's
# cell types, and FlyWire.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import flyjax

TINY = bool(os.environ.get("FLYJAX_TINY"))  # smallest sizes, for a test of this notebook
folder = Path(tempfile.mkdtemp()) / "three_neurons"
folder.mkdir()

# %% [markdown]
# ## Two tables
#
# `input` names the column of the eye that a neuron sees, counted from 1 at the centre. `tau` (s), `v_rest` and `weight`
# are the parameters of the ground truth; without them they are sampled.

# %%
(folder / "neurons.csv").write_text("""id,type,input,tau,v_rest
light,photoreceptor,1,0.03,-0.4
relay,excitatory,,0.06,-0.1
brake,inhibitory,,0.12,0.1
""")
(folder / "edges.csv").write_text("""pre,post,count,sign,weight
light,relay,9,1,0.9
light,brake,5,1,0.5
relay,brake,7,1,0.7
brake,relay,8,-1,-0.8
brake,light,3,-1,-0.3
relay,relay,2,1,0.2
""")
simulation = flyjax.Simulation(
    connectome=str(folder),
    parameters=str(folder),
    extent=0,
    visual_input_type="white_noise",
    test_visual_input_type="scenes_texture",
    n_frames=300 if TINY else 2000,
    n_test_frames=60 if TINY else 200,
)

# %% [markdown]
# ## Simulate and record

# %%
recording = flyjax.record(simulation, noise_model_level=0.3)
print(recording.connectome, flyjax.closed_form(recording))
frames = np.arange(min(150, recording.n_frames))
figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
axis.plot(frames * recording.dt, recording.voltage[frames], lw=1, label=["light", "relay", "brake"])
axis.set(xlabel="s", ylabel="voltage")
axis.legend(ncol=3, frameon=False)
plt.show()

# %% [markdown]
# ## Train and read off
#
# A graph neural network that knows neither the equation nor a weight. Strong process noise moves every neuron, and the
# two curvature penalties keep the learned functions straight where the recording says nothing about them.

# %%
candidate = {
    "noise_model_level": 0.3,
    "learning_rate_W_start": 0.003,
    "learning_rate_start": 0.003,
    "learning_rate_embedding_start": 0.003,
    "coeff_W_L1": 0.0,
    "coeff_edge_bend": 10.0,
    "coeff_update_bend": 1.0,
    "batch_size": 16,
    "data_augmentation_loop": 2 if TINY else 50,
    "schedule": "warmup_cosine",
}
(result,) = flyjax.train_candidates(simulation, [candidate], seeds=[0])
for name in ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2"):
    print(name, result.metrics[name])

# %%
if result.evaluation is not None:
    true, found = recording.parameters, result.evaluation.estimate
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    for axis, name, a, b in zip(axes, ("weight", "tau (s)", "V_rest"), true, found):
        axis.plot(a, b, "o")
        axis.axline((0, 0), slope=1, color="0.7", lw=1)
        axis.set(xlabel=f"true {name}", ylabel=f"learned {name}")
    plt.show()

# %% [markdown]
# Your own recording, without ground truth: `docs/how_to/own_recording.md`. Your own stimulus, model, regulariser,
# metric or proposer: `docs/how_to/own_parts.md`.
