"""A small in-process S3 that fails on demand in the ways that real ones fail.

It implements the requests that distier makes (PUT, GET, ListObjectsV2, DELETE, DeleteObjects), keeps objects in memory
and counts requests. It is always right about order and consistency. Stale or doubled LIST pages are out of scope,
because S3 has been strongly consistent since 2020, and `stores/s3.py` refuses a listing out of order (see its tests).

    with FaultyS3() as s3:
        with s3.fault("stall", "GET"):      # until the block ends
            ...
        s3.gets[key]                        # number of GETs of an object
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests import aws_models

aws_models.share()

Fault = Literal[
    "reset",  # the connection is cut before the request is applied
    "stall",  # no reply, and the request is not applied before the fault ends
    "drop-reply",  # applied, but the connection is cut instead of the reply
    "500",
    "503",  # SlowDown
    "ignore-conditions",  # If-None-Match is ignored
    "invert-conditions",  # If-None-Match refuses the requests that it should allow
    "drop-metadata",
    "cut-body",  # the connection ends in the middle of the body
    "truncate",  # a shorter object, with the shorter length in its header
    "flip",  # one bit
    "slow",  # each reply takes `slow_s`
    "redirect",  # a proxy that redirects to a login: 302
    "login-page",  # the login page itself, with status 200
    "empty",  # status 200 without a body
    "denied",  # 403: no permission for this object, or a lock on it
]
STALL_S = 60.0
BUCKET = "bucket"


@dataclass(frozen=True)
class Object:
    data: bytes
    headers: dict[str, str]
    modified_s: float


@dataclass
class Active:
    fault: Fault
    verbs: frozenset[str]
    match: str
    times: int
    over: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    s3: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients and faults cut connections; do not report that."""


class FaultyS3:
    """`verbs` of faults and counts: PUT, GET, LIST, DELETE. Keys are the keys in the bucket, including the prefix."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.asked: Counter[str] = Counter()
        self.gets: Counter[str] = Counter()
        self.puts: Counter[str] = Counter()
        self.conditional = 0
        self.slow_s = 0.4
        self.lock = threading.Lock()
        self._faults: list[Active] = []
        self._port = 0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """The settings that `distier.connect` needs to use this server."""
        cold = {
            "url": f"s3://{BUCKET}/p", "endpoint_url": self.url, "region": "us-east-1", "access_key": "a",
            "secret_key": "s",
        }  # fmt: skip
        return {f"storage_tiers__cold__{name}": value for name, value in cold.items()} | overrides

    def __enter__(self) -> FaultyS3:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self._faults:
            fault.over.set()
        self.stop()

    def start(self) -> None:
        """Listen, on the same port again after `stop`."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.s3 = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections. Open connections stay open."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    @contextmanager
    def fault(self, fault: Fault, *verbs: str, match: str = "", times: int = 1 << 30) -> Iterator[None]:
        """Apply this fault to these verbs (all verbs if none is named) on keys that contain `match`, at most `times`
        times.
        """
        active = Active(fault, frozenset(verbs or ("PUT", "GET", "LIST", "DELETE")), match, times)
        self._faults.append(active)
        try:
            yield
        finally:
            self._faults.remove(active)
            active.over.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """No program listens, and open connections are cut at their next request."""
        with self.fault("reset"):
            self.stop()
            try:
                yield
            finally:
                self.start()

    def active(self, verb: str, key: str) -> list[Active]:
        with self.lock:
            found = [f for f in self._faults if verb in f.verbs and f.match in key and f.times > 0]
            for fault in found:
                fault.times -= 1
            return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_GET(self) -> None:
        self._serve("LIST" if "list-type" in urlsplit(self.path).query else "GET")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def do_POST(self) -> None:
        self._serve("DELETE")

    def _serve(self, verb: str) -> None:
        s3 = self.server.s3
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with s3.lock:
            s3.asked[verb] += 1
            s3.gets[key] += verb == "GET"
            s3.puts[key] += verb == "PUT"
            s3.conditional += any(name in self.headers for name in ("If-None-Match", "If-Match"))
        faults = s3.active(verb, key)
        kinds = {f.fault for f in faults}
        for fault in faults:
            if fault.fault == "stall":
                fault.over.wait(STALL_S)
        if "slow" in kinds:
            time.sleep(s3.slow_s)
        if "reset" in kinds:
            return self._cut()
        if "500" in kinds:
            return self._error(500, "InternalError")
        if "503" in kinds:
            return self._error(503, "SlowDown")
        if "denied" in kinds:
            return self._error(403, "AccessDenied")
        if "redirect" in kinds:
            return self._reply(302, {"Location": "https://login.example/"}, b"")
        if "login-page" in kinds or "empty" in kinds:
            return self._reply(200, {}, b"<html>Log in</html>" if "login-page" in kinds else b"")
        if self._refuses_condition(key, kinds):
            return self._error(412, "PreconditionFailed")
        status, headers, data = self._do(verb, key, parse_qs(parts.query, keep_blank_values=True), body)
        if "drop-reply" in kinds:
            return self._cut()
        return self._spoil(status, headers, data, kinds)

    def _refuses_condition(self, key: str, kinds: set[Fault]) -> bool:
        if "If-None-Match" not in self.headers or "ignore-conditions" in kinds:
            return False
        return (key in self.server.s3.objects) != ("invert-conditions" in kinds)

    def _do(self, verb: str, key: str, query: dict[str, list[str]], body: bytes) -> tuple[int, dict[str, str], bytes]:
        s3 = self.server.s3
        with s3.lock:
            match verb:
                case "PUT":
                    kept = {
                        n.lower(): v
                        for n, v in self.headers.items()
                        if n.lower().startswith(("x-amz-meta-", "content-ty"))
                    }
                    s3.objects[key] = Object(body, kept, time.time())
                    return 200, {"ETag": '"x"'}, b""
                case "GET":
                    found = s3.objects.get(key)
                    if found is None:
                        return 404, {}, _error_body("NoSuchKey")
                    return (
                        200,
                        found.headers | {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
                        found.data,
                    )
                case "LIST":
                    return 200, {}, self._listing(query)
                case _ if self.command == "POST":
                    named = [
                        e.text or "" for e in ElementTree.fromstring(body).iter() if e.tag.rpartition("}")[2] == "Key"
                    ]
                    locked = [f.match for f in s3._faults if f.fault == "denied" and "DELETE" in f.verbs and f.match]
                    errors = ""
                    for one in named:
                        if any(match in one for match in locked):
                            errors += f"<Error><Key>{escape(one)}</Key><Code>AccessDenied</Code></Error>"
                        else:
                            s3.objects.pop(one, None)
                    return 200, {}, f"<DeleteResult>{errors}</DeleteResult>".encode()
                case _:
                    s3.objects.pop(key, None)
                    return 204, {}, b""

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        def one(name: str, default: str = "") -> str:
            return query.get(name, [default])[0]

        after = max(one("start-after"), one("continuation-token"))
        keys = sorted(k for k in self.server.s3.objects if k.startswith(one("prefix")) and k.encode() > after.encode())
        page = keys[: int(one("max-keys", "1000"))]
        more = len(page) < len(keys)
        items = "".join(
            f"<Contents><Key>{quote(k)}</Key><Size>{len(o.data)}</Size><LastModified>{_iso(o.modified_s)}</LastModified>"
            "</Contents>"
            for k, o in ((k, self.server.s3.objects[k]) for k in page)
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><EncodingType>url</EncodingType><Prefix>{quote(one('prefix'))}</Prefix><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{items}</ListBucketResult>"
        ).encode()

    def _error(self, status: int, code: str) -> None:
        self._reply(status, {}, _error_body(code))

    def _spoil(self, status: int, headers: dict[str, str], data: bytes, kinds: set[Fault]) -> None:
        if "drop-metadata" in kinds:
            headers = {n: v for n, v in headers.items() if not n.startswith("x-amz-meta-")}
        if status == 200 and data:
            if "truncate" in kinds:
                data = data[: len(data) // 2]
            if "flip" in kinds:
                at = len(data) // 2
                data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        self._reply(status, headers, data, cut="cut-body" in kinds and status == 200)

    def _reply(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._cut()

    def _cut(self) -> None:
        """Send RST and not FIN, as a server that dies does."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _error_body(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
