"""The health port of a daemon: /healthz for probes, /metrics for Prometheus.

A small HTTP server in a thread of its own. It answers nobody but whoever asks for these two pages,
and can change nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Final, Self

import orjson

from processors.metrics import MetricsMissing, metrics_page
from processors.notices import Notice

__all__ = ["HealthPort"]

logger: Final = logging.getLogger("processors.health")


class HealthPort:
    """Serves while it is entered.

    /healthz answers 200, or 503 with the reasons, as JSON. /metrics answers in Prometheus' text
    format; where prometheus-client is not installed, 501 and how to install it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        faults: Callable[[], Sequence[str]],
        notices: Callable[[], Sequence[Notice]],
    ) -> None:
        """Take the port; 0 is any that is free.

        Raises:
            OSError: it cannot be had; the message names it.
        """
        self._faults = faults
        self._notices = notices
        try:
            self._metrics: Callable[[], tuple[bytes, str]] | None = metrics_page(notices)
            self._advice = ""
        except MetricsMissing as missing:
            self._metrics, self._advice = None, str(missing)
        pages = {"/healthz": self._healthz, "/metrics": self._metrics_page}
        try:
            self._server = _Server((host, port), _handler(pages))
        except OSError as error:
            raise OSError(
                error.errno, f"the health port {host}:{port} cannot be had: {error.strerror}"
            ) from error
        self.address = f"http://{host}:{self._server.server_address[1]}"

    def _healthz(self) -> tuple[int, str, bytes]:
        faults = list(self._faults())
        body: dict[str, Any] = {"healthy": not faults, "reasons": faults}
        body["apps"] = {notice.app: {"shards": len(notice.shards)} for notice in self._notices()}
        return (503 if faults else 200), "application/json", orjson.dumps(body)

    def _metrics_page(self) -> tuple[int, str, bytes]:
        if self._metrics is None:
            return 501, "text/plain; charset=utf-8", f"{self._advice}\n".encode()
        page, content_type = self._metrics()
        return 200, content_type, page

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, name="processors-health", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingTCPServer):
    # Not HTTPServer, which asks the DNS for this host's name before it serves.
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event of this daemon's."""
        logger.debug("health port: %s", client_address, exc_info=True)


def _handler(
    pages: dict[str, Callable[[], tuple[int, str, bytes]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "foldlog"
        #: A client that says nothing holds a thread no longer than that.
        timeout = 10.0

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self._answer(404, "text/plain; charset=utf-8", b"/healthz or /metrics\n")
            else:
                self._answer(*page())

        do_HEAD = do_GET

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a probe comes every few seconds."""

    return Handler
