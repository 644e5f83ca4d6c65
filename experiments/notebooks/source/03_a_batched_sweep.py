# %% [markdown]
# # 3. A batched sweep
#
# Many candidates and seeds are trained in one compiled program. On a GPU or TPU (Runtime, Change runtime type) dozens
# of small trainings cost little more than one; with several devices they are distributed.

# %%
import os
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

import flyjax

TINY = bool(os.environ.get("FLYJAX_TINY"))  # smallest sizes, for a test of this notebook
large = jax.default_backend() != "cpu"
extent = 0 if TINY else 1
simulation = flyjax.Simulation(
    extent=extent, visual_input_type="scenes_texture", n_frames=160 if TINY else 800, n_test_frames=40 if TINY else 200
)

# %% [markdown]
# Learning rates, penalties and noise levels differ freely within a program. The batch size is static: another value
# needs another program.

# %%
noise_levels = [0.05, 0.1] if TINY else [0.02, 0.05, 0.1, 0.2]
rates = [1e-3] if TINY else [3e-4, 1e-3, 3e-3]
loops = 2 if TINY else 25
candidates = [
    {"noise_model_level": noise, "learning_rate_W_start": rate, "batch_size": 4, "data_augmentation_loop": loops}
    for noise in noise_levels
    for rate in rates
]
seeds = list(range(8)) if large else [0]
start = time.perf_counter()
results = flyjax.train_candidates(simulation, candidates, seeds=seeds)
seconds = time.perf_counter() - start
print(f"{len(candidates)} candidates x {len(seeds)} seeds on {jax.devices()[0].platform}: {seconds:.0f} s in all")

# %%
names = {"connectivity_R2": "W", "tau_R2": "tau", "V_rest_R2": "V_rest"}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True, layout="constrained")
for axis, (name, title) in zip(axes, names.items()):
    values = [np.nan if r.metrics[name] is None else r.metrics[name] for r in results]
    grid = np.reshape(values, (len(noise_levels), len(rates)))
    picture = axis.imshow(grid, vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(rates)), rates)
    axis.set_yticks(range(len(noise_levels)), noise_levels)
    axis.set(title=f"R2 of {title}", xlabel="learning rate of W")
    for (i, j), value in np.ndenumerate(grid):
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
axes[0].set_ylabel("noise_model_level")
figure.colorbar(picture, ax=axes)
plt.show()

# %% [markdown]
# From the command line the same is a file: `experiments/sweep_random.yaml`, with a grid, a list, or random or Sobol
# samples. It can be interrupted and resumed:
#
# ```
# python scripts/sweep.py experiments/sweep_random.yaml
# python scripts/landscape.py runs/sweep_random
# ```
#
# Next: [4. The search loop](04_the_search_loop.ipynb).
