"""The embedded server, which distier starts if no Redis is configured."""

from __future__ import annotations

from distier.embedded.binary import ServerBinary, find_server
from distier.embedded.home import MAX_SOCKET_PATH_BYTES, Home
from distier.embedded.server import ensure_server, revive, server_status, stop_server
from distier.embedded.talk import Unsaved

__all__ = [
    "MAX_SOCKET_PATH_BYTES",
    "Home",
    "ServerBinary",
    "Unsaved",
    "ensure_server",
    "find_server",
    "revive",
    "server_status",
    "stop_server",
]
