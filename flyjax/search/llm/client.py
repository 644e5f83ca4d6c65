"""One call of the Messages API: a request out, bytes back, within a time and a size, failures as data.

    client = make_client(experiment, api_key())
    body = send(client, request, timeout_s)       # or CallFailed, whatever the service does

The service is as untrusted as its model: a status counts even where the words after it are cut off,
and nothing that drips holds the run.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from typing import Any

from flyjax.config import Experiment
from flyjax.search.sanitize import line, scrub
from flyjax.utils import environment
from flyjax.utils.errors import UserError

KEY_NAME = environment.API_KEY
FREE = "go on free with --proposer rules"
RESUME = "then run the same command again"

MAX_ANSWER_BYTES = 4_000_000  # far above any answer of max_tokens
MAX_ERROR_BYTES, ERROR_S = 64_000, 5.0  # of the words of an error, and how long they may take
MAX_WAIT_S = 120  # a service that asks for a longer wait before the next try pauses the run
CONNECT_S = 10  # an answer may take minutes, a connection may not
GRACE_S = 1.0  # the client's own limits come first: they know what was late
BACKOFF_S, LONGEST_S = 2.0, 60.0  # before the first retry; four times as long before each next, up to

STATUS, UNREACHABLE, LATE, CUT, CLIENT = "status", "unreachable", "late", "cut off", "client"


class CallFailed(Exception):
    """A call without an answer.

    `kind`: STATUS (the service refused), UNREACHABLE (it never got there), LATE, CUT, or CLIENT
    (something this program's side could not do, named in `words`).
    """

    def __init__(self, kind: str, words: str = "", status: int = 0, headers: Any = None):
        super().__init__(kind)
        self.kind, self.words, self.status, self.headers = kind, words, status, headers if headers is not None else {}

    @property
    def billed(self) -> bool:
        """Whether it may have been paid for: the service had it, and its answer was late or was cut off."""
        return self.kind in (LATE, CUT)


# --- secrets ------------------------------------------------------------------------------------


def api_key() -> str:
    """The key from the environment.

    **Raises:** `UserError` where none is set or it cannot be one; the message does not show it.
    """
    key = environment.api_key()
    if not key:
        raise UserError(f"no {KEY_NAME} is set: set it to your key, or {FREE}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{KEY_NAME} holds characters no key has: set it again, or {FREE}")
    return key


# --- one call -----------------------------------------------------------------------------------


def make_client(experiment: Experiment, key: str):
    """The SDK's client; it obeys ANTHROPIC_BASE_URL. Retries are ours: each is checked against the budgets.

    **Raises:** `UserError` where ANTHROPIC_BASE_URL is no address.
    """
    import anthropic

    llm = experiment.search.llm
    timeout = anthropic.Timeout(llm.timeout_s, connect=min(CONNECT_S, llm.timeout_s))
    http = anthropic.DefaultHttpxClient(timeout=timeout, event_hooks={"response": [_refuse]})
    try:
        return anthropic.Anthropic(api_key=key, timeout=timeout, max_retries=0, http_client=http)
    except Exception as error:  # httpx reads the address
        if type(error).__name__ == "InvalidURL":
            raise UserError(
                "ANTHROPIC_BASE_URL is no address: set it again, or unset it for the service itself"
            ) from None
        raise


def _read(pieces: Iterable[bytes], at_most: int, until: float) -> tuple[bytes, bool]:
    """(bytes up to one piece beyond `at_most`, whether they came before time.monotonic() `until`)."""
    out = bytearray()
    for piece in pieces:
        out += piece
        if time.monotonic() > until:
            return bytes(out), False
        if len(out) > at_most:
            break
    return bytes(out), True


def _refuse(response) -> None:
    """The client's hook on every response: an error is read with bounds, and stays one where it cannot be read."""
    if response.is_success or response.has_redirect_location:
        return
    try:
        words = json.loads(_read(response.iter_bytes(), MAX_ERROR_BYTES, time.monotonic() + ERROR_S)[0])["error"][
            "message"
        ]
    except Exception:  # cut off, late, badly encoded, no JSON: the status says enough
        words = ""
    raise CallFailed(STATUS, words if isinstance(words, str) else "", response.status_code, response.headers)


def _in_time(call: Callable[[], bytes], seconds: float) -> bytes:
    """What `call` gives; in a thread of its own, because a name server or a header that drips has no limit otherwise."""
    told: queue.SimpleQueue = queue.SimpleQueue()

    def run():
        try:
            told.put((call(), None))
        except BaseException as error:
            told.put((b"", error))

    threading.Thread(target=run, daemon=True).start()
    try:
        got, error = told.get(timeout=seconds)
    except queue.Empty:
        raise CallFailed(LATE) from None
    if error is not None:
        raise error
    return got


def send(client, request: dict[str, Any], timeout_s: float) -> bytes:
    """The bytes of the answer to one request, at most one piece more than `MAX_ANSWER_BYTES`.

    **Raises:** `CallFailed`.
    """

    def call() -> bytes:
        until = time.monotonic() + timeout_s
        # The response as bytes: they are untrusted and read with bounds.
        with client.messages.with_streaming_response.create(**request) as answer:
            body, in_time = _read(answer.iter_bytes(), MAX_ANSWER_BYTES, until)
        if not in_time:
            raise CallFailed(LATE)
        return body

    try:
        return _in_time(call, timeout_s + GRACE_S)
    except Exception as error:
        raise _failure(error) from None


def _failure(error: Exception) -> CallFailed:
    """An exception of the client, or of the transport below it, whose package differs between versions."""
    import anthropic

    cause = (
        error.__cause__ if isinstance(error, anthropic.APIConnectionError) and error.__cause__ is not None else error
    )
    if isinstance(cause, CallFailed):
        return cause
    name, package = type(cause).__name__, type(cause).__module__.partition(".")[0]
    if name in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError"):
        return CallFailed(UNREACHABLE)
    if "Timeout" in name:
        return CallFailed(LATE)
    if isinstance(cause, (anthropic.APIConnectionError, OSError)) or package.startswith("http"):
        return CallFailed(CUT)
    return CallFailed(CLIENT, name)


# --- and after it -------------------------------------------------------------------------------


def _seconds(headers) -> float | None:
    """What a service asks to wait before the next try, s."""
    try:
        told = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(headers["retry-after"])
        return told if math.isfinite(told) else None
    except KeyError:
        return None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(headers["retry-after"])
        return (when - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def wait_before_retry(failed: CallFailed, tries: int) -> float | None:
    """Seconds until a failed call is worth another try, None where it is not; `tries` were made."""
    wait = min(LONGEST_S, BACKOFF_S * 4.0 ** (tries - 1))
    if failed.kind != STATUS:
        return None if failed.kind == CLIENT else wait
    told, asked = failed.headers.get("x-should-retry"), _seconds(failed.headers)
    if told == "false" or (told != "true" and failed.status not in (408, 409, 429) and failed.status < 500):
        return None
    if asked is not None:
        # Hours would be slept away without a word.
        return max(0.0, asked) if asked <= MAX_WAIT_S else None
    return wait


def why(failed: CallFailed, timeout_s: float, tries: int, billed: bool, secret: str) -> str:
    """One line for a call that is given up, with its remedy."""
    told = f", {tries} tries" + (" (they may be billed)" if billed else "")
    if failed.kind == STATUS:
        return _status_message(failed, secret)
    if failed.kind == UNREACHABLE:
        return f"the service cannot be reached: check the network, {RESUME}, or {FREE}"
    if failed.kind == LATE:
        return f"no answer within {timeout_s:g} s{told}: wait, or raise search.llm.timeout_s, {RESUME}, or {FREE}"
    if failed.kind == CUT:
        return f"the answer was cut off{told}: check the network, {RESUME}, or {FREE}"
    return f"the client stopped with {failed.words}: {RESUME}, or {FREE}"


def _status_message(failed: CallFailed, secret: str) -> str:
    status = failed.status
    told = line(scrub(failed.words, secret))  # before it is cut: a part of a key is a leak as well
    told = f" ({told[:200]})" if told else ""
    if status in (401, 403):
        return f"the service refused the key, HTTP {status}{told}: set a valid {KEY_NAME}, {RESUME}, or {FREE}"
    if status == 402:
        return f"the account cannot pay, HTTP 402{told}: settle it, {RESUME}, or {FREE}"
    if status == 404:
        return f"the service does not know this model or address, HTTP 404{told}: set search.llm.model, {RESUME}, or {FREE}"
    if status == 413:
        return f"the request is too large, HTTP 413{told}: --set search.llm.images=false, {RESUME}, or {FREE}"
    if status == 429:
        wait = _seconds(failed.headers)
        later = f"wait {wait:.0f} s" if wait and wait > 1 else "wait"
        return f"the service limits our rate, HTTP 429{told}: {later}, {RESUME}, or {FREE}"
    if status >= 500 or status in (408, 409):
        return f"the service is down or overloaded, HTTP {status}{told}: wait, {RESUME}, or {FREE}"
    return f"the service refused the request, HTTP {status}{told}: check search.llm, {RESUME}, or {FREE}"
