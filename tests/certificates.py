"""Certificates for servers and clients of tests: an authority `ca`, the certificates that it signed, and a stranger."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest

from tests.servers import binary, running_server, short_directory


@contextmanager
def certificates() -> Iterator[Path]:
    """Yield a directory with `ca.crt`, `server.crt`, `client.crt` and their keys, and with `other.crt`, an unknown authority,
    and its client `stranger`. Skip with a reason if there is no openssl, or no server with TLS."""
    if not which("openssl"):
        pytest.skip("no openssl program: no certificates")
    if reason := _no_tls():
        pytest.skip(reason)
    with short_directory() as at:
        _authority(at, "ca")
        _authority(at, "other")
        _certificate(at, "server", "ca", "serverAuth,clientAuth")  # nodes of a cluster are clients of each other
        _certificate(at, "client", "ca", "clientAuth")
        _certificate(at, "stranger", "other", "clientAuth")
        yield at


def _openssl(*words: str | Path, cwd: Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _authority(at: Path, name: str) -> None:
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
             f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", f"{name}.key", "-out",
             f"{name}.crt", cwd=at)  # fmt: skip


def _certificate(at: Path, name: str, authority: str, usage: str) -> None:
    (at / f"{name}.ext").write_text(
        f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\nauthorityKeyIdentifier=keyid\n"  # Python 3.13 requires it
    )
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout",
             f"{name}.key", "-out", f"{name}.csr", cwd=at)  # fmt: skip
    _openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial",
             "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt", cwd=at)  # fmt: skip


def _no_tls() -> str:
    """Return why TLS cannot be tested here; empty if it can."""
    program = binary("redis")
    if program is None:
        return "no redis-server on PATH (the embedded Valkey is built without TLS)"
    with running_server("redis") as server, server.client() as client:
        return "" if client.config_get("tls-port") else "this redis-server is built without TLS"
