"""Read a torch zip checkpoint without torch and without executing anything in it.

A torch file is a zip of `data.pkl` (a pickle of names and tensor headers) and raw storages. A
pickle can name any importable function; here only a handful of names resolve, all to inert
classes and functions of this module, and every other name is refused.
"""

import functools
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from flyjax.utils.errors import reading

#: Storage classes and what their raw bytes are.
_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_MAX_BYTES = 256 << 20  # of all that is in a file, unpacked; an official checkpoint has 49 kB


def unpacked_sizes(archive: zipfile.ZipFile) -> dict[str, int]:
    """Bytes of each file in an archive.

    **Raises:** `ValueError` where they are more than any parameter file needs, before anything is unpacked.
    """
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if sum(sizes.values()) > _MAX_BYTES:
        raise ValueError(f"it unpacks to {sum(sizes.values()):,} bytes, more than {_MAX_BYTES:,}")
    return sizes


class _Storage:
    """The class a tensor header names, reduced to its item type."""

    def __init__(self, dtype: str):
        self.dtype = np.dtype(dtype)


def _tensor(storage, offset, size, stride, *_ignored) -> np.ndarray:
    """A tensor header -> array; gradient flags and hooks are of no interest."""
    integers = (
        isinstance(size, tuple)
        and isinstance(stride, tuple)
        and all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    )
    if not isinstance(storage, np.ndarray) or not integers or len(size) != len(stride):
        raise ValueError("a malformed tensor header")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride)) if math.prod(size) else -1
    if last >= storage.size or math.prod(size) > max(storage.size, 1):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


class _Ignored:
    """Takes the place of numbers that numpy pickled (the validation loss) and their type; keeps nothing."""

    def __init__(self, *_ignored):
        pass

    def __setstate__(self, _state):
        pass


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_ignored: tensor,
    ("numpy", "dtype"): _Ignored,
    ("_codecs", "encode"): _Ignored,
    ("numpy.core.multiarray", "scalar"): _Ignored,
    ("numpy._core.multiarray", "scalar"): _Ignored,
    **{("torch", name): _Storage(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, storage):
        super().__init__(io.BytesIO(text))
        self._read_storage = storage

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it names {module}.{name}, which no flyvis checkpoint needs")
        return _ALLOWED[module, name]

    def persistent_load(self, pid):
        match pid:
            case ("storage", _Storage() as kind, str(key), str(), int(n)) if n >= 0:
                return self._read_storage(kind.dtype, key, n)
        raise ValueError("a reference that is not a tensor storage")


def read_torch_checkpoint(path: str | Path) -> dict:
    """The dictionary in a torch zip file, tensors as NumPy arrays.

    **Raises:** `UserError` if the file is missing, torn, not a torch zip, or its pickle names
    anything but tensors, dictionaries and numbers (the refused name is in the message).
    """
    # A pickle stream that was tampered with can fail in any way.
    with reading(path, "take an official one, see scripts/fetch_flyvis.py"), zipfile.ZipFile(path) as archive:
        sizes = unpacked_sizes(archive)
        pickles = [name for name in sizes if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickles) != 1:
            raise ValueError(f"not a torch checkpoint: {len(pickles)} data.pkl in it, expected one")
        prefix = pickles[0].removesuffix("data.pkl")
        if prefix + "byteorder" in sizes and archive.read(prefix + "byteorder") != b"little":
            raise ValueError("its storages are big-endian")

        @functools.cache
        def content(name: str) -> bytes:
            return archive.read(name)

        def storage(dtype: np.dtype, key: str, n: int) -> np.ndarray:
            name = f"{prefix}data/{key}"
            if sizes.get(name, -1) != n * dtype.itemsize:
                raise ValueError(f"storage {key!r} of {sizes.get(name, 0):,} bytes, announced as {n} {dtype}")
            return np.frombuffer(content(name), dtype.newbyteorder("<")).view(dtype)

        return _Unpickler(archive.read(pickles[0]), storage).load()
