"""Serve the report of a run to the browsers of this machine, read only, while the run goes on."""

import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flyjax.report.html import render
from flyjax.report.run_view import RunView
from flyjax.utils.errors import UserError
from flyjax.utils.history import HISTORY
from flyjax.utils.run_directory import JOURNAL, refuse_links

LOOPBACK = "127.0.0.1"
#: Hosts that a request may name; another one is a page elsewhere that reaches for this address.
HOSTS = (LOOPBACK, "localhost")
#: Within so many seconds, curves of trainings make the page new once; the journal does at any time.
CURVES_EVERY_S = 30


class ReportServer(ThreadingHTTPServer):
    """Answers GET of `/`, the page as it is now, and of `/version`, which changes with the run; of nothing else.

    **Arguments:** `port` of the loopback address; 0 takes a free one.

    **Raises:** `UserError` where the run cannot be read, or the port is in use.
    """

    daemon_threads = True

    def __init__(self, run_dir: str | Path, port: int):
        self.run_dir, self._drawing = Path(run_dir), threading.Lock()
        self._page: tuple[str | None, bytes] = (None, b"")
        self.paths = {"/": ("text/html", self.page), "/version": ("text/plain", lambda: self.version().encode())}
        self.page()
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; choose another one, or 0 for a free one") from None

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print errors, but not that a browser left before its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def version(self) -> str:
        """Sizes and times of what the page is drawn from."""
        parts = []
        for name, seconds in ((JOURNAL, 0), ("nodes", 0), (HISTORY, CURVES_EVERY_S)):
            path = self.run_dir / name
            if path.exists():
                time = path.stat().st_mtime_ns
                parts.append(str(time // (seconds * 10**9) if seconds else time))
        return "-".join(parts)

    def page(self) -> bytes:
        """The page of the present version, drawn once."""
        with self._drawing:
            version = self.version()
            if version != self._page[0]:
                refuse_links(self.run_dir)
                self._page = version, render(RunView(self.run_dir), version).encode()
            return self._page[1]


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "flyjax", ""

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
            return self.send_error(HTTPStatus.FORBIDDEN)
        if self.path not in self.server.paths:
            return self.send_error(HTTPStatus.NOT_FOUND)
        kind, make = self.server.paths[self.path]
        try:
            body = make()
        except UserError as error:  # a run that was removed, or a damaged journal
            return self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print no line per request."""
