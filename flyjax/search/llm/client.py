"""One call of the Messages API within a time and a size: the bytes of the answer, or `CallFailed`.

    client = make_client(experiment, api_key())
    body = send(client, request, timeout_s)

The service is as untrusted as its model: an error status counts even where its body cannot be read, and a
response that drips ends at the time limit. Each call is one attempt; the caller retries, because every
attempt is checked against the budgets first.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flyjax.config import Experiment
from flyjax.search.sanitize import clean_text, one_line
from flyjax.utils import environment
from flyjax.utils.errors import UserError

KEY_NAME = environment.API_KEY
FREE = "go on free with --proposer rules"
RESUME = "then run the same command again"

MAX_ANSWER_BYTES = 4_000_000  # far above any answer of max_tokens
MAX_ERROR_BYTES, ERROR_S = 64_000, 5.0  # limits for the body of an error
MAX_WAIT_S = 120  # a service that asks for a longer wait pauses the run
CONNECT_S = 10  # an answer may take minutes, a connection may not
GRACE_S = 1.0  # the client's own limits come first: they know what was late
BACKOFF_S, LONGEST_S = 2.0, 60.0  # before the first retry; four times as long before each next, at most

#: HTTP status -> (what it means, remedy).
_STATUS = {
    401: ("the service refused the key", f"set a valid {KEY_NAME}"),
    402: ("the account cannot pay", "settle it"),
    403: ("the service refused the key", f"set a valid {KEY_NAME}"),
    404: ("the service does not know this model or address", "set search.llm.model"),
    413: ("the request is too large", "--set search.llm.images=false"),
    429: ("the service limits the request rate", "wait"),
}
_UNAVAILABLE = ("the service is down or overloaded", "wait")
_REFUSED = ("the service refused the request", "check search.llm")


@dataclass(eq=False)
class CallFailed(Exception):
    """A call without an answer: `reason` and `remedy` for people, and what the caller needs to go on."""

    reason: str
    remedy: str
    retry: bool = True  # whether another attempt may succeed
    billed: bool = False  # whether the attempt may have been charged for
    wait_s: float | None = None  # that the service asks to wait before another attempt

    def delay(self, attempts: int) -> float | None:
        """Seconds to wait after so many attempts; None where another one is not worth it."""
        if not self.retry or (self.wait_s is not None and self.wait_s > MAX_WAIT_S):
            return None
        return min(LONGEST_S, BACKOFF_S * 4.0 ** (attempts - 1)) if self.wait_s is None else max(0.0, self.wait_s)


def api_key() -> str:
    """The key from the environment.

    **Raises:** `UserError` where none is set or it cannot be one; the message does not show it.
    """
    key = environment.api_key()
    if not key:
        raise UserError(f"no {KEY_NAME} is set: set it to your key, or {FREE}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{KEY_NAME} holds characters that no key has: set it again, or {FREE}")
    return key


def make_client(experiment: Experiment, key: str):
    """The SDK's client; it obeys ANTHROPIC_BASE_URL and follows no redirect, which would forward the key.

    **Raises:** `UserError` where ANTHROPIC_BASE_URL is not an address.
    """
    import anthropic

    limit_s = experiment.search.llm.timeout_s
    timeout = anthropic.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [raise_for_status]}
    http = anthropic.DefaultHttpxClient(timeout=timeout, event_hooks=hooks, follow_redirects=False)
    try:
        return anthropic.Anthropic(api_key=key, timeout=timeout, max_retries=0, http_client=http)
    except Exception as error:  # of the HTTP package, which reads the address
        if type(error).__name__ == "InvalidURL":
            raise UserError("ANTHROPIC_BASE_URL is not an address: set it again, or unset it") from None
        raise


def _read(chunks: Iterable[bytes], max_bytes: int, until: float) -> bytes:
    """The bytes up to one chunk beyond `max_bytes`.

    **Raises:** `TimeoutError` where they come later than time.monotonic() `until`.
    """
    out = bytearray()
    for chunk in chunks:
        out += chunk
        if time.monotonic() > until:
            raise TimeoutError
        if len(out) > max_bytes:
            break
    return bytes(out)


def raise_for_status(response) -> None:
    """A hook on every response: an error is read within limits, and its status counts if that fails.

    **Raises:** `CallFailed` for any status but success.
    """
    if response.is_success:
        return
    status, words = response.status_code, ""
    with contextlib.suppress(Exception):  # cut off, late, badly encoded, not JSON
        body = _read(response.iter_bytes(), MAX_ERROR_BYTES, time.monotonic() + ERROR_S)
        words = one_line(clean_text(json.loads(body)["error"]["message"]), 200)
    unavailable = status >= 500 or status in (408, 409)
    reason, remedy = _STATUS.get(status, _UNAVAILABLE if unavailable else _REFUSED)
    asked, wait_s = response.headers.get("x-should-retry"), _retry_after(response.headers)
    retry = asked == "true" or (asked != "false" and (unavailable or status == 429))
    if remedy == "wait" and wait_s is not None and wait_s > 1:
        remedy = f"wait {wait_s:.0f} s"
    raise CallFailed(f"{reason}, HTTP {status}" + (f" ({words})" if words else ""), remedy, retry, wait_s=wait_s)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            if math.isfinite(seconds):
                return seconds
    return None


def send(client, request: dict[str, Any], timeout_s: float) -> bytes:
    """The bytes of the answer to one request, at most one chunk more than `MAX_ANSWER_BYTES`.

    **Raises:** `CallFailed`.
    """

    def call() -> bytes:
        until = time.monotonic() + timeout_s
        # As bytes: the SDK would parse an untrusted body without bounds.
        with client.messages.with_streaming_response.create(**request) as answer:
            return _read(answer.iter_bytes(), MAX_ANSWER_BYTES, until)

    try:
        return _within(call, timeout_s + GRACE_S)
    except Exception as error:
        raise _failure(error, timeout_s) from None


def _within(call: Callable[[], bytes], seconds: float) -> bytes:
    """The result of `call`, from a thread: a name server or a header that drips has no limit of its own."""
    future: Future[bytes] = Future()

    def run():
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _failure(error: Exception, timeout_s: float) -> Exception:
    """An exception of the SDK, or of the HTTP package below it (whose name depends on the version), as `CallFailed`."""
    import anthropic

    cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) and error.__cause__ else error
    name = type(cause).__name__
    if isinstance(cause, CallFailed):
        return cause
    if name in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError"):
        return CallFailed("the service cannot be reached", "check the network")
    if "Timeout" in name:
        return CallFailed(f"no answer within {timeout_s:g} s", "wait, or raise search.llm.timeout_s", billed=True)
    if isinstance(cause, (anthropic.APIConnectionError, OSError)) or type(cause).__module__.startswith("http"):
        return CallFailed("the answer was cut off", "check the network", billed=True)
    return CallFailed(f"the client stopped with {name}", "", retry=False)
