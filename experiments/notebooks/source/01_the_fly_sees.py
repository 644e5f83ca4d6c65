# %% [markdown]
# # 1. The fly sees
#
# Show a moving scene to the fly's visual system, look at its activity, and measure what its cell types are tuned to. A
# minute on a CPU.

# %%
import os
import tempfile
from pathlib import Path

from IPython.display import Image, display

import flyjax

TINY = bool(os.environ.get("FLYJAX_TINY"))  # smallest sizes, for a test of this notebook
extent = 1 if TINY else 3  # radius of the eye in columns; 8 is flyvis' own
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A scene and the activity that it causes
#
# The connectome of flyvis, with sampled parameters, or with those of the trained model flow/0000/000 if it is on this
# machine (`python scripts/fetch_flyvis.py` says how to get it). The maps show the deviation of every cell type's
# voltages from their mean, column by column.

# %%
from flyjax.ground_truth.flyvis_ensemble import checkpoint_file

try:
    checkpoint_file("flow/0000/000")
    parameters = "flow/0000/000"
except flyjax.UserError:
    parameters = "sampled"
simulation = flyjax.Simulation(
    extent=extent, parameters=parameters, visual_input_type="scenes_flow", n_frames=60 if TINY else 500
)
recording = flyjax.record(simulation, noise_model_level=0.0)
circuit = recording.connectome
print(f"{circuit.n_neurons:,} neurons, {circuit.n_edges:,} synapses, parameters: {parameters}")

# %%
from flyjax.report.figures.hexmaps import VoltageMaps, maps_figure

maps = VoltageMaps(recording)
display(Image(maps_figure(folder / "maps.png", maps)))

# %% [markdown]
# The same as a film: the scene, and one cell type per stage from the eye to the motion detectors T4 and T5.

# %%
from flyjax.report.figures.films import film_frames, write_gif

film = film_frames(maps, n_frames=10 if TINY else 50)
display(Image(write_gif(folder / "film.gif", film, recording.dt)))

# %% [markdown]
# ## Motion
#
# ON and OFF edges move across the eye in 12 directions. The direction selectivity index (DSI) is 0 where all directions
# give the same peak response, and 1 where only one gives any. Definitions: `docs/tuning.md`.

# %%
from flyjax.report.figures.tuning import edges_figure, fields_figure, flashes_figure
from flyjax.tuning import Circuit, Flashes, MovingEdges, WhiteNoise, flashes, moving_edges, receptive_fields

fly = Circuit(*recording.ground_truth)
edges = moving_edges(fly, MovingEdges(speeds=(19.0,) if TINY else (4.8, 9.7, 19.0), dt=0.02 if TINY else 0.01))
display(Image(edges_figure(folder / "edges.png", [edges], f"Moving edges, {parameters}")))

# %% [markdown]
# Sampled parameters have the signs and numbers of synapses of the fly, but were never trained to see motion. This is
# flow/0000/000 at extent 8, trained on optic flow: T4 and T5 prefer the four published directions.

# %%
display(Image("experiments/results/tuning/moving_edges.png"))

# %% [markdown]
# ## Flashes and receptive fields

# %%
flashed = flashes(fly, Flashes(radius=1 if TINY else 3, duration=0.2 if TINY else 1.0, dt=0.02 if TINY else 0.01))
display(Image(flashes_figure(folder / "flashes.png", [flashed], f"Flashes, {parameters}")))

# %%
noise = WhiteNoise(duration=1.0 if TINY else 30.0, dt=0.02 if TINY else 0.01, n_lags=10)
fields = receptive_fields(fly, noise)
display(Image(fields_figure(folder / "fields.png", [fields], circuit.columns, f"Receptive fields, {parameters}")))

# %% [markdown]
# Next: [2. Train and recover](02_train_and_recover.ipynb).
