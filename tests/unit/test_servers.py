"""The ports of the tests' servers: no two test processes use one, and a server whose port is taken gets another one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers
from tests.servers import BUS, KINDS, PORTS, Kind, Ports, PortTaken, available_kinds, free_port, start_server

RESERVE_ONE = """
import sys
from pathlib import Path
from tests.servers import Ports
ports = Ports(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
print(ports.reserve(), flush=True)
sys.stdin.read()
"""


def two_free_ports() -> range:
    first = next(port for port in iter(free_port, None) if servers._is_free(port + 1) and port + 1 in PORTS)
    return range(first, first + 2)


def test_port_that_another_process_reserved_is_not_returned(tmp_path: Path):
    ports, path = two_free_ports(), tmp_path / "ports"
    words = [sys.executable, "-c", RESERVE_ONE, str(path), str(ports.start), str(ports.stop)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        ours = Ports(path, ports)
        assert {theirs, ours.reserve()} == set(ports)
        with pytest.raises(AssertionError, match="no port of"):
            ours.reserve()
        other.communicate()
    assert Ports(path, range(theirs, theirs + 1)).reserve() == theirs, "the lock ends with its process"


@pytest.mark.parametrize("beyond", [0, BUS])
def test_port_on_which_a_program_listens_is_not_returned(tmp_path: Path, beyond: int):
    port = free_port()
    with socket.create_server(("127.0.0.1", port + beyond)), pytest.raises(AssertionError, match="no port of"):
        Ports(tmp_path / "ports", range(port, port + 1)).reserve()


@pytest.mark.parametrize("kind", KINDS)
def test_server_whose_port_is_taken_gets_another_one(kind: Kind, short_tmp: Path, monkeypatch: pytest.MonkeyPatch):
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    taken, free = free_port(), free_port()
    offered = [taken, free]
    monkeypatch.setattr(servers, "free_port", lambda: offered.pop(0))
    with socket.create_server(("127.0.0.1", taken)):
        server = start_server(kind, short_tmp, tcp=True)
        try:
            assert server.port == free and not offered
        finally:
            server.kill9()


def test_cluster_node_whose_bus_port_is_taken_gets_another_one(short_tmp: Path, monkeypatch: pytest.MonkeyPatch):
    if reason := available_kinds()["valkey"]:
        pytest.skip(reason)
    taken, free = free_port(), free_port()
    offered = [taken, free]
    monkeypatch.setattr(servers, "free_port", lambda: offered.pop(0))
    with socket.create_server(("127.0.0.1", taken + BUS)):
        server = start_server("valkey", short_tmp, tcp=True, args=("--cluster-enabled", "yes"))
        try:
            assert server.port == free
        finally:
            server.kill9()


def test_server_fails_if_each_port_is_taken(short_tmp: Path, monkeypatch: pytest.MonkeyPatch):
    if reason := available_kinds()["valkey"]:
        pytest.skip(reason)
    taken = free_port()
    monkeypatch.setattr(servers, "free_port", lambda: taken)
    with socket.create_server(("127.0.0.1", taken)), pytest.raises(PortTaken, match="Address already in use"):
        start_server("valkey", short_tmp, tcp=True)
