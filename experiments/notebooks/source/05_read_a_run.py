# %% [markdown]
# # 5. Read a run
#
# A run is a folder; its journal is the state of the search. This notebook reads the quickstart that lies in the
# repository (24 configurations and their confirmation). Set `run_dir` to one of yours.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

import flyjax

TINY = bool(os.environ.get("FLYJAX_TINY"))  # smallest sizes, for a test of this notebook
run_dir = Path("experiments/results/quickstart")
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The search
#
# Left: the tree of configurations. Each point is a node; a line leads to its parent.

# %%
from flyjax.report.figures.run import run_figure

display(Image(run_figure(folder / "run.png", run_dir)))

# %% [markdown]
# ## Nodes as a table
#
# `pandas.DataFrame(run.nodes)` makes it a data frame; `run.trainings` has one row per seed.

# %%
run = flyjax.load_run(run_dir)
best = sorted(run.nodes, key=lambda row: -(row["connectivity_R2"] or 0))[:6]
for row in best:
    print({name: row[name] for name in ("node", "strategy", "connectivity_R2", "V_rest_R2", "noise_model_level")})

# %% [markdown]
# ## Read-outs
#
# The same trainings by four methods. The published formula reads the network where it was asked to extrapolate; the
# others stay where there are data. Lower is better; the axis is the share of variance that is missed.

# %%
read_outs = {"": "published", "_data": "on data", "_refit": "refit", "_ceiling": "ceiling"}
quantities = {"connectivity_R2": "W", "tau_R2": "tau", "V_rest_R2": "V_rest"}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True, layout="constrained")
for axis, (name, title) in zip(axes, quantities.items()):
    for k, suffix in enumerate(read_outs):
        missed = [1 - row[name + suffix] for row in run.trainings if row.get(name + suffix) is not None]
        axis.plot(np.full(len(missed), k), np.maximum(missed, 1e-9), "o", ms=4, alpha=0.5)
    axis.set(yscale="log", title=title)
    axis.set_xticks(range(len(read_outs)), read_outs.values(), rotation=20)
axes[0].set_ylabel("1 - R2")
plt.show()

# %% [markdown]
# ## The landscape
#
# A map of the trainings: which settings matter, and where recovery works, with 90 % intervals. The quickstart's 18
# configurations are too few for one that predicts configurations which were held out, and the map says so.

# %%
from flyjax.config import PROTOCOL_RANGES
from flyjax.landscape import FAST, Trainings, fit

# Both stimuli of the run on one map: alone they have too few configurations.
landscape = fit(Trainings.read([run_dir]), PROTOCOL_RANGES, sizes=FAST, pool=True)
for name, value in landscape.summary().items():
    print(f"{name}: {value}")

# %% [markdown]
# With hundreds of trainings it has skill. This one is of the study in the repository
# (`experiments/results/landscape/landscape.md`; `docs/landscape.md` says how to read it).

# %%
figures = sorted(Path("experiments/results/landscape/figures").glob("*overview*.png"))
display(Image(figures[0]) if figures else "no figure of the study")

# %% [markdown]
# More: `python scripts/report.py RUN` draws the page, `python scripts/landscape.py RUN [RUN ...]` the map of several
# runs, `python scripts/evaluate.py RUN --node N` evaluates a node again.
#
# Next: [6. Your own circuit](06_your_own_circuit.ipynb).
