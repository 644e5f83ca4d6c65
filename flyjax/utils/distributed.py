"""The processes of one run, on one machine or many, connected by `jax.distributed`.

Process 0 leads: it alone decides and writes the run directory. What processes agree on goes through the key-value store
of JAX's coordination service, which waits without holding a device. In a run of one process nothing is sent.

Every process writes a sign of life into the store every second. One that gives none for `LOST_S`, or that ended
where the others did not, ends the run in all of them: each saves nothing more, names it and exits.
"""

import ctypes
import functools
import hashlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax._src import distributed as coordination  # the public module has no access to the key-value store
from jax._src.lib import _jax

from flyjax.utils.errors import UserError

CONNECT_S = 60  # until all processes are there
SIGN_S, LOST_S = 1.0, 30.0
PATIENCE_S = 20.0  # of a process that has to end, but is inside a computation that waits for a lost one
CLOCK_S = 60.0  # by which clocks may differ: times of the journal, limits and dates of files are of any machine
LOST = 75  # exit code of a process that lost another: a temporary failure, EX_TEMPFAIL
_ROOT = "flyjax"


class Stopped(Exception):
    """Process 0 stopped what all processes were computing."""


class _Over(Exception):
    """Process 0 has ended, and nothing is left to do."""


class Group:
    """This process and the others.

    **Attributes:**

    - `index`, `count`: number of this process and of all.
    - `hosts`: the name of each one's machine.
    - `ended`: why this process has to end, or an empty string; `code`: its exit code then.
    """

    def __init__(self, client, address: str, index: int, count: int):
        self.client, self.address, self.index, self.count = client, address, index, count
        self.hosts, self.ended, self.code = ["?"] * count, "", 0
        self.is_leaving = self.is_idle = self.is_over = False
        self._exchanges = self._signs = 0
        self._newest: dict[int, tuple[bytes, float]] = {}
        self._reached = time.monotonic()
        self._on_abort()
        threading.Thread(target=self._watch, name="signs of life", daemon=True).start()
        self.hosts = [m.decode() for m in self.exchange(socket.gethostname().encode())]

    def name(self, process: int) -> str:
        return f"process {process} ({self.hosts[process]})"

    # --- messages ---

    def exchange(self, message: bytes) -> list[bytes]:
        """The messages of all processes, which call this equally often and in one order."""
        number, self._exchanges = self._exchanges, self._exchanges + 1
        self.client.key_value_set_bytes(f"{_ROOT}/message/{number}/{self.index}", message)
        if number > 1:  # all have read it, as they have sent the one after
            self.client.key_value_delete(f"{_ROOT}/message/{number - 2}/{self.index}")
        return [self._wait_for(f"{_ROOT}/message/{number}/{k}") for k in range(self.count)]

    def _wait_for(self, key: str) -> bytes:
        while True:
            try:
                return self.client.blocking_key_value_get_bytes(key, 1000)
            except jax.errors.JaxRuntimeError as error:
                if self.is_over:
                    raise _Over from None
                if self.ended:
                    raise UserError(self.ended) from None
                if "DEADLINE_EXCEEDED" not in str(error):  # the coordinator is gone, which `_watch` will notice
                    time.sleep(1)

    # --- signs of life ---

    def _sign(self, content: dict[str, Any]) -> None:
        self._signs += 1
        text = json.dumps({"n": self._signs, **content})
        self.client.key_value_set_bytes(f"{_ROOT}/alive/{self.index}", text.encode(), allow_overwrite=True)

    def _others(self) -> dict[int, bytes]:
        found = self.client.key_value_dir_get_bytes(f"{_ROOT}/alive/")
        signs = sorted((int(key.rpartition("/")[2]), sign) for key, sign in found)
        return {k: sign for k, sign in signs if k != self.index}

    def _watch(self) -> None:
        while not (self.is_leaving or self.is_over or self.ended):
            now = time.monotonic()
            try:
                self._sign({})
                for k, sign in self._others().items():
                    if (end := json.loads(sign)).get("code") is not None:
                        self._end(k, f"ended{': ' * bool(end['text'])}{end['text']}", end["code"])
                    if sign != self._newest.get(k, (b"", 0))[0]:
                        self._newest[k] = sign, now
                    elif now - self._newest[k][1] > LOST_S:
                        self._end(k, "was lost", LOST)
                self._reached = now
            except jax.errors.JaxRuntimeError:
                if now - self._reached > LOST_S:
                    self._end(0, "was lost", LOST)
            time.sleep(SIGN_S)

    def _end(self, process: int, how: str, code: int) -> None:
        """End this process, by a signal first: its main thread may be anywhere."""
        if self.ended or self.is_leaving or self.is_over:
            return
        if not process and not code:  # perhaps the run is over, and this process is about to wait for more work
            end = time.monotonic() + PATIENCE_S / 2
            while not self.is_idle and time.monotonic() < end:
                time.sleep(0.1)
            if self.is_idle:
                self.is_over, self.code = True, code
                return
        self.ended = f"{self.name(process)} {how}; run the same command again to continue"
        self.code = code or LOST  # it ended too early, however well
        if callable(signal.getsignal(signal.SIGTERM)):  # else the main thread is about to leave
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if code < 128:  # after a signal the others may save for as long as they are given
            time.sleep(PATIENCE_S)
            if not self.is_leaving:
                self._exit_at_once()

    def _exit_at_once(self) -> None:
        os.write(2, f"error: {self.ended}\n".encode())
        os._exit(self.code)

    def _on_abort(self) -> None:
        """JAX aborts a process whose coordinator is gone, at once and from a thread of its own."""
        if not self.index:
            return

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def end(number):
            if self.is_leaving:
                os._exit(self.code)
            host, _, port = self.address.rpartition(":")
            try:
                for _ in range(10):  # the system may close the port of a killed process last
                    socket.create_connection((host.strip("[]"), int(port)), 2).close()
                    time.sleep(0.3)
            except OSError:
                self.ended, self.code = f"{self.name(0)} was lost; run the same command again to continue", LOST
                self._exit_at_once()

        self._handler = end  # which must live as long as the process
        ctypes.CDLL(None).signal(signal.SIGABRT, end)

    def leave(self, code: int, text: str) -> None:
        """End this process without waiting for others that are lost; process 0 stays until they have read its end."""
        self.is_leaving, self.code = True, code
        if code == 1 and sys.exc_info()[0]:  # an error of the code
            traceback.print_exc()
        with suppress(jax.errors.JaxRuntimeError):
            self._sign({"code": code, "text": text})
            patience = 0 if self.index else 2.5 * SIGN_S if self.ended else PATIENCE_S
            end = time.monotonic() + patience
            while time.monotonic() < end and not all("code" in json.loads(s) for s in self._others().values()):
                time.sleep(0.1)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if not self.index:
            time.sleep(0.5)  # the others end now, and JAX would abort one that misses the coordinator
        os._exit(code)


_group: Group | None = None


def connect(coordinator: str | None, process: int | None, processes: int | None) -> None:
    """Become a process of a run of several, before JAX starts.

    **Arguments:** address HOST:PORT of process 0, number of this process and of all; without them JAX takes them from
    Slurm, Open MPI or a Cloud TPU.

    **Raises:** `UserError` where there is none of these, or not all processes come within a minute.
    """
    global _group
    given = coordinator, process, processes
    if None in given and any(x is not None for x in given):
        raise UserError("--coordinator, --process and --processes belong together: give all three, or none")
    if processes is not None and not 0 <= (process or 0) < processes:
        raise UserError(f"--process {process} is not one of {processes}: they are numbered from 0 to {processes - 1}")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which saves the training
    jax.config.update("jax_enable_recoverability", True)  # a lost process is named before the others end
    with_callback = functools.partial(_jax.get_distributed_runtime_client, missed_heartbeat_callback=lambda *_: None)
    original, _jax.get_distributed_runtime_client = _jax.get_distributed_runtime_client, with_callback
    state = coordination.global_state
    try:
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=CONNECT_S)
    except ValueError as error:
        raise UserError(
            f"--distributed cannot tell the processes apart ({str(error)[:80]}): start it by srun, mpirun or on a "
            "Cloud TPU, or give --coordinator HOST:PORT, --process and --processes"
        ) from None
    except RuntimeError as error:
        state.client = state.service = None  # or JAX would try to shut down at the end what has not begun
        reason = " ".join(str(error).split())
        reason = f"no answer within {CONNECT_S} s" if "DEADLINE_EXCEEDED" in reason else reason[:160]
        raise UserError(
            f"process {state.process_id} cannot meet the others at {state.coordinator_address} ({reason}): check that "
            f"all processes were started and reach that address"
        ) from None
    finally:
        _jax.get_distributed_runtime_client = original
    if state.num_processes > 1:
        jax.devices()  # which all processes have to ask for at the same time
        _group = Group(state.client, str(state.coordinator_address), state.process_id, state.num_processes)


def leave(code: int, text: str = "") -> None:
    """End this process with an exit code, and let the others know; returns in a run of one process."""
    if _group is not None:
        _group.leave(_group.code if _group.ended or _group.is_over else code, text)


def lost(error: BaseException | None = None) -> str:
    """Why this process has to end, where another ended or was lost; else empty.

    **Arguments:** `error` of this process, which a lost one may have caused: then its name is waited for.
    """
    if _group is None:
        return ""
    end = time.monotonic() + LOST_S + 2 * SIGN_S
    of_transfer = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)  # JAX makes it a ValueError
    while of_transfer and not _group.ended and time.monotonic() < end:
        time.sleep(0.1)
    return _group.ended


# --- who, how many ---


def count() -> int:
    """Number of processes."""
    return 1 if _group is None else _group.count


def n_hosts() -> int:
    """Number of machines."""
    return 1 if _group is None else len(set(_group.hosts))


def is_leader() -> bool:
    return _group is None or _group.index == 0


def n_devices() -> int:
    """Devices of all processes; each has as many."""
    return count() * jax.local_device_count()


def even(number: int) -> int:
    """At least so many devices, equally many of each process."""
    return -(-number // count()) * count()


def devices(number: int) -> list[jax.Device]:
    """The first devices of each process; `number` is a multiple of the processes."""
    return [d for k in range(count()) for d in jax.local_devices(process_index=_index(k))[: number // count()]]


def _index(process: int) -> int | None:
    return None if _group is None else process


# --- messages ---


def check_same(facts: dict[str, str]) -> None:
    """**Raises:** `UserError` in all processes where one of these, or the time, differs from process 0's."""
    if _group is None:
        return
    found = [json.loads(message) for message in _group.exchange(json.dumps(facts).encode())]
    for k, other in enumerate(found):
        for key, value in other.items():
            if value != found[0].get(key):
                raise UserError(
                    f"{_group.name(k)} has another {key} than process 0 ({value}, not {found[0].get(key)}): start the "
                    "same command in all processes"
                )
    times = [float(message) for message in _group.exchange(repr(time.time()).encode())]  # all are awake now
    for k, other in enumerate(times):
        if abs(other - times[0]) > CLOCK_S:
            raise UserError(
                f"the clock of {_group.name(k)} differs by {abs(other - times[0]):.0f} s from process 0's, and the run "
                "could not go on there: set both by NTP"
            )


def send(content: Any) -> None:
    """Hand something, as JSON, to the other processes, which wait in `receive`."""
    if _group is not None:
        _group.exchange(json.dumps(content).encode())


def receive() -> Any:
    """What process 0 sends; None where it has ended.

    **Raises:** `UserError` where another process ended or was lost.
    """
    assert _group is not None
    _group.is_idle = True
    try:
        return json.loads(_group.exchange(b"")[0])
    except _Over:
        return None
    finally:
        _group.is_idle = False


def from_leader(compute: Callable[[], Any]) -> Any:
    """A value, as JSON, that process 0 computes for all."""
    if _group is None:
        return compute()
    message = json.dumps(compute()).encode() if is_leader() else b""
    return json.loads(_group.exchange(message)[0])


def barrier() -> None:
    """Wait for all processes."""
    send(None)


def largest(number: int) -> int:
    """The largest number of all processes."""
    return number if _group is None else max(int(message) for message in _group.exchange(str(number).encode()))


# --- arrays ---


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Put arrays, equal in all processes, on the devices of all; `jax.device_put` would send them to compare them."""
    if _group is None:
        return jax.device_put(tree, sharding)

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def local(tree: Any) -> Any:
    """Arrays of which every device has a copy, as arrays of one device of this process."""
    return tree if _group is None else jax.tree.map(lambda x: x.addressable_data(0), tree)


def has_row(i: int, n_rows: int) -> bool:
    """Whether process 0 has a row of an array that is split along its first axis."""
    return i < n_rows // count()


def is_here(i: int, n_rows: int) -> bool:
    """Whether this process has a row of an array that is split along its first axis."""
    return i // (n_rows // count()) == (0 if _group is None else _group.index)


def row(x: jax.Array, i: int) -> np.ndarray:
    """A row of an array that is split along its first axis, whose first rows process 0 has."""
    size = x.addressable_shards[0].data.shape[0]
    return np.asarray(_own(x)[i // size])[i % size]


def _own(x: jax.Array) -> list[jax.Array]:
    return [shard.data for shard in sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)]


def fetch(arrays: Sequence[Any]) -> Sequence[np.ndarray]:
    """Arrays that are split along their first axis, whole, once all processes have computed their rows."""
    if _group is None:
        return jax.device_get(arrays)
    file = io.BytesIO()
    np.savez(file, *(np.concatenate(jax.device_get(_own(x))) for x in arrays))
    parts = [np.load(io.BytesIO(message)) for message in _group.exchange(file.getvalue())]
    return [np.concatenate([part[f"arr_{k}"] for part in parts]) for k in range(len(arrays))]


def digest(content: Any) -> str:
    """A short name of something that can be written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
