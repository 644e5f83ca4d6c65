"""Parameter files of flyvis, read without torch."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from flyjax.circuit import build_connectome, expand, load_flyvis_parameters, read_flyvis
from flyjax.circuit.torch_checkpoint import read_torch_checkpoint
from flyjax.utils.errors import UserError


@pytest.fixture(scope="module")
def sampled(root):
    return root / "tests" / "data" / "flyvis_sampled_traces.npz"


# --- npz ----------------------------------------------------------------------------------------


def test_weights_are_bit_equal_where_counts_are_stored(golden):
    c = build_connectome(2)
    path = golden / "flyvis_flow_0000_000.npz"
    p = load_flyvis_parameters(c, path)
    with np.load(path) as z:
        strength = dict(zip(zip(z["edge_source_type"], z["edge_target_type"]), z["edge_syn_strength"]))
        sign = dict(zip(zip(z["edge_source_type"], z["edge_target_type"]), z["edge_sign"]))
        offsets = zip(z["offset_source"], z["offset_target"], z["offset_du"], z["offset_dv"])
        count = dict(zip(offsets, z["offset_syn_count"]))
        tau = dict(zip(z["cell_types"], z["time_const"]))
        bias = dict(zip(z["cell_types"], z["bias"]))
        log_n_syn = z["offset_log_syn_count"]
    names = np.array(c.cell_types)
    expected = np.empty(c.n_edges, np.float32)
    for e, (s, r) in enumerate(zip(c.senders, c.receivers)):
        pair = names[c.cell_type[s]], names[c.cell_type[r]]
        n = count[c.cell_type[s], c.cell_type[r], c.u[r] - c.u[s], c.v[r] - c.v[s]]
        expected[e] = np.float32(np.float32(sign[pair] * n) * strength[pair])
    np.testing.assert_array_equal(p.weight, expected)
    np.testing.assert_array_equal(p.tau, [tau[names[k]] for k in c.cell_type])
    np.testing.assert_array_equal(p.v_rest, [bias[names[k]] for k in c.cell_type])
    # From the logarithms: within 2 units in the last place.
    types = read_flyvis(c, path)
    other = np.asarray(expand(c, *types[:3], n_syn=np.exp(log_n_syn)).weight)
    assert (np.abs(other - expected) <= 2 * np.spacing(np.abs(expected))).all()


def test_rows_are_found_by_name_not_by_position(sampled, tmp_path):
    c = build_connectome(1)
    with np.load(sampled) as z:
        data = {k: z[k] for k in z.files}
    order = np.random.default_rng(0).permutation(604)
    for key in ("edge_source_type", "edge_target_type", "edge_syn_strength"):
        data[key] = data[key][order]
    for key in ("cell_types", "bias", "time_const"):
        data[key] = data[key][::-1]
    np.savez(tmp_path / "shuffled.npz", **data)
    for a, b in zip(load_flyvis_parameters(c, tmp_path / "shuffled.npz"), load_flyvis_parameters(c, sampled)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.pop("bias"), "lacks bias"),
        (lambda d: d.update(bias=d["bias"] * np.nan), "NaN"),
        (lambda d: d.update(time_const=-d["time_const"]), "positive"),
        (lambda d: d.update(cell_types=np.array(["X", *d["cell_types"][1:]])), "cell types"),
        (lambda d: d.update(edge_source_type=np.roll(d["edge_source_type"], 1)), "type pairs"),
        (lambda d: d.update(edge_sign=np.ones(604, np.float32)), "signs"),
    ],
)
def test_parameter_files_that_do_not_fit(sampled, tmp_path, change, words):
    with np.load(sampled) as z:
        data = {k: z[k] for k in z.files}
    change(data)
    np.savez(tmp_path / "bad.npz", **data)
    with pytest.raises(UserError, match=words):
        load_flyvis_parameters(build_connectome(1), tmp_path / "bad.npz")


def test_missing_and_foreign_files(tmp_path):
    c = build_connectome(0)
    with pytest.raises(UserError, match="fetch_flyvis"):
        load_flyvis_parameters(c, tmp_path / "absent")
    with pytest.raises(UserError, match="fetch_flyvis"):
        load_flyvis_parameters(c, tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="neither"):
        load_flyvis_parameters(c, tmp_path / "text")


# --- torch zip: written by hand, opcode by opcode, since torch is not at hand --------------------


def _text(s):
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def _int(n):
    return b"J" + struct.pack("<i", n)


def _tuple(*items):
    return b"(" + b"".join(items) + b"t"


def _global(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def _ordered(items, state=b""):
    filled = b"(" + b"".join(_text(k) + v for k, v in items.items()) + b"u" if items else b""
    return _global("collections", "OrderedDict") + b")R" + filled + state


def _dict(items):
    return b"}" + (b"(" + b"".join(_text(k) + v for k, v in items.items()) + b"u" if items else b"")


def _tensor(key, array, kind="FloatStorage", offset=0, numel=None, size=None, stride=None):
    size = array.shape if size is None else size
    stride = tuple(s // array.itemsize for s in array.strides) if stride is None else stride
    storage = (
        _tuple(_text("storage"), _global("torch", kind), _text(key), _text("cpu"), _int(numel or array.size)) + b"Q"
    )
    numbers = (_tuple(*map(_int, size)), _tuple(*map(_int, stride)))
    arguments = _tuple(storage, _int(offset), *numbers, b"\x89", _ordered({}))
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def write_torch(path, body, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best_chkpt/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("best_chkpt/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"best_chkpt/data/{key}", array.tobytes())
        archive.writestr("best_chkpt/version", "3\n")
    return path


def network(c, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "nodes_bias": rng.normal(0.5, 0.1, c.n_types).astype(np.float32),
        "nodes_time_const": rng.uniform(0.02, 0.1, c.n_types).astype(np.float32),
        "edges_sign": c.pair_sign.copy(),
        "edges_syn_count": np.log(c.key_n_syn),
        "edges_syn_strength": rng.uniform(0, 0.1, len(c.pairs)).astype(np.float32),
    }


def write_checkpoint(path, arrays, extra=None):
    """As flyvis saves one: state dicts with metadata, a decoder with an integer counter, a NumPy loss."""
    storages = {str(k): array for k, array in enumerate(arrays.values())}
    tensors = {name: _tensor(str(k), array) for k, (name, array) in enumerate(arrays.items())}
    metadata = _dict({"_metadata": _ordered({"": _dict({"version": _int(1)})})}) + b"b"
    storages["n"] = np.array([232_080])
    decoder = _ordered({"base.1.num_batches_tracked": _tensor("n", storages["n"], "LongStorage", size=(), stride=())})
    state = _tuple(_int(3), _text("<"), b"N", b"N", b"N", _int(-1), _int(-1), _int(0)) + b"b"
    dtype = _global("numpy", "dtype") + _tuple(_text("f8"), b"\x89", b"\x88") + b"R" + state
    number = _global("_codecs", "encode") + _tuple(_text("01234567"), _text("latin1")) + b"R"
    loss = _global("numpy._core.multiarray", "scalar") + _tuple(dtype, number) + b"R"
    body = {
        "network": _ordered(tensors, metadata),
        "decoder": _dict({"flow": decoder}),
        "val_loss": loss,
        "iteration": _int(9),
    }
    return write_torch(path, _dict(body | (extra or {})), storages)


def test_an_official_checkpoint_is_read_without_torch(tmp_path):
    c = build_connectome(1)
    arrays = network(c)
    path = write_checkpoint(tmp_path / "best_chkpt", arrays)
    assert read_torch_checkpoint(path)["iteration"] == 9
    np.testing.assert_array_equal(read_torch_checkpoint(path)["decoder"]["flow"]["base.1.num_batches_tracked"], 232_080)
    for source in (path, tmp_path):  # the file, or the model folder
        p = load_flyvis_parameters(c, source)
        n_syn = np.exp(arrays["edges_syn_count"])
        expected = (c.pair_sign[c.key_pair] * n_syn * arrays["edges_syn_strength"][c.key_pair])[c.offset_key]
        np.testing.assert_array_equal(p.weight, expected)
        np.testing.assert_array_equal(p.tau, arrays["nodes_time_const"][c.cell_type])
        np.testing.assert_array_equal(p.v_rest, arrays["nodes_bias"][c.cell_type])


def test_views_of_a_storage(tmp_path):
    whole = np.arange(12, dtype=np.float32)
    body = _dict({"a": _tensor("0", whole, size=(2, 3), stride=(1, 4), offset=1)})
    found = read_torch_checkpoint(write_torch(tmp_path / "f", body, {"0": whole}))["a"]
    np.testing.assert_array_equal(found, [[1, 5, 9], [2, 6, 10]])


@pytest.mark.parametrize(
    "module, name",
    [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "load"), ("torch", "storage.os")],
)
def test_any_other_global_is_refused_by_name_and_not_run(tmp_path, module, name):
    c = build_connectome(0)
    marker = tmp_path / "ran"
    attack = _global(module, name) + _tuple(_text(f"touch {marker}")) + b"R"
    path = write_checkpoint(tmp_path / "best_chkpt", network(c), {"time": attack})
    with pytest.raises(UserError, match=f"{module}.{name}"):
        load_flyvis_parameters(c, path)
    assert not marker.exists()


class _Attack:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_real_pickle_attack_is_refused_at_every_protocol(tmp_path, protocol):
    body = pickle.dumps({"network": _Attack()}, protocol=protocol)
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("best_chkpt/data.pkl", body)
    with pytest.raises(UserError, match="system"):
        read_torch_checkpoint(tmp_path / "f")


@pytest.mark.parametrize(
    "tensor",
    [
        dict(size=(5,), stride=(1,)),
        dict(size=(4,), stride=(2,)),
        dict(size=(2,), stride=(1,), offset=3),
        dict(size=(2,), stride=(1,), offset=-1),
        dict(size=(2,), stride=(-1,)),
        dict(size=(1 << 30, 1 << 30), stride=(0, 0)),
        dict(numel=5),
        dict(kind="DoubleStorage"),
        dict(kind="UntypedStorage"),
    ],
)
def test_tensor_headers_that_lie(tmp_path, tensor):
    array = np.zeros(4, np.float32)
    path = write_torch(tmp_path / "f", _dict({"a": _tensor("0", array, **tensor)}), {"0": array})
    with pytest.raises(UserError) as error:
        read_torch_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a: a.pop("nodes_bias"), "lacks nodes_bias"),
        (lambda a: a.update(edges_syn_count=a["edges_syn_count"][:-1]), "extent 15"),
        (lambda a: a.update(edges_sign=-a["edges_sign"]), "signs"),
        (lambda a: a.update(nodes_bias=a["nodes_bias"] * np.float32(np.inf)), "NaN"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, change, words):
    c = build_connectome(0)
    arrays = network(c)
    change(arrays)
    with pytest.raises(UserError, match=words):
        load_flyvis_parameters(c, write_checkpoint(tmp_path / "best_chkpt", arrays))


def test_every_cut_of_a_checkpoint_is_one_clear_line(tmp_path):
    c = build_connectome(0)
    whole = write_checkpoint(tmp_path / "best_chkpt", network(c)).read_bytes()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "best_chkpt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = members["best_chkpt/data.pkl"]
    for k in range(60):
        if k % 2:  # a torn file
            (tmp_path / "cut").write_bytes(whole[: rng.integers(0, len(whole) - 1)])
        else:  # a pickle with changed bytes
            spoilt = bytearray(pickled)
            for at in rng.integers(0, len(spoilt), 3):
                spoilt[at] = rng.integers(0, 256)
            with zipfile.ZipFile(tmp_path / "cut", "w") as archive:
                for name, text in (members | {"best_chkpt/data.pkl": bytes(spoilt)}).items():
                    archive.writestr(name, text)
        try:
            load_flyvis_parameters(c, tmp_path / "cut")
        except UserError as error:
            assert "\n" not in str(error)


# --- damage -------------------------------------------------------------------------------------


def test_a_mutant_of_a_parameter_file_is_read_or_refused(sampled, tmp_path):
    c, original, path = build_connectome(0), sampled.read_bytes(), tmp_path / "mutant.npz"
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(original)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data))
        try:
            p = load_flyvis_parameters(c, path)
        except UserError as error:
            assert "mutant.npz" in str(error) and "\n" not in str(error)
        else:
            assert all(np.isfinite(a).all() for a in p)


@pytest.mark.parametrize("member", ["bias.npy", "archive/data.pkl"])
def test_a_file_that_unpacks_to_much_is_refused_before_it_is(tmp_path, member):
    path = tmp_path / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="bomb.*bytes"):
        read_flyvis(build_connectome(0), path)


def test_weights_that_overflow_are_refused(sampled, tmp_path):
    with np.load(sampled) as z:
        data = {k: z[k] for k in z.files}
    data["edge_syn_strength"] = np.full_like(data["edge_syn_strength"], 3e38)
    np.savez(tmp_path / "large.npz", **data)
    with pytest.raises(UserError, match="large.npz"):
        load_flyvis_parameters(build_connectome(0), tmp_path / "large.npz")
