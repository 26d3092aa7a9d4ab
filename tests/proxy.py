"""A TCP proxy in front of a real server, for the faults of networks and middle boxes: slow connections, connections that carry
nothing more without being closed (NAT, firewalls), and repeated bytes."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress

PIECE_BYTES = 16 * 1024


class Proxy:
    """Forwards connections to a port of 127.0.0.1. Use it as a context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._silenced: set[int] = set()
        self._open: dict[int, socket.socket] = {}
        self._reply_bytes_per_s = 0
        self._repeat_after_s: float | None = None
        self._last = b""
        self._once_more = False
        self._ended = False
        self.accepted = 0
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._listener.close()
        for client in list(self._open.values()):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Stop forwarding on all open connections, in both directions, without closing them. New connections work."""
        self._silenced.update(self._open)

    def lead_to(self, port: int) -> None:
        """Connect new connections to another server; open ones stay with theirs."""
        self._port = port

    def slow_down(self, bytes_per_s: int) -> None:
        """Forward replies at this rate; 0 removes the limit."""
        self._reply_bytes_per_s = bytes_per_s

    def repeat_next_reply(self, after_s: float) -> None:
        """Send the next reply a second time, `after_s` later (0: in the same packet)."""
        self._repeat_after_s = after_s

    def repeat_last_reply_first(self) -> None:
        """Send a copy of the last reply before the next one."""
        self._once_more = True

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._ended:
                client, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(client, self.accepted), daemon=True).start()

    def _serve(self, client: socket.socket, n: int) -> None:
        self._open[n] = client
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._port)) as server:
            while not self._ended:
                for arrived in select.select([client, server], [], [], 0.5)[0]:
                    data = arrived.recv(PIECE_BYTES)
                    if n in self._silenced:
                        continue
                    if not data:
                        return
                    if arrived is client:
                        server.sendall(data)
                    else:
                        self._reply(client, data)
        self._open.pop(n, None)

    def _reply(self, client: socket.socket, data: bytes) -> None:
        after_s, self._repeat_after_s = self._repeat_after_s, None
        if after_s == 0:
            data += data
        if self._once_more:
            self._once_more, data = False, self._last + data
        self._last = data
        client.sendall(data)
        if self._reply_bytes_per_s:
            time.sleep(len(data) / self._reply_bytes_per_s)
        if after_s:
            time.sleep(after_s)
            client.sendall(data)
