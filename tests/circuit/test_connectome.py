"""The network flyvis builds, from its connectome file alone."""

import json

import numpy as np
import pytest

from flyjax.circuit import build_connectome, lattice
from flyjax.circuit.connectome import CONNECTOME_FILE, CONNECTOME_SHA256, fill_hull, read_specs
from flyjax.utils.errors import UserError

# extent: columns, neurons, edges, inputs, largest in-degree (made with flyvis 1.2.0).
FLYVIS = {
    0: (1, 65, 480, 8, 17),
    1: (7, 443, 8_174, 56, 80),
    2: (19, 1_203, 28_904, 152, 152),
    3: (37, 2_345, 63_209, 296, 192),
    4: (61, 3_865, 110_794, 488, 206),
    5: (91, 5_759, 171_471, 728, 208),
    8: (217, 13_741, 434_112, 1_736, 208),
    15: (721, 45_669, 1_513_231, 5_768, 208),
}


@pytest.mark.parametrize("extent", FLYVIS)
def test_sizes_are_those_of_flyvis(extent):
    c = build_connectome(extent)
    degree = np.bincount(c.receivers, minlength=c.n_neurons)
    assert (c.n_columns, c.n_neurons, c.n_edges, len(c.inputs), degree.max()) == FLYVIS[extent]


def slow_edges(data, extent):
    """Edge by edge with dictionaries, the way the rules read; {(source, target): (sign, n_syn)}."""
    stride = {n["name"]: n["pattern"][1] for n in data["nodes"]}
    columns = [tuple(c) for c in lattice(extent).tolist()]
    nodes = [
        (n["name"], c) for n in data["nodes"] for c in columns if all(x % s == 0 for x, s in zip(c, stride[n["name"]]))
    ]
    index = {node: k for k, node in enumerate(nodes)}
    edges = {}
    for spec in data["edges"]:
        offsets = {tuple(o): n for o, n in spec["offsets"]}
        if len(offsets) >= 3:
            for o in fill_hull(np.array(list(offsets))).tolist():
                offsets[tuple(o)] = 1
        for (du, dv), n in offsets.items():
            for u, v in columns:
                pair = index.get((spec["src"], (u, v))), index.get((spec["tar"], (u + du, v + dv)))
                if None not in pair:
                    assert pair not in edges, "node pairs are unique"
                    edges[pair] = spec["alpha"], float(np.float32(n))
    return edges


@pytest.mark.parametrize("extent", [0, 2])
def test_edges_equal_those_of_a_plain_loop(extent):
    c = build_connectome(extent)
    expected = slow_edges(json.loads(CONNECTOME_FILE.read_text()), extent)
    found = {(s, r): (g, n) for s, r, g, n in zip(*(a.tolist() for a in (c.senders, c.receivers, c.sign, c.n_syn)))}
    assert found == expected


def test_edges_are_sorted_and_consistent_with_the_tables():
    c = build_connectome(3)
    rank = c.receivers.astype(np.int64) * c.n_neurons + c.senders
    assert (np.diff(rank) > 0).all()
    source, target, du, dv = c.keys[c.offset_key].T
    assert (c.cell_type[c.senders] == source).all() and (c.cell_type[c.receivers] == target).all()
    assert (c.u[c.receivers] - c.u[c.senders] == du).all() and (c.v[c.receivers] - c.v[c.senders] == dv).all()
    assert (c.pairs[c.edge_pair] == c.keys[c.offset_key][:, :2]).all()
    assert (c.columns[c.column] == np.stack([c.u, c.v], 1)).all()
    assert [c.cell_types[c.cell_type[i]] for i in c.inputs[:: c.n_columns]] == [f"R{k}" for k in range(1, 9)]
    assert (c.input_column == c.column[c.inputs]).all()
    assert [c.cell_types[k] for k in c.cell_type[c.central]] == list(c.cell_types)


def test_tables_are_those_of_the_reference(golden):
    c = build_connectome(4)
    with np.load(golden / "flyvis_flow_0000_000.npz") as z:
        assert tuple(z["cell_types"]) == c.cell_types
        assert tuple(z["output_types"]) == c.output_types and tuple(z["input_types"]) == c.input_types
        keys = np.stack([z[f"offset_{k}"] for k in ("source", "target", "du", "dv")], 1)
        assert (keys == c.keys).all() and (z["edge_sign"] == c.pair_sign).all()
        np.testing.assert_allclose(z["offset_syn_count"], c.key_n_syn, rtol=5e-7)


def test_hull_filling_by_hand():
    # A triangle with its corners listed: the border point (1, 0) and the inside follow the crossing rule.
    square = np.array([[0, 0], [2, 0], [0, 2], [2, 2]])
    filled = {tuple(p) for p in fill_hull(square).tolist()}
    assert (1, 1) in filled and not filled & {(0, 0), (2, 2)}
    assert fill_hull(np.array([[0, 0], [1, 0], [0, 1]])).shape == (0, 2)


@pytest.mark.parametrize("extent", [-1, 16, 2.0, "8", True, None])
def test_bad_extent_names_the_range(extent):
    with pytest.raises(UserError, match="0 to 15"):
        build_connectome(extent)


def test_changed_missing_and_foreign_files(tmp_path):
    changed = tmp_path / "c.json"
    changed.write_bytes(CONNECTOME_FILE.read_bytes().replace(b"40", b"41", 1))
    with pytest.raises(UserError, match="SHA-256"):
        read_specs(changed, CONNECTOME_SHA256)
    assert build_connectome(1, path=changed).n_neurons == 443  # another file has no checksum
    with pytest.raises(UserError, match="no connectome file"):
        build_connectome(1, path=tmp_path / "absent.json")
    changed.write_text("{}")
    with pytest.raises(UserError, match="not a flyvis connectome"):
        build_connectome(1, path=changed)


def test_the_network_cannot_be_changed_by_accident():
    c = build_connectome(1)
    assert c is build_connectome(1)
    with pytest.raises(ValueError):
        c.senders[0] = 3


def changed(data, change):
    node, edge = data["nodes"][0], data["edges"][0]
    if change == "deep":
        return "[" * 100_000
    match change:
        case "unknown input":
            data["input_units"] = ["R99"]
        case "no edges":
            data["edges"] = []
        case "far":
            edge["offsets"] = [[[10**6, 0], 1]]
        case "count":
            edge["offsets"][0][1] = float("nan")
        case "sign":
            edge["alpha"] = 3
        case "name":
            data["nodes"].append(dict(node))
        case "pattern":
            node["pattern"] = None
    return json.dumps(data)


@pytest.mark.parametrize("change", ["unknown input", "no edges", "far", "count", "sign", "name", "pattern", "deep"])
def test_a_connectome_that_is_none_is_refused(tmp_path, change):
    path = tmp_path / "own.json"
    path.write_text(changed(json.loads(CONNECTOME_FILE.read_text()), change))
    with pytest.raises(UserError) as error:
        build_connectome(1, path)
    assert "\n" not in str(error.value)
