"""The circuit in time, against the real flyvis, NumPy, a plain scan and SciPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flyjax.circuit import Parameters, build_connectome, expand, load_flyvis_parameters, read_flyvis
from flyjax.circuit.connectome import CONNECTOME_FILE
from flyjax.ground_truth.build import with_null_edges, without_edges
from flyjax.simulation import derivative, hex_convolution, kernels, simulate, simulate_chunks, solve, steady_state
from flyjax.utils.errors import UserError


@pytest.fixture(scope="module")
def sampled(root):
    return root / "tests" / "data" / "flyvis_sampled_traces.npz"


def small(extent=1, seed=3):
    """A circuit with weights that repeat over the lattice, and a stimulus."""
    c = build_connectome(extent)
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0.0, 0.02, len(c.pairs))
    p = expand(c, rng.normal(0.3, 0.2, c.n_types), rng.uniform(0.015, 0.2, c.n_types), strength)
    return c, p, rng.uniform(0, 1, (30, c.n_columns)).astype(np.float32)


def numpy_rollout(c, p, luminance, v, dt, shocks=0.0, clamp=True):
    """The equation as it is written, in float64, one step after the other."""
    w, tau, rest = (np.asarray(a, np.float64) for a in p)
    tau = np.maximum(tau, dt) if clamp else tau
    v = np.asarray(v, np.float64)
    shocks = np.broadcast_to(shocks, (len(luminance), c.n_neurons))
    states = []
    for x, shock in zip(luminance, shocks):
        drive = np.bincount(c.receivers, w * np.maximum(v, 0)[c.senders], c.n_neurons)
        drive[c.inputs] += x[c.input_column]
        v = v + dt / tau * (rest - v + drive) + shock
        states.append(v)
    return np.array(states)


# --- the real flyvis -------------------------------------------------------------------------


def test_sampled_traces_of_flyvis(sampled):
    c = build_connectome(3)
    p = load_flyvis_parameters(c, sampled)
    with np.load(sampled) as z:
        dt = float(z["dt"])
        v = simulate(c, p, z["stimulus"], dt)
        assert v.shape == (3, 40, c.n_neurons)
        np.testing.assert_array_equal(c.central, z["central_index"])
        np.testing.assert_allclose(steady_state(c, p, dt), z["steady_state"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(v[:, :, c.central], z["central_traces"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(v[:, -1], z["voltage_last"], atol=1e-5, rtol=0)
        one = simulate(c, p, z["stimulus"][1], dt, kernel="window")  # what long rollouts use
        np.testing.assert_allclose(one[-1], z["voltage_last"][1], atol=1e-5, rtol=0)


def gradients(c, types, stimulus, dt, start):
    def loss(bias, tau, syn_strength):
        p = expand(c, bias, tau, syn_strength, n_syn=types.n_syn)
        return jnp.mean(simulate(c, p, stimulus, dt, initial=start) ** 2)

    value = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return value(*(jnp.asarray(a) for a in types[:3]))


def test_gradients_of_flyvis_on_sampled_parameters(sampled):
    c = build_connectome(3)
    with np.load(sampled) as z:
        loss, found = gradients(c, read_flyvis(c, sampled), z["stimulus"][2], float(z["dt"]), z["steady_state"])
        assert abs(float(loss) - z["grad_loss"]) < 1e-5
        for name, gradient in zip(("bias", "time_const", "syn_strength"), found):
            np.testing.assert_allclose(gradient, z[f"grad_{name}"], atol=1e-5, rtol=0, err_msg=name)
            assert np.abs(z[f"grad_{name}"]).max() > 1e-3, "a gradient of zero would prove nothing"


@pytest.mark.parametrize("prefix, dt", [("e3", 1 / 50), ("e3dt200", 1 / 200)])
def test_traces_of_the_published_model(golden, prefix, dt):
    c = build_connectome(3)
    p = load_flyvis_parameters(c, golden / "flyvis_flow_0000_000.npz")
    with np.load(golden / "flyvis_traces.npz") as z:
        v = np.asarray(simulate(c, p, z[f"{prefix}_stimulus"], dt))
        np.testing.assert_allclose(steady_state(c, p, dt), z[f"{prefix}_steady_state"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(v[:, :, c.central], z[f"{prefix}_central_traces"], atol=1e-5, rtol=0)
        if prefix == "e3":
            np.testing.assert_allclose(v, z["e3_voltage"], atol=1e-5, rtol=0)
        else:
            np.testing.assert_allclose(v[:, -1], z["e3dt200_voltage_last"], atol=1e-5, rtol=0)


def test_gradients_of_the_published_model(golden):
    c = build_connectome(3)
    types = read_flyvis(c, golden / "flyvis_flow_0000_000.npz")
    with np.load(golden / "flyvis_traces.npz") as z:
        loss, found = gradients(c, types, z["e3_stimulus"][4], 1 / 50, z["e3_steady_state"])
        assert abs(float(loss) - z["e3_grad_loss"]) < 1e-5
        for name, gradient in zip(("bias", "time_const", "syn_strength"), found):
            np.testing.assert_allclose(gradient, z[f"e3_grad_{name}"], atol=1e-5, rtol=0, err_msg=name)


# --- other ways to the same numbers -----------------------------------------------------------


def test_diffrax_equals_a_scan_and_numpy_with_noise():
    c, p, x = small()
    key, sigma, dt = jax.random.key(7), 0.1, 0.02
    shocks = jnp.stack([jax.random.normal(jax.random.fold_in(key, 5 + t), (c.n_neurons,)) for t in range(len(x))])
    v = simulate(c, p, x, dt, noise=sigma, key=key, initial="rest", first_step=5)

    def step(v, inputs):
        x, shock = inputs
        messages = jax.ops.segment_sum(p.weight * jax.nn.relu(v)[c.senders], c.receivers, c.n_neurons)
        drive = messages.at[c.inputs].add(x[c.input_column])
        v = v + dt / jnp.maximum(p.tau, dt) * (p.v_rest - v + drive) + sigma * shock
        return v, v

    _, scanned = jax.jit(lambda v: jax.lax.scan(step, v, (jnp.asarray(x), shocks)))(p.v_rest)
    np.testing.assert_allclose(v, scanned, atol=2e-6)
    np.testing.assert_allclose(v, numpy_rollout(c, p, x, p.v_rest, dt, sigma * np.asarray(shocks)), atol=2e-6)


def test_a_rollout_never_calls_the_host():
    """Programs that do are not kept in JAX's persistent cache."""
    c, p, x = small()
    kernel, zero = kernels.Kernel("segment", c), np.float32(0)
    settings = np.zeros((c.n_neurons, 1), np.float32), x[:, None], np.float32(0.02), zero, None, np.int32(0)
    static = dict(kernel=kernel, clamp_tau=True, solver="euler", noisy=False, batched=False)
    program = jax.make_jaxpr(lambda *arguments: solve.solve(*arguments, **static))(kernel.plan(), p, *settings)
    assert "callback" not in str(program)


def test_chunks_change_no_bit_and_share_one_program():
    c, p, x = small()
    common = dict(noise=0.2, key=jax.random.key(1))
    start = steady_state(c, p)
    whole = simulate(c, p, x, initial=start, **common)
    compiled = solve.solve._cache_size()
    others = dict(dt=0.02, clamp_tau=True, solver="euler")
    pieces = list(simulate_chunks(c, p, x, initial=start, chunk=7, **common, **others))
    assert solve.solve._cache_size() == compiled + 1, "the short last piece runs the same program"
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 2]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(simulate(c, p, x, initial=start, chunk=7, **common), whole)
    later = simulate(c, p, x[7:14], initial=pieces[0][-1], first_step=7, **common)
    np.testing.assert_array_equal(later, whole[7:14])
    simulate(c, p, x[::-1][:7], 0.03, 0.5, jax.random.key(9), start)
    assert solve.solve._cache_size() == compiled + 1, "dt, noise, key and stimulus are no part of the program"


def test_a_batch_is_its_sequences():
    c, p, x = small()
    both = np.stack([x, x[::-1]])
    keys = jax.random.split(jax.random.key(4), 2)
    v = simulate(c, p, both, noise=0.1, key=jax.random.key(4), initial="rest")
    for k in range(2):
        one = simulate(c, p, both[k], noise=0.1, key=keys[k], initial="rest")
        np.testing.assert_allclose(v[k], one, atol=2e-6)
    assert np.abs(v[0] - v[1]).max() > 0.05


def test_the_derivative_is_what_a_step_adds():
    c, p, x = small()
    v = np.asarray(simulate(c, p, x, 0.02, initial="rest"))
    # State before the frame, luminance of the frame.
    for frames in (slice(0, 29), slice(0, 3)):
        d = derivative(c, p, v[:-1][frames], x[1:][frames], 0.02)
        np.testing.assert_allclose(v[:-1][frames] + 0.02 * d, v[1:][frames], atol=2e-6)
    # Process noise moves the state, never the derivative at a given state.
    noisy = simulate(c, p, x, 0.02, noise=0.3, key=0, initial="rest")
    step = np.asarray(noisy[1:] - noisy[:-1]) - 0.02 * np.asarray(derivative(c, p, noisy[:-1], x[1:], 0.02))
    assert abs(step.std() - 0.3) < 0.01 and abs(step.mean()) < 0.02


def test_two_neurons_by_hand():
    # R1 drives L1 with weight -2; dt = tau / 2 for R1, tau clamped to dt for L1.
    c = build_connectome(0)
    keep = np.flatnonzero((c.senders == 0) & (c.cell_type[c.receivers] == c.cell_types.index("L1")))
    weight = np.zeros(c.n_edges, np.float32)
    weight[keep] = -2
    l1 = int(c.receivers[keep[0]])
    tau = np.full(c.n_neurons, 0.04, np.float32)
    tau[l1] = 0.001
    p = Parameters(weight, tau, np.zeros(c.n_neurons, np.float32))
    v = np.asarray(simulate(c, p, [[1.0], [0.0], [0.0]], 0.02, initial="rest"))
    np.testing.assert_allclose(v[:, 0], [0.5, 0.25, 0.125])
    np.testing.assert_allclose(v[:, l1], [0.0, -1.0, -0.5])


def test_adaptive_solvers_reach_the_exact_solution_and_heun_is_of_second_order():
    c, p, _ = small(0)
    frame, n = np.full((1,), 0.8), 4
    w, tau, rest = (np.asarray(a, np.float64) for a in p)
    tau = np.maximum(tau, 0.02)

    def field(t, v):
        drive = np.bincount(c.receivers, w * np.maximum(v, 0)[c.senders], c.n_neurons)
        drive[c.inputs] += 0.8
        return (rest - v + drive) / tau

    exact = solve_ivp(field, (0, 0.02 * n), rest, rtol=1e-10, atol=1e-12).y[:, -1]
    for name in ("tsit5",):
        v = simulate(c, p, np.tile(frame, (n, 1)), 0.02, initial="rest", solver=name)
        # The relu's kinks keep an explicit method from more; Euler is off by thousands of times that.
        np.testing.assert_allclose(v[-1], exact, atol=3e-5, err_msg=name)
    fixed = p._replace(tau=np.maximum(p.tau, 0.02))
    errors = {
        (name, k): np.abs(
            simulate(c, fixed, np.tile(frame, (n * k, 1)), 0.02 / k, initial="rest", solver=name, chunk=n)[-1] - exact
        ).max()
        for name in ("euler", "heun")
        for k in (1, 4)
    }
    assert 3 < errors["euler", 1] / errors["euler", 4] < 6
    assert 11 < errors["heun", 1] / errors["heun", 4] < 25


def test_initial_states():
    c, p, x = small()
    grey = numpy_rollout(c, p, np.full((50, c.n_columns), 0.5), p.v_rest, 0.02)[-1]
    np.testing.assert_allclose(simulate(c, p, x, 0.02)[0], numpy_rollout(c, p, x[:1], grey, 0.02)[0], atol=2e-6)
    ramp = 0.5 + np.linspace(0, 1, 50)[:, None] * (x[0] - 0.5)
    faded = numpy_rollout(c, p, ramp, p.v_rest, 0.02)[-1]
    np.testing.assert_allclose(
        simulate(c, p, x, 0.02, initial="fade_in")[0], numpy_rollout(c, p, x[:1], faded, 0.02)[0], atol=2e-6
    )
    given = np.linspace(-1, 1, c.n_neurons, dtype=np.float32)
    np.testing.assert_allclose(
        simulate(c, p, x, 0.02, initial=given)[0], numpy_rollout(c, p, x[:1], given, 0.02)[0], atol=2e-6
    )


def test_unclamped_time_constants():
    c, p, x = small()
    v = simulate(c, p, x, 0.02, initial="rest", clamp_tau=False)
    np.testing.assert_allclose(v, numpy_rollout(c, p, x, p.v_rest, 0.02, clamp=False), atol=5e-6)
    assert np.abs(v - simulate(c, p, x, 0.02, initial="rest")).max() > 1e-3
    with pytest.raises(UserError, match="diverges"):
        simulate(c, p, x, 0.05, clamp_tau=False)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("dt", [0.01, 0.05])
def test_corners_of_the_protocol_stay_finite_with_flyvis_parameters(sampled, dt, noise):
    c = build_connectome(1)
    p = load_flyvis_parameters(c, sampled)
    x = np.random.default_rng(0).uniform(0, 1, (400, c.n_columns))
    v = simulate(c, p, x, dt, noise=noise, key=0, chunk=30)
    assert np.isfinite(v).all() and np.abs(v).max() < 100


# --- kernels ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_types(tmp_path_factory):
    """Five types with all their edges, a strided one among them: small enough for every message sum."""
    data = json.loads(CONNECTOME_FILE.read_text())
    names = {"R1", "R8", "L1", "Lawf1", "Mi1"}
    data["nodes"] = [n for n in data["nodes"] if n["name"] in names]
    data["edges"] = [e for e in data["edges"] if {e["src"], e["tar"]} <= names]
    data["input_units"] = ["R1", "R8"]
    path = tmp_path_factory.mktemp("connectome") / "few.json"
    path.write_text(json.dumps(data))
    return build_connectome(3, path=path)


@pytest.mark.parametrize("name, lanes", [(n, b) for n in kernels.KERNELS for b in (1, 3)])
def test_every_message_sum_equals_the_edge_list(few_types, name, lanes):
    c = few_types
    rng = np.random.default_rng(0)
    strength = rng.uniform(0.1, 1, len(c.keys)).astype(np.float32)
    weight = c.sign * strength[c.offset_key]
    rate = rng.uniform(0, 1, (c.n_neurons, lanes)).astype(np.float32)
    expected = np.stack([np.bincount(c.receivers, weight * r[c.senders], c.n_neurons) for r in rate.T], axis=1)
    kernel = kernels.Kernel(name, c)
    plan = kernel.plan()
    found = jax.jit(
        lambda w, r: kernel.from_layout(kernel.sum(plan, kernel.pack_weights(plan, w), kernel.to_layout(r)))
    )(weight, rate)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    "extent, n_steps, n_states, name",
    [
        (1, 1600, 1, "segment"),
        (1, 64_000, 1, "gather"),
        (2, 50, 1, "segment"),
        (2, 64_000, 1, "window"),
        (2, 64_000, 9, "csr"),
        (5, 50, 1, "window"),
        (5, 50, 8, "window"),
    ],
)
def test_large_circuits_and_long_stimuli_take_the_shifted_rows(extent, n_steps, n_states, name):
    c = build_connectome(extent)
    assert kernels.choose(c, c.sign.astype(np.float32), False, n_steps, n_states).name == name
    own = np.random.default_rng(0).uniform(size=c.n_edges)
    assert kernels.choose(c, own, False, n_steps, n_states).name != "window"


def test_a_rollout_of_shifted_rows_in_a_wide_batch(few_types):
    c = few_types
    rng = np.random.default_rng(1)
    p = expand(c, rng.normal(0, 0.3, c.n_types), rng.uniform(0.02, 0.2, c.n_types), rng.uniform(0, 0.02, len(c.pairs)))
    x = rng.uniform(0, 1, (11, 5, c.n_columns)).astype(np.float32)
    v = simulate(c, p, x, initial="rest", kernel="window")
    assert v.shape == (11, 5, c.n_neurons)
    for k in (0, 7, 8, 10):
        np.testing.assert_allclose(v[k], numpy_rollout(c, p, x[k], p.v_rest, 0.02), atol=3e-6)
    np.testing.assert_array_equal(simulate(c, p, x, initial="rest", kernel="window", chunk=2), v)


def test_shifted_rows_are_used_only_where_they_are_exact():
    c, p, _ = small(2)
    assert hex_convolution.is_applicable(c, p.weight)
    own = np.asarray(p.weight).copy()
    own[100] *= 1.01
    assert not hex_convolution.is_applicable(c, own)
    assert not hex_convolution.is_applicable(*without_edges(c, p.weight, 0.01, seed=0))
    assert not hex_convolution.is_applicable(*with_null_edges(c, p.weight, 0.1, seed=0))
    moved = dataclasses.replace(c, input_column=c.input_column[::-1].copy())
    assert not hex_convolution.is_applicable(moved, p.weight)
    # A circuit without some edges runs, with the right sum.
    x = np.random.default_rng(0).uniform(0, 1, (3, c.n_columns)).astype(np.float32)
    fewer, weight = without_edges(c, p.weight, 0.3, seed=0)
    q = p._replace(weight=weight)
    v = simulate(fewer, q, x, initial="rest")
    np.testing.assert_allclose(v, numpy_rollout(fewer, q, x, q.v_rest, 0.02), atol=2e-6)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "luminance, words",
    [
        (np.zeros((0, 7)), "empty"),
        (np.zeros((5, 6)), "shape"),
        (np.zeros(7), "shape"),
        (np.full((2, 7), np.nan), "NaN"),
        (np.full((2, 7), 1.5), r"\[0, 1\]"),
        (np.full((2, 7), -0.1), r"\[0, 1\]"),
        ("film.mp4", "numbers"),
    ],
)
def test_bad_stimuli_are_one_line(luminance, words):
    c, p, _ = small()
    with pytest.raises(UserError, match=words) as error:
        simulate(c, p, luminance)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(noise=0.1), "key"),
        (dict(noise=-0.1, key=0), "noise"),
        (dict(noise=0.1, key=0, solver="heun"), "noise-free"),
        (dict(solver="eulr"), "Did you mean 'euler'"),
        (dict(kernel="windw"), "Did you mean 'window'"),
        (dict(dt=0.0), "dt"),
        (dict(dt=float("nan")), "dt"),
        (dict(initial="gray"), "grey"),
        (dict(initial=np.zeros(3)), "initial"),
        (dict(chunk=0), "chunk"),
    ],
)
def test_bad_settings_are_one_line(settings, words):
    c, p, x = small()
    with pytest.raises(UserError, match=words):
        simulate(c, p, x, **settings)


def test_parameters_of_another_extent_are_refused():
    c, p, x = small()
    with pytest.raises(UserError, match="another extent"):
        simulate(build_connectome(0), p, x[:, :1])
    with pytest.raises(UserError, match="NaN"):
        simulate(c, p._replace(tau=p.tau * np.float32(np.nan)), x)
    with pytest.raises(UserError, match="positive"):
        simulate(c, p._replace(tau=p.tau * 0), x)
    with pytest.raises(UserError, match="one row per frame"):
        derivative(c, p, np.zeros((3, 5)), x[:3])
