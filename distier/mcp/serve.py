"""The transports: stdio, and streamable HTTP with a bearer token."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Sequence
from typing import Any

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from distier.mcp.server import Served

PATH = "/mcp"
SHUTDOWN_S = 1


class FixedToken:
    """Accepts one token. It is compared in constant time."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        if not hmac.compare_digest(token.encode(), self._token):
            return None
        return AccessToken(token=token, client_id="distier", scopes=[])


async def serve_stdio(served: Served) -> None:
    """Serve one client over stdin and stdout, until stdin ends."""
    await served.start()
    try:
        async with stdio_server() as (read, write):
            await served.server.run(read, write, served.options())
    finally:
        served.stop()


def http_app(served: Served, base: str, *, hosts: Sequence[str], token: str | None) -> Any:
    """Return the ASGI app of the transport streamable HTTP, at `/mcp`.

    Args:
        served: The server.
        base: The URL of this server, without a path.
        hosts: The values that the headers `Host` and `Origin` may name, `*` at the end for any port: no web site may reach
            the server through a name of its own that resolves to this machine.
        token: The bearer token that each request must have; None for none.
    """
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True, allowed_hosts=list(hosts),
        allowed_origins=[f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")],
    )  # fmt: skip
    auth = None if token is None else AuthSettings(issuer_url=base, resource_server_url=None)  # type: ignore[arg-type]
    return served.server.streamable_http_app(
        streamable_http_path=PATH, transport_security=security, auth=auth,
        token_verifier=None if token is None else FixedToken(token),
    )  # fmt: skip


async def serve_http(served: Served, app: Any, listener: socket.socket) -> None:
    """Serve clients at a socket that listens, until a signal."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )  # fmt: skip
    await served.start()
    try:
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        served.stop()
