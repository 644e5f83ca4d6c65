"""Checkpoints as torch writes them, without torch: a zip of a pickle of tensor headers and raw storages."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from types import ModuleType
from unittest import mock

import numpy as np


class _Tensor:
    def __init__(self, key, values):
        self.key, self.values = key, np.ascontiguousarray(values, np.float32)


def torch_zip(network: dict, extra: dict | None = None) -> bytes:
    """The bytes of a checkpoint {"network": OrderedDict of tensors, **extra}."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    def rebuild(*_):
        raise AssertionError("only its name is pickled")

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v2",
    )
    utils._rebuild_tensor_v2 = rebuild
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    tensors = OrderedDict((name, _Tensor(str(k), values)) for k, (name, values) in enumerate(network.items()))

    class Header(tuple):
        """Stands for a storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            return ("storage", torch.FloatStorage, x[0], "cpu", x[1]) if isinstance(x, Header) else None

        def reducer_override(self, x):
            if isinstance(x, _Tensor):
                n = len(x.values)
                return rebuild, (Header((x.key, n)), 0, (n,), (1,), False, OrderedDict())
            return NotImplemented

    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        text = io.BytesIO()
        Pickler(text, protocol=2).dump({"network": tensors, **(extra or {})})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("best_chkpt/data.pkl", text.getvalue())
        archive.writestr("best_chkpt/byteorder", "little")
        for tensor in tensors.values():
            archive.writestr(f"best_chkpt/data/{tensor.key}", tensor.values.tobytes())
    return out.getvalue()


def flyvis_checkpoint(seed: int = 0, **changes) -> bytes:
    """A made-up flyvis model of the right shapes."""
    from flyjax.circuit import build_connectome

    c, rng = build_connectome(0), np.random.default_rng(seed)
    network = {
        "nodes_bias": rng.normal(0.5, 0.05, c.n_types),
        "nodes_time_const": rng.uniform(0.02, 0.1, c.n_types),
        "edges_sign": c.pair_sign,
        "edges_syn_count": np.log(c.key_n_syn),
        "edges_syn_strength": rng.uniform(0.005, 0.02, len(c.pairs)),
    }
    return torch_zip({**network, **changes})
