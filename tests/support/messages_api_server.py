"""A local server that speaks the Messages API, well or badly, for tests of the real client.

    with MessagesServer(answers) as server:            # answers: one, a list (the last repeats), or
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)     # a function of (request, number)
        ...
        server.requests[0]["body"]["system"]

An answer is a `Reply`; `tool_use`, `text`, `error` and `raw` make them. `Player` is a function that
reads the prompt and answers it well, so that whole runs can be played.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-ant-test-0123456789abcdefSECRET"
USAGE = {"input_tokens": 900, "output_tokens": 300, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2000}


@dataclass
class Reply:
    """One HTTP answer; `delay` in s before the first byte; `cut` sends only so many bytes and hangs up; `drip` in s
    between two bytes, of the body or, with `drip_head`, of a header that never ends."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0  # s between two bytes
    cut: int | None = None
    drip_head: bool = False


def message(content, stop_reason="end_turn", usage=USAGE, **more) -> Reply:
    body = {
        "id": "msg_test",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
        **more,
    }
    # NaN and Infinity are written as Python writes them: a server can send that.
    return Reply(json.dumps(body).encode())


def tool_use(name, arguments, stop_reason="tool_use", **more) -> Reply:
    block = {"type": "tool_use", "id": "toolu_test", "name": name, "input": arguments}
    return message([{"type": "thinking", "thinking": "", "signature": "c2ln"}, block], stop_reason, **more)


def text(words, stop_reason="end_turn", **more) -> Reply:
    return message([{"type": "text", "text": words}], stop_reason, **more)


def error(status, kind="api_error", words="as the test wishes", **headers) -> Reply:
    body = {"type": "error", "error": {"type": kind, "message": words}}
    # No waiting: the client obeys retry-after-ms.
    return Reply(json.dumps(body).encode(), status, {"retry-after-ms": "1", **headers})


def raw(body: bytes, content_type="application/json", **more) -> Reply:
    return Reply(body, headers={"content-type": content_type}, **more)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client hung up on an error it had read enough of
            super().handle_error(request, client_address)


class MessagesServer:
    """Serves on 127.0.0.1 from a thread; `requests` keeps what came in (path, headers, body)."""

    def __init__(self, answers):
        self.requests: list[dict] = []
        self._answers, self._lock, outer = answers, threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                size = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(size) or b"{}")
                request = {"path": self.path, "headers": dict(self.headers), "body": body}
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                reply = outer._answer(request, number)
                time.sleep(reply.delay)
                try:
                    if reply.drip_head:
                        self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
                        for _ in range(100):
                            self.wfile.write(b"x")
                            time.sleep(reply.drip)
                    self.send_response(reply.status)
                    for key, value in {"content-type": "application/json", **reply.headers}.items():
                        self.send_header(key, value)
                    self.send_header("content-length", str(len(reply.body)))
                    self.end_headers()
                    if reply.drip:
                        for k in range(len(reply.body)):
                            self.wfile.write(reply.body[k : k + 1])
                            time.sleep(reply.drip)
                    else:
                        self.wfile.write(reply.body[: reply.cut])
                    if reply.cut is not None:
                        self.close_connection = True
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up: what slow answers are for

            def log_message(self, *args):
                pass

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, request, number) -> Reply:
        if callable(self._answers):
            return self._answers(request, number)
        if isinstance(self._answers, Reply):
            return self._answers
        return self._answers[min(number, len(self._answers) - 1)]

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()


def prompt_text(request) -> str:
    """All text of a request's messages."""
    content = request["body"]["messages"][-1]["content"]
    return "\n".join(block["text"] for block in content if block["type"] == "text")


class Player:
    """Reads the prompt as a model would and answers it well, from the prompt alone.

    It goes on from the newest node; where the prompt says that a force-branch row of the protocol's
    table holds, its first proposal obeys. `edit` is (old, new, reason) for the ends of blocks in
    `edit_in` (all where None), elsewhere no changes are needed; `spoil(arguments, number)` may change
    an answer before it is sent, or give a `Reply` to send instead.
    """

    def __init__(self, edit=("", "", "the three measures are fine"), edit_in=None, spoil=None):
        self.edit, self.edit_in, self.spoil = edit, edit_in, spoil

    def __call__(self, request, number) -> Reply:
        prompt = prompt_text(request)
        name = re.search(r"Answer with one call of (\w+)\.", prompt)[1]
        arguments = {"proposals": self.proposals(prompt), "notes": ""}
        if name != "propose":
            nodes = self.new_nodes(prompt)
            arguments |= {
                "log": [{"node": n, "activity": f"lively {n}", "observation": f"seen {n}"} for n in nodes],
                "chosen": nodes[-1],
                "reason": "highest UCB",
            }
        if name == "end_block":
            block = int(re.search(r"^Block info: block (\d+),", prompt, re.M)[1])
            edit = (
                self.edit
                if self.edit_in is None or block in self.edit_in
                else ("", "", "no plateau, and branching is fine")
            )
            arguments |= {"block_summary": "more of it helped", "next_simulation": self.simulation(prompt)}
            arguments |= dict(zip(("edit_old", "edit_new", "edit_reason"), edit))
        if self.spoil is not None:
            arguments = self.spoil(arguments, number) or arguments
        return arguments if isinstance(arguments, Reply) else tool_use(name, arguments)

    @staticmethod
    def new_nodes(prompt) -> list[int]:
        return [int(n) for n in re.search(r"^New nodes: ([\d, ]+)$", prompt, re.M)[1].split(",")]

    def proposals(self, prompt) -> list[dict]:
        drafted = re.search(r"Proposals wanted: 0 to (\d+)", prompt)
        wanted = int((drafted or re.search(r"Proposals wanted: (\d+)", prompt))[1])
        known = len(re.findall(r"^\d+ \| ", prompt, re.M))
        opens = "The next iteration opens a block" in prompt or not known
        parent = "root" if opens else str(self.new_nodes(prompt)[-1])
        out = []
        for slot in range(wanted):
            # Another value for every node of a run.
            value = 10 + (7 * known + 13 * slot) % 980
            changes = [{"name": "coeff_edge_diff", "value": value}]
            out.append(
                {"parent": parent, "changes": changes, "strategy": "exploit", "hypothesis": f"edge_diff {value} helps"}
            )
            if drafted:
                out[-1]["slot"] = slot + 1
        holding = prompt.partition("Rows of the strategy table whose conditions hold now:")[2]
        scores = re.findall(r"^Node (\d+): UCB=", prompt, re.M)
        if "force-branch" in holding.partition("UCB scores")[0] and scores and out:
            other = next(n for n in scores if n != parent)
            out[0] |= {"parent": other, "strategy": "force-branch"}
        return out

    @staticmethod
    def simulation(prompt) -> dict:
        """The first block's values, from the prompt's list of the space."""
        found = re.findall(r"^- (\w+): .*; first block (\S+)$", prompt, re.M)
        return {name: value if name == "visual_input_type" else float(value) for name, value in found}
