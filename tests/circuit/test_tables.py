"""A connectome from two tables: what it holds, how light reaches it, and the one line for each bad table."""

import gzip
import shutil

import numpy as np
import pytest

import flyjax
from flyjax.circuit import build_connectome, load_parameters
from flyjax.circuit.hexgrid import positions
from flyjax.config import Simulation
from flyjax.data import record
from flyjax.data.recording import load_recording
from flyjax.data.splits import cache_key
from flyjax.ground_truth import build_ground_truth
from flyjax.simulation import simulate
from flyjax.utils.errors import UserError

NEURONS = "id,type,input\na,R,1\nb,X,\nc,X,0\n"
EDGES = "pre,post,count,sign\na,b,3,1\nb,c,2,-1\nc,c,1,-1\na,c,4,1\n"


def write(folder, neurons=NEURONS, edges=EDGES):
    folder.mkdir(exist_ok=True)
    (folder / "neurons.csv").write_text(neurons)
    (folder / "edges.csv").write_text(edges)
    return folder


def test_a_table_is_the_circuit(tmp_path):
    c = build_connectome(2, write(tmp_path))
    assert (c.ids, c.cell_types, c.cell_type.tolist()) == (("a", "b", "c"), ("R", "X"), [0, 1, 1])
    edges = {(c.ids[s], c.ids[r]): (n, g) for s, r, n, g in zip(c.senders, c.receivers, c.n_syn, c.sign)}
    assert edges == {("a", "b"): (3, 1), ("b", "c"): (2, -1), ("c", "c"): (1, -1), ("a", "c"): (4, 1)}
    assert (np.diff(c.receivers.astype(np.int64) * 3 + c.senders) > 0).all()
    assert c.inputs.tolist() == [0] and c.columns[c.input_column].tolist() == [[0, 0]]
    assert c.central.tolist() == [0, 1] and not c.has_columns
    assert build_connectome(2, tmp_path) is c
    # X to X has both signs nowhere, R to X one: pairs are (R, X, +) and (X, X, -).
    assert c.pairs.tolist() == [[0, 1], [1, 1]] and c.pair_sign.tolist() == [1, -1]


def test_light_reaches_a_numbered_column_or_the_nearest_one(tmp_path):
    neurons = "id,type,input,x,y\na,R,1,,\nb,R,3,,\nc,R,1,1.2,-0.4\nd,M,,0,1\n"
    c = build_connectome(1, write(tmp_path, neurons, "pre,post,count,sign\na,d,1,1\n"))
    x, y = positions(c.columns)
    distance = np.hypot(x - 1.2, y + 0.4)
    assert c.columns[c.input_column[0]].tolist() == [0, 0]
    assert len(set(c.input_column[:2].tolist())) == 2
    assert c.input_column[2] == np.argmin(distance)
    assert c.column.tolist()[3] == np.argmin(np.hypot(x, y - 1)) and c.n_columns == 7


def test_codex_export(tmp_path):
    (tmp_path / "neurons.csv").write_text("root_id,primary_type,input\n720575940596125868,R1,1\n72,Mi1,\n73,Mi1,\n")
    rows = [
        "pre_root_id,post_root_id,neuropil,syn_count,nt_type",
        "720575940596125868,72,ME_R,10,ACH",
        "720575940596125868,72,LO_R,2,ACH",
        "72,73,ME_R,7,GABA",
        "73,72,ME_R,5,GLUT",
        "73,72,LO_R,1,ACH",
    ]
    with gzip.open(tmp_path / "connections.csv.gz", "wt") as file:
        file.write("\n".join(rows))
    c = build_connectome(0, tmp_path)
    assert c.ids[0] == "720575940596125868"
    found = {(s, r): (n, g) for s, r, n, g in zip(*(a.tolist() for a in (c.senders, c.receivers, c.n_syn, c.sign)))}
    # Neuropils are added up, and the transmitter of most synapses decides.
    assert found == {(0, 1): (12, 1), (1, 2): (7, -1), (2, 1): (6, -1)}


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    big = 720575940596125868
    neurons = pyarrow.table({"id": [big, big + 1], "type": ["R", "X"], "input": [1.0, None]})
    edges = pyarrow.table({"pre": [big], "post": [big + 1], "count": [3], "sign": [-1]})
    for name, table in (("neurons", neurons), ("edges", edges)):
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    c = build_connectome(0, tmp_path)
    assert c.ids == (str(big), str(big + 1)) and c.inputs.tolist() == [0] and c.n_syn.tolist() == [3]


BAD = {
    "missing column": (NEURONS.replace("type", "kind"), EDGES, "neurons.csv lacks the column 'type'"),
    "duplicate edge": (NEURONS, EDGES + "a,b,1,1\n", "edges.csv, line 6"),
    "unknown id": (NEURONS, EDGES.replace("b,c", "b,z"), "edges.csv, line 3: post z"),
    "duplicate id": (NEURONS + "a,X,\n", EDGES, "neurons.csv, line 5: the id a"),
    "NaN": (NEURONS, EDGES.replace("b,c,2", "b,c,nan"), "edges.csv, line 3: count"),
    "text": (NEURONS, EDGES.replace("b,c,2", "b,c,two"), "edges.csv, line 3: count"),
    "empty type": (NEURONS.replace("b,X", "b,"), EDGES, "neurons.csv, line 3: type"),
    "sign 0": (NEURONS, EDGES.replace("2,-1", "2,0"), "edges.csv, line 3: 0"),
    "count 0": (NEURONS, EDGES.replace("b,c,2", "b,c,0"), "edges.csv, line 3: count"),
    "no neurons": ("id,type,input\n", EDGES, "neurons.csv has no rows"),
    "no edges": (NEURONS, "pre,post,count,sign\n", "edges.csv has no rows"),
    "no input": (NEURONS.replace("R,1", "R,"), EDGES, "neurons.csv: no neuron has an input"),
    "beyond the eye": (NEURONS.replace("R,1", "R,8"), EDGES, "neurons.csv, line 2: input 8"),
    "ragged": (NEURONS, EDGES + "a,b\n", "edges.csv, line 6"),
    "transmitter": (NEURONS, "pre,post,count,nt_type\na,b,1,XYZ\n", "edges.csv, line 2: XYZ"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line(tmp_path, case):
    neurons, edges, where = BAD[case]
    with pytest.raises(UserError) as error:
        build_connectome(1, write(tmp_path, neurons, edges))
    assert where in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    simulation = Simulation(connectome=str(tmp_path / "nowhere"), visual_input_type="scenes_texture")
    for use in (build_ground_truth, lambda s: cache_key(s, 0.1, "train", 0)):
        with pytest.raises(UserError, match="nowhere"):
            use(simulation)


def test_a_folder_without_a_table_names_it(tmp_path):
    with pytest.raises(UserError, match="neurons"):
        build_connectome(1, tmp_path)


def test_parameters_of_tables_and_arrays(tmp_path):
    neurons = "id,type,input,tau,v_rest\nc,X,,0.3,3\na,R,1,0.1,1\nb,X,,0.2,2\n"
    edges = "pre,post,count,sign,weight\nb,c,2,-1,-5\na,b,3,1,4\na,c,4,1,6\nc,c,1,-1,-7\n"
    own, c = write(tmp_path / "own", neurons, edges), build_connectome(1, write(tmp_path / "c"))
    p = load_parameters(c, own)
    weights = {(c.ids[s], c.ids[r]): float(w) for s, r, w in zip(c.senders, c.receivers, p.weight)}
    assert weights == {("b", "c"): -5, ("a", "b"): 4, ("a", "c"): 6, ("c", "c"): -7}
    assert np.allclose(p.tau, [0.1, 0.2, 0.3]) and np.allclose(p.v_rest, [1, 2, 3])
    np.savez(tmp_path / "p.npz", **p._asdict())
    assert all(np.array_equal(a, b) for a, b in zip(load_parameters(c, tmp_path / "p.npz"), p))
    for bad in (neurons.replace("0.2", "0"), neurons.replace("0.2", ""), neurons.replace("b,X,,0.2,2\n", "")):
        with pytest.raises(UserError):
            load_parameters(c, write(own, bad, edges))
    with pytest.raises(UserError, match="line 6"):
        load_parameters(c, write(own, neurons, edges + "b,a,1,1,1\n"))
    with pytest.raises(UserError, match="a to b"):
        load_parameters(c, write(own, neurons, edges.replace("a,b,3,1,4\n", "")))
    np.savez(tmp_path / "short.npz", **{**p._asdict(), "tau": p.tau[:2]})
    with pytest.raises(UserError, match="tau"):
        load_parameters(c, tmp_path / "short.npz")


def test_own_arrays_are_the_ground_truth_of_the_fly(tmp_path):
    c = build_connectome(0)
    p = flyjax.sample_parameters(c, seed=3)
    np.savez(tmp_path / "mine.npz", **p._asdict())
    found = build_ground_truth(Simulation(extent=0, parameters=str(tmp_path / "mine.npz")))
    assert found[0] is c and all(np.array_equal(a, b) for a, b in zip(found[1], p))


def test_an_edited_table_is_another_recording(tmp_path):
    s = Simulation(extent=1, connectome=str(write(tmp_path / "a")), visual_input_type="scenes_texture")
    moved = s.model_copy(update={"connectome": str(tmp_path / "b")})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    key = cache_key(s, 0.1, "train", 0)
    assert cache_key(moved, 0.1, "train", 0) == key
    write(tmp_path / "a", edges=EDGES.replace("a,b,3", "a,b,4"))
    assert cache_key(s, 0.1, "train", 0) != key
    assert build_ground_truth(s)[0] != build_ground_truth(moved)[0]


def test_the_fly_as_tables_has_the_voltages_of_the_fly(tmp_path):
    c = build_connectome(2)
    p = flyjax.sample_parameters(c)
    ids = [f"{c.cell_types[t]}_{u}_{v}" for t, u, v in zip(c.cell_type, c.u, c.v)]
    inputs = np.isin(np.arange(c.n_neurons), c.inputs).astype(int)
    rows = zip(ids, c.cell_type, c.u, c.v, inputs, p.tau, p.v_rest)
    neurons = ["id,type,u,v,input,tau,v_rest", *(f"{i},{c.cell_types[t]},{','.join(map(str, r))}" for i, t, *r in rows)]
    ends = zip(c.senders, c.receivers, c.n_syn, c.sign, p.weight)
    edges = ["pre,post,count,sign,weight", *(f"{ids[s]},{ids[r]},{n},{g},{w}" for s, r, n, g, w in ends)]
    own = build_connectome(2, write(tmp_path, "\n".join(neurons), "\n".join(edges)))
    assert own.has_columns and np.array_equal(own.central, c.central)
    names = ("senders", "receivers", "inputs", "input_column", "column", "sign", "n_syn")
    assert all(np.array_equal(getattr(own, name), getattr(c, name)) for name in names)
    light = np.random.default_rng(0).uniform(size=(20, c.n_columns)).astype(np.float32)
    assert np.allclose(simulate(own, load_parameters(own, tmp_path), light), simulate(c, p, light), atol=1e-5)


def test_a_recording_keeps_the_circuit(tmp_path):
    s = Simulation(
        extent=1,
        connectome=str(write(tmp_path / "c")),
        visual_input_type="scenes_texture",
        n_frames=20,
        n_test_frames=20,
    )
    recording = record(s, 0.1, store=tmp_path / "r")
    shutil.rmtree(tmp_path / "c")
    again = load_recording(tmp_path / "r")
    assert again.connectome == recording.connectome and again.connectome.ids == ("a", "b", "c")
    assert np.isfinite(recording.voltage).all() and recording.voltage.std() > 0
