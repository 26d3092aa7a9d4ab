"""A small HTTP server of GET routes, for probes and metrics: plain HTTP, no password, threads of its own."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from distier.errors import ConfigError

TEXT = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """What a route returns."""

    status: int
    content_type: str
    text: str


Routes = Mapping[str, Callable[[str], Response]]
"""The function of each path. Its argument is the header `Accept` of the request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    routes: Routes

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of connections: a client may disconnect at any time."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def version_string(self) -> str:
        return "distier"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        routes = self.server.routes
        route = routes.get(self.path.partition("?")[0])
        response = (
            route(self.headers.get("Accept", ""))
            if route
            else Response(404, TEXT, f"known paths: {', '.join(routes)}\n")
        )
        body = response.text.encode()
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes arrive every few seconds."""


def _advice(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return "the port is in use, perhaps by another worker; each worker of a host needs its own port (0 selects a free one)"
    if number == errno.EADDRNOTAVAIL:
        return "this host does not have that address; use 127.0.0.1 for local access only, or 0.0.0.0 for all addresses"
    if number == errno.EACCES:
        return "this user may not listen there; use a port above 1023"
    return str(getattr(error, "strerror", None) or error)


class HttpServer:
    """Serves `routes` at `address` until `close`.

    Args:
        setting: The name of the setting with the address, for errors.
        address: `host:port`. Port 0 selects a free port; see the attribute `port`.
        routes: The function of each path. It runs in a thread of the server.

    Raises:
        ConfigError: The process cannot listen at that address.
    """

    def __init__(self, setting: str, address: str, routes: Routes) -> None:
        host, _, port = address.rpartition(":")
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host.strip("[]"), int(port)), _Handler)
        except (OSError, OverflowError) as e:
            raise ConfigError(f"{setting}: cannot listen at {address}: {_advice(e)}") from e
        self._server.routes = routes
        self.port: int = self._server.server_address[1]
        self.address = f"{host}:{self.port}"
        threading.Thread(target=self._server.serve_forever, name=f"distier-{setting}", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
