"""The report that follows a run: read only, on this machine alone, and nothing but the page."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from support.made_up_run import Maker, metrics, two_blocks

from flyjax.report.serve import ReportServer
from flyjax.utils.errors import UserError


@pytest.fixture()
def served(tmp_path):
    two_blocks(tmp_path / "run")
    (tmp_path / "secret").write_text("outside")
    with ReportServer(tmp_path / "run", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def ask(server, path="/", method="GET", host=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"localhost:{server.server_address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_it_listens_on_loopback_only(served):
    assert served.server_address[0] == "127.0.0.1"
    status, page, headers = ask(served)
    assert status == 200 and 'id="node-4"' in page and "connect-src" in page
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'" and headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "//etc/passwd", "/journal.jsonl", "/nodes/", "/?x", "*"]
)
def test_nothing_but_the_page_is_served(served, path):
    status, text, _ = ask(served, path)
    assert status == 404 and "outside" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_only_get_is_answered(served, method):
    before = sorted(served.run_dir.rglob("*"))
    assert ask(served, method=method)[0] == 501
    assert sorted(served.run_dir.rglob("*")) == before and not (served.run_dir / "report.html").exists()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:8400"])
def test_a_page_elsewhere_cannot_reach_it(served, host):
    assert ask(served, host=host)[0] == 403


def test_the_version_changes_with_the_run(served):
    first, page = ask(served, "/version")[1], ask(served)[1]
    assert f'data-version="{first}"' in page and first == ask(served, "/version")[1]
    journal = served.run_dir / "journal.jsonl"
    with journal.open("a") as file:
        event = {"event": "node_finished", "node": 24, "metrics": metrics(0.123), "per_seed": [metrics(0.123)]}
        last = json.loads(journal.read_text().splitlines()[-1])
        file.write(json.dumps({**last, "seq": last["seq"] + 1, **event}) + "\n")
    assert ask(served, "/version")[1] != first and "0.123" in ask(served)[1]


def test_a_run_that_is_damaged_meanwhile_is_one_line(served):
    (served.run_dir / "journal.jsonl").write_text("no json\n{}\n")
    status, text, _ = ask(served)
    assert status == 503 and "journal.jsonl" in text


def test_a_port_in_use_and_no_run_are_user_errors(tmp_path):
    with pytest.raises(UserError):
        ReportServer(tmp_path, 0)
    m = Maker(tmp_path)
    m.train(1, 1, [("root", {}, "root")], results=[metrics(0.5)])
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UserError, match="--port"):
        ReportServer(tmp_path, other.getsockname()[1])


def test_ctrl_c_ends_the_command(tmp_path, root):
    two_blocks(tmp_path / "run")
    command = [sys.executable, str(root / "scripts" / "report.py"), str(tmp_path / "run"), "--serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    assert "http://127.0.0.1:" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
