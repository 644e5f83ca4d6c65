"""flyjax: recover a fly's visual circuit from its activity, and search for the settings that make it work.

import flyjax
c = flyjax.build_connectome(extent=8)
p = flyjax.sample_parameters(c, seed=0)
v = flyjax.simulate(c, p, luminance, dt=0.02)
"""

import importlib

__version__ = "0.2.0"

# Names are imported at first use, so that `import flyjax` is fast and starts no device.
_PUBLIC = {
    "build_connectome": "flyjax.circuit",
    "sample_parameters": "flyjax.ground_truth",
    "load_flyvis_parameters": "flyjax.circuit",
    "simulate": "flyjax.simulation",
    "record": "flyjax.data",
    "load_recording": "flyjax.data",
    "Recording": "flyjax.data",
    "train_candidates": "flyjax.api",
    "enable_compilation_cache": "flyjax.cli.app",
    "closed_form": "flyjax.recovery",
    "load_run": "flyjax.report.run_tables",
    "Simulation": "flyjax.config",
    "Model": "flyjax.config",
    "Training": "flyjax.config",
    "Experiment": "flyjax.config",
    "load_experiment": "flyjax.config",
    "UserError": "flyjax.utils.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flyjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
