# %% [markdown]
# # 4. The search loop
#
# The loop trains, reads the results, chooses a parent in a UCB tree, and proposes the next candidates by the rules of
# `protocol.md`. The proposer is a language model where there is a key, and otherwise a set of rules.

# %%
import os
import sys
import tempfile
from pathlib import Path

from IPython.display import Image, display

import flyjax

TINY = bool(os.environ.get("FLYJAX_TINY"))  # smallest sizes, for a test of this notebook

# %% [markdown]
# ## Key and Drive
#
# A key is read from Colab's secrets (the key symbol on the left, name `ANTHROPIC_API_KEY`); it is never printed or
# written. Where Drive is mounted, the run lies there, and running the notebook again continues it.

# %%
if "google.colab" in sys.modules:
    from google.colab import userdata

    try:
        os.environ["ANTHROPIC_API_KEY"] = userdata.get("ANTHROPIC_API_KEY")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        print("no key among the secrets: the rules propose")
drive = Path("/content/drive/MyDrive")  # from google.colab import drive; drive.mount("/content/drive")
home = drive / "flyjax" if drive.is_dir() else Path(tempfile.gettempdir()) / f"flyjax-{os.getpid()}"
proposer = "llm" if os.environ.get("ANTHROPIC_API_KEY") else "rules"
print(f"proposer {proposer}, run in {home}")

# %% [markdown]
# ## Search, two iterations
#
# The run stops at two dollars whatever happens (`search.max_usd`); rules cost nothing.

# %%
from flyjax.cli.search import SearchRun

settings = [
    f"search.proposer={proposer}",
    "search.n_blocks=1",
    "search.n_iter_block=2",
    "search.n_candidates=2",
    "search.confirm_share=0",
    "search.max_usd=2",
    "training.batch_size=4",
    "simulation.n_frames=800",
]
if TINY:
    settings += ["search.n_iter_block=1", "search.n_candidates=1", "search.simulation_ranges={}"]
    settings += ["simulation.extent=0", "simulation.n_frames=160", "simulation.n_test_frames=40"]
    settings += ["training.data_augmentation_loop=10"]
config = Path("experiments/quickstart.yaml")
run_dir = home / "notebook_search"
experiment = flyjax.load_experiment(config, settings)
outcome = SearchRun(experiment, run_dir, config, settings).run(Path("protocol.md"), commit="notebook")

# %% [markdown]
# The log in the protocol's format. `report.html` beside it shows the tree, the scores and the figures of every node.

# %%
print((run_dir / "analysis.md").read_text()[:1200])
print(f"report: {run_dir / 'report.html'}")

# %% [markdown]
# ## A search by a language model, replayed
#
# Recorded answers of a language model are read, validated and applied again; the scores are those of the recorded run,
# so nothing is trained.

# %%
from flyjax.report.figures.run import run_figure
from flyjax.search.loop import run_loop
from flyjax.search.proposers import make_proposer
from flyjax.search.proposers.replay import recorded_results

transcript = "experiments/transcripts/quickstart_llm.jsonl"
shape = ["search.n_candidates=4", "search.n_iter_block=3", "search.confirm_share=0"]
recorded = flyjax.load_experiment("experiments/quickstart.yaml", [f"search.transcript={transcript}", *shape])
replayed = Path(tempfile.mkdtemp()) / "replayed"
state = run_loop(
    recorded, replayed, recorded_results(transcript), make_proposer("replay", recorded), protocol_template="protocol.md"
).state
print(state.choices[3].reason)
print("at the end of the block it edited its rules:", state.edits[0]["reason"])
display(Image(run_figure(replayed / "tree.png", replayed)))

# %% [markdown]
# Next: [5. Read a run](05_read_a_run.ipynb).
