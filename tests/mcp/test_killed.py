"""`distier mcp` over stdio is killed with SIGKILL while it writes: what a client was told holds, and no lease is left."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from distier import Store, connect
from distier.plans.recovery.fsck.check import fsck
from tests.servers import poll

IDS = [f"agents/{n:02}" for n in range(12)]
COLD = [f"cold/{n:02}" for n in range(12)]
ROUND = len(IDS) + len(COLD)
PADDING = "x" * 20_000


def text_of(id: str, number: int) -> str:
    """Return the text of the nth write of a module. A mixture of two would have neither of them."""
    return f"{id} {number}\n{PADDING}{number}\n"


class Server:
    """A process of `distier mcp`, and the messages of a client that does not wait for each result."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distier", "mcp"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._numbers = itertools.count(1)
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        first = self.ask("initialize", client)
        assert next(iter(self.results()))[0] == first
        self._send({"method": "notifications/initialized"})

    def ask(self, method: str, params: dict[str, Any]) -> int:
        number = next(self._numbers)
        self._send({"id": number, "method": method, "params": params})
        return number

    def call(self, tool: str, **arguments: Any) -> int:
        """Call a tool, and return the number of the call."""
        return self.ask("tools/call", {"name": tool, "arguments": arguments})

    def results(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Iterate over the numbers and results of calls, also those that the server sent before it was killed."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.endswith(b"\n") and "id" in (message := json.loads(line)):
                yield message["id"], message["result"]

    def result_of(self, number: int) -> dict[str, Any]:
        """Wait for the result of a call."""
        return next(result for found, result in self.results() if found == number)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.read()
        assert self._process.wait() == 0


@contextmanager
def running(environment: dict[str, str]) -> Iterator[Server]:
    server = Server(environment)
    try:
        yield server
    finally:
        server._process.kill()
        server._process.wait()
        for pipe in (server._process.stdin, server._process.stdout):
            assert pipe
            pipe.close()


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"DISTIER_DEADLINE": "60s"}


@pytest.fixture
def patient(settings: dict[str, Any], store: Store) -> Iterator[Store]:
    """A store in this process, with modules that only the archive has."""
    with connect({}, **settings, near__enabled=False, deadline="60s") as found:
        for id in COLD:
            found.put(id, text_of(id, 0))
            found.demote(id, to="cold")
        yield found


def body(result: dict[str, Any]) -> str:
    assert not result.get("isError"), result
    return str(result["content"][0]["text"])


@pytest.mark.parametrize("acknowledged", [0, 1, ROUND, 5 * ROUND])
def test_acknowledged_writes_are_there_after_the_server_was_killed(
    environment: dict[str, str], settings: dict[str, Any], patient: Store, acknowledged: int
) -> None:
    """Each module has one write on its way at a time, and the modules in the archive are read meanwhile, under leases."""
    last = dict.fromkeys(IDS, 0)
    with running(environment) as server:
        doing = {server.call("write_module", id=id, text=text_of(id, 1)): id for id in IDS}
        doing |= {server.call("read_module", id=id): id for id in COLD}
        count = 0
        for number, result in server.results() if acknowledged else ():
            id, count = doing.pop(number), count + 1
            done(id, result, last)
            if count == acknowledged:
                break
            doing[again(server, id, last)] = id
        server.kill()
        for number, result in server.results():  # it had sent these
            done(doing.pop(number), result, last)

    for id in IDS:
        module = patient.get(id)
        allowed = [text_of(id, last[id]), text_of(id, last[id] + 1)]  # the one that was on its way
        assert (None if module is None else module.text) in (allowed if last[id] else [None, allowed[1]]), (
            id,
            last[id],
        )

    with running(environment) as server:
        for id in COLD:
            number = server.call("read_module", id=id)
            assert body(server.result_of(number)).startswith(f"{id} 0\n")
        for id in IDS:
            number = server.call("write_module", id=id, text=text_of(id, 1000))
            body(server.result_of(number))
        server.close()
    assert {module.text for module in patient.get_many(IDS).values() if module} == {text_of(id, 1000) for id in IDS}
    raw = redis.Redis.from_url(settings["redis__url"])
    poll(lambda: not list(raw.scan_iter("*lease*")), what="all leases expired")
    patient.archive_now()
    findings = patient.run(fsck(patient.space, checksums=1), deadline_s=60)
    assert not findings.remaining, findings
    raw.close()


def done(id: str, result: dict[str, Any], last: dict[str, int]) -> None:
    """Note a result of the server that is killed later."""
    if id in last:
        body(result)
        last[id] += 1
    else:
        assert body(result).startswith(f"{id} 0\n")


def again(server: Server, id: str, last: dict[str, int]) -> int:
    """Write a module again, or read it again."""
    if id in last:
        return server.call("write_module", id=id, text=text_of(id, last[id] + 1))
    return server.call("read_module", id=id)
