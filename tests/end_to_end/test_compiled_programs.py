"""Every compiled program of a training and its evaluation is found again by the next process."""

import os
import subprocess
import sys

PROGRAM = """
from collections import Counter

import jax

import flyjax

jax.jit(lambda x: x + 1)(0)  # from here on JAX would keep none
flyjax.enable_compilation_cache()
events = Counter()
jax.monitoring.register_event_listener(lambda name, **more: events.update([name.rsplit("/")[-1]]))
jax.monitoring.register_event_duration_secs_listener(lambda name, s, **more: events.update([name.rsplit("/")[-1]]))

from flyjax.config import Model, Simulation

simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=80, n_test_frames=70)
flyjax.train_candidates(simulation, [{"noise_model_level": 0.05, "data_augmentation_loop": 1}], model=Model(width=8))
print(events["backend_compile_duration"], events["cache_hits"])
"""


def test_a_second_process_compiles_nothing(tmp_path, root):
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_P", "JAX_COMP")) and k != "EQX_ON_ERROR"}
    environment = outside | {
        "PYTHONPATH": str(root),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(tmp_path),
    }

    def run() -> tuple[int, int]:
        call = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
        needed, found = map(int, done.stdout.split()[-2:])
        return needed, found

    assert run()[1] == 0
    needed, found = run()
    assert needed == found > 20
