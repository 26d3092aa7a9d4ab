"""Many real processes use one namespace while a parent kills them with SIGKILL; afterwards every promise is checked.

    python -m tests.chaos.hammer --url redis://... --directory DIR --seconds 60 --seed 7

    agents    put, get, get_many, delete, promote, demote, pin on few modules and tiny budgets, so that everything moves
    workers   write back, demote, expire, sweep, as fast as they can
    sampler   checks the budgets and rule 1 in one script, without trusting any account; now and then it ends all connections
    parent    kills random agents and workers, restarts them, and checks everything at the end

Each process appends each call, and its acknowledgement, to its own file. It uses `write(2)` and the clock that all processes
share (CLOCK_MONOTONIC), so a killed process loses none of its log. Contents contain their id, writer and sequence number, end
in their own SHA-256, and have few different lengths: torn bytes and those of another module are recognised without a record.

The checks of the history (`tests/history.py`): no read (also after the end) returned a version older than one acknowledged
before the read began; a version has one content for ever; versions of one module grow with time; deleted modules are gone, and
all others exist; no call failed without a reason.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import lzma
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import redis

from distier import Item, Module, Store, connect
from distier.domain import archived as names
from distier.drive.sync import THREADS_MAX
from distier.effects import Command
from distier.errors import Conflict, DistierError, Full, NotFound
from distier.plans.fleet.maintain import recount
from distier.plans.fleet.sweep import sweep
from distier.stores.directory import DirectoryArchive
from tests.chaos.careless import Careless
from tests.history import NEVER, SEEN, Call, History, Promises, Version

AGENTS, WORKERS = 8, 2
KEPT = [f"kept/{i}" for i in range(18)] + ["kept/ü {odd}*", "kept//x", "kept/.."]
SHORT = [f"short/{i}" for i in range(5)]  # these are deleted often
IDS = KEPT + SHORT
HOT_TOKENS, HOT_BYTES, WARM_MODULES, WARM_BYTES = 4000, 16_000, 6, 12_000
EVERYTHING = ("put", "get hot", "get warm", "get cold", "get miss", "delete", "promote", "demote", "pin")
EACH_LEAST = 5
KILL_EVERY_S = (0.05, 0.35)


def settings(args: argparse.Namespace, process: int = 0) -> dict[str, Any]:
    """With `--nodes`, processes belong in turn to that many nodes, and each node has its own disk for clean warm copies."""
    local = (
        {"placement": "local", "directory": str(args.directory / f"node{process % args.nodes}")} if args.nodes else {}
    )
    return {
        "redis": {"url": args.url}, "namespace": "h", "counter": "estimate", "deadline": "30s",
        "near": {"enabled": args.near},
        "storage_tiers": {
            "hot": {"max_size": HOT_TOKENS, "max_bytes": HOT_BYTES},
            "warm": {"max_modules": WARM_MODULES, "max_bytes": WARM_BYTES, "ttl": "1s"} | local,
            "cold": {"directory": str(args.directory / "cold"), "archive_after": "100ms", "compression_level": 1},
            "promotion_threshold": 3, "demotion_threshold": "1s",
        },
        "worker": {"interval": "20ms", "sweep_interval": "1s", "headroom": 0.1},
    }  # fmt: skip


# -- contents ------------------------------------------------------------------------------------------------------


class Bad(AssertionError):
    """A broken promise."""


def make_content(id: str, writer: str, n: int, rng: random.Random) -> bytes:
    """Return one line that identifies the content, a tail that compresses by half, and the SHA-256 of both."""
    tail = rng.randbytes(rng.choice((20, 100, 100, 400, 400, 900))).hex().encode()
    body = json.dumps([id, writer, n]).encode() + b"\n" + tail
    body += b" " * (-len(body) % 256)  # equal lengths, so that a mix-up of two versions is not noticed by the length
    return body + hashlib.sha256(body).hexdigest().encode()


def read_content(id: str, content: bytes) -> str:
    """Return `writer/n` of a content. Raises `Bad` if it is torn, or belongs to another module."""
    body, digest = content[:-64], content[-64:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise Bad(f"torn content of {id!r}: {content[:60]!r}... ({len(content)} bytes)")
    found, writer, n = json.loads(body.partition(b"\n")[0])
    if found != id:
        raise Bad(f"{id!r} has the content of {found!r}")
    return f"{writer}/{n}"


# -- logs ----------------------------------------------------------------------------------------------------------


class Log:
    """The history of one process, one JSON object per line. Written lines survive SIGKILL of the writer."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, **what: Any) -> None:
        line = json.dumps({"t": time.monotonic_ns(), **what}).encode() + b"\n"
        assert os.write(self._fd, line) == len(line)


def read_logs(directory: Path) -> Iterator[dict[str, Any]]:
    """Return all whole lines of all processes. While a process writes, a reader may see the beginning of its last line."""
    for path in sorted(directory.glob("*.log")):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for line in whole.splitlines():
            yield {"process": path.stem, **json.loads(line)}


# -- agents --------------------------------------------------------------------------------------------------------


class Agent:
    """Random calls on a skewed choice of modules, each logged before and after."""

    def __init__(self, store: Store, log: Log, name: str, seed: int) -> None:
        self.store, self.log, self.name = store, log, name
        self.rng = random.Random(seed)
        self.n = 0
        self.known: dict[str, Any] = {}

    def run(self) -> None:
        calls: list[Callable[[], None]] = [self.get, self.put, self.get_many, self.delete, self.promote, self.demote,
                                           self.pin, self.look, self.put_many]  # fmt: skip
        while True:
            call = self.rng.choices(calls, (40, 22, 6, 5, 8, 12, 2, 3, 2))[0]
            self.n += 1
            call()

    def pick(self) -> str:
        return (
            IDS[min(int(self.rng.expovariate(0.12)), len(IDS) - 1)] if self.rng.random() < 0.7 else self.rng.choice(IDS)
        )

    def logged(
        self, op: str, ids: list[str], call: Callable[[], Any], describe: Callable[[Any], Any], **more: Any
    ) -> None:
        self.log.write(n=self.n, begin=op, ids=ids, **more)
        try:
            result = describe(call())
        except (Conflict, NotFound, Full) as e:
            self.log.write(n=self.n, refused=type(e).__name__)
        except DistierError as e:
            self.log.write(n=self.n, bad=f"{op} {ids}: {type(e).__name__}: {e}")
        except Bad as e:
            self.log.write(n=self.n, bad=str(e))
        else:
            self.log.write(n=self.n, end=result)

    def put(self) -> None:
        id = self.pick()
        content = make_content(id, self.name, self.n, self.rng)
        version = self.known.get(id) if self.rng.random() < 0.2 else None
        tokens = HOT_TOKENS + 1 if self.rng.random() < 0.05 else len(content) // 3
        self.logged("put", [id], lambda: self.store.put(id, content, tokens=tokens, if_version=version),
                    lambda landed: self.landed(id, landed), contents=[f"{self.name}/{self.n}"])  # fmt: skip

    def landed(self, id: str, landed: Any) -> list[list[int]]:
        self.known[id] = landed.version
        return [list(landed.version[:2])]

    def put_many(self) -> None:
        ids = self.rng.sample(IDS, 4)
        items = [Item(id, make_content(id, self.name, self.n, self.rng)) for id in ids]

        def describe(results: list[Any]) -> list[Any]:
            for result in results:
                if isinstance(result, DistierError) and not isinstance(result, Full):
                    raise result
            return [None if isinstance(r, Full) else list(r.version[:2]) for r in results]

        self.logged("put", ids, lambda: self.store.put_many(items), describe, contents=[f"{self.name}/{self.n}"] * 4)

    def get(self) -> None:
        id = self.pick()
        self.logged("get", [id], lambda: self.store.get(id), lambda module: [self.seen(id, module)])

    def get_many(self) -> None:
        ids = self.rng.sample(IDS, 5)
        self.logged("get", ids, lambda: self.store.get_many(ids), lambda found: [self.seen(i, found[i]) for i in ids])

    def seen(self, id: str, module: Module | None) -> list[Any] | None:
        if module is not None:
            self.known[id] = module.version
        return seen(id, module)

    def delete(self) -> None:
        id = self.rng.choice(SHORT)
        self.logged("delete", [id], lambda: self.store.delete(id), lambda was_there: was_there)

    def promote(self) -> None:
        ids = self.rng.sample(IDS, self.rng.choice((1, 1, 4)))
        self.logged("promote", ids, lambda: self.store.promote_many(ids), moved)

    def demote(self) -> None:
        ids = self.rng.sample(IDS, self.rng.choice((1, 1, 4)))
        to = self.rng.choice((None, "warm", "cold", "cold"))
        self.logged("demote", ids, lambda: self.store.demote_many(ids, to=to), moved)  # type: ignore[arg-type]

    def pin(self) -> None:
        id = self.rng.choice(KEPT)
        self.logged("pin", [id], lambda: self.store.pin(id, 0.2), lambda until: until)

    def look(self) -> None:
        id = self.pick()
        self.logged("where", [id], lambda: (self.store.exists(id), self.store.where(id), self.store.stats()),
                    lambda found: found[1] and found[1].tier)  # fmt: skip


def seen(id: str, module: Module | None) -> list[Any] | None:
    """Return the version and content that a read returned; None for a miss. Raises `Bad`."""
    if module is None:
        return None
    if hashlib.sha256(module.content).hexdigest() != module.sha256 or module.id != id:
        raise Bad(f"{id!r} at {module.version} does not match its own SHA-256 (from {module.tier})")
    return [module.version.epoch, module.version.ver, read_content(id, module.content), module.tier]


def moved(results: list[Any]) -> list[str]:
    for result in results:
        if isinstance(result, DistierError) and not isinstance(result, NotFound | Full):
            raise result
    return [type(r).__name__ if isinstance(r, DistierError) else r.reason or r.tier for r in results]


# -- the sampler ---------------------------------------------------------------------------------------------------

SAMPLE = """
local p, out = KEYS[1], {}
local limit = redis.call('HMGET', p .. 'limits', 'hot_tokens', 'hot_bytes', 'warm_modules', 'warm_bytes')
local used = redis.call('HMGET', p .. 'usage', 'hot_tokens', 'hot_bytes', 'warm_count', 'warm_frame_bytes')
local real = {0, 0, 0, 0}
local function bad(what, id) out[#out + 1] = what .. ' ' .. id end
for _, key in ipairs(KEYS) do
  if key ~= p then
    local id = key:sub(#p + 8)
    local f = redis.call('HMGET', key, 'tier', 'tokens', 'clean', 'bytes', 'tok')
    local frame = p .. 'warm:' .. id
    local content, there = redis.call('HSTRLEN', key, 'content'), redis.call('EXISTS', frame)
    local is_hot = redis.call('HEXISTS', key, 'content')
    if f[1] == 'hot' then
      real[1], real[2] = real[1] + f[2], real[2] + content
      if content ~= tonumber(f[4]) or is_hot == 0 then bad('hot without its content:', id) end
      if there == 1 then bad('hot and a frame:', id) end
    else
      if is_hot == 1 then bad('content though not hot:', id) end
      if f[1] == 'warm' then
        real[3], real[4] = real[3] + 1, real[4] + redis.call('STRLEN', frame)
        if f[3] == '0' and (there == 0 or redis.call('PTTL', frame) ~= -1) then bad('dirty warm copy may vanish:', id) end
        if f[3] == '1' and there == 1 and redis.call('PTTL', frame) < 0 then bad('clean frame without a TTL:', id) end
      elseif there == 1 then bad('a frame though ' .. tostring(f[1]) .. ':', id) end
      if f[1] == 'cold' and f[3] ~= '1' then bad('cold and not archived:', id) end
    end
    local gone = f[1] == 'deleted' and f[3] == '1' -- its tombstone is in the archive
    if f[1] and not gone and redis.call('PTTL', key) ~= -1 then bad('a record with a TTL:', id) end
  end
end
for i, name in ipairs({'hot tokens', 'hot bytes', 'warm modules', 'warm bytes'}) do
  if real[i] > tonumber(limit[i]) then bad('over budget, really: ' .. real[i] .. ' of ' .. limit[i], name) end
  if tonumber(used[i] or 0) > tonumber(limit[i]) then bad('over budget, on account: ' .. used[i], name) end
  if real[i] > tonumber(used[i] or 0) then bad('more than accounted: ' .. real[i] .. ' > ' .. (used[i] or 0), name) end
end
return out
"""


def sample(args: argparse.Namespace, log: Log) -> None:
    """Check as often as possible; every check sees one instant of the server."""
    from distier.domain.keys import Shard

    shard = Shard("h", 0, 1)
    client = redis.Redis.from_url(args.url)
    look = client.register_script(SAMPLE)
    keys = [shard.root, *(shard.module(id) for id in IDS)]
    n = 0
    while True:
        n += 1
        for found in look(keys=keys):
            log.write(bad=f"sample {n}: {found.decode()}")
        if n % 20 == 0:
            log.write(samples=n)
        if n % 250 == 0:  # ends connections, some of which lose the reply of a call that was done
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# -- processes -----------------------------------------------------------------------------------------------------


class Child(NamedTuple):
    role: str
    number: int
    pid: int


@dataclass
class Hammer:
    """The parent process. It forks before it has any thread or connection, so a child starts in a few milliseconds."""

    args: argparse.Namespace
    rng: random.Random
    children: list[Child] = field(default_factory=list)
    started: int = 0
    kills: int = 0
    ended: list[str] = field(default_factory=list)

    def start(self, role: str, index: int) -> None:
        self.started += 1
        name, seed = f"{role}{index}-{self.started}", self.rng.randrange(2**32)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                die_with(parent)
                self.child(role, name, seed)
                code = 0
            except Exception as e:
                Log(self.args.directory / f"{name}.log").write(bad=f"{name} ended: {type(e).__name__}: {e}")
            finally:
                os._exit(code)
        self.children.append(Child(role, index, pid))

    def child(self, role: str, name: str, seed: int) -> None:
        log = Log(self.args.directory / f"{name}.log")
        if role == "sampler":
            sample(self.args, log)
        store = connect(settings(self.args, self.started))
        if role == "agent":
            Agent(store, log, name, seed).run()
        worker = Careless(
            store, on_round=lambda report: log.write(round=report.did) if report.rounds % 20 == 0 else None
        )
        while True:
            failures = worker.report.failures
            worker.run_once()
            # The sampler ends connections, and a worker requests a lease only once.
            allowed = ("Full", "Redis closed the connection", "Connection reset by peer", "Broken pipe")
            if worker.report.failures > failures and not any(x in str(worker.report.last_failure) for x in allowed):
                log.write(bad=f"worker: {worker.report.last_failure}")
            time.sleep(0.02)

    def run(self) -> None:
        self.start("sampler", 0)
        for i in range(AGENTS):
            self.start("agent", i)
        for i in range(WORKERS):
            self.start("worker", i)
        end = time.monotonic() + self.args.seconds
        while time.monotonic() < end or not self.has_met_everything():
            time.sleep(self.rng.uniform(*KILL_EVERY_S))
            victim = self.rng.choice([c for c in self.children if c.role != "sampler"])
            self.kill(victim)
            self.kills += 1
            self.start(victim.role, victim.number)
        for child in list(self.children):
            self.kill(child)

    def has_met_everything(self) -> bool:
        """Return whether every fault happened often enough to mean something. A slow machine takes longer for it."""
        counts = histories(list(read_logs(self.args.directory)))[2]
        wanted = dict.fromkeys(EVERYTHING, EACH_LEAST) | {"samples": self.args.seconds * 10}
        return self.kills >= self.args.seconds and all(counts[what] >= n for what, n in wanted.items())

    def kill(self, child: Child) -> None:
        self.children.remove(child)
        os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        if not os.WIFSIGNALED(status):
            self.ended.append(f"{child.role}{child.number} ended by itself with {status}")


def die_with(parent: int) -> None:
    """End this process when its parent dies in any way (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


# -- the verdict ---------------------------------------------------------------------------------------------------


LOSES_NOTHING = Promises(survives=frozenset({"redis", SEEN}), ordered=frozenset({"redis"}))
"""The server is never killed, so every version survives."""


def pairs(lines: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the begin of each logged call, and its end; {} if its process was killed before."""
    ends = {(x["process"], x["n"]): x for x in lines if "n" in x and "begin" not in x}
    return ((line, ends.get((line["process"], line["n"]), {})) for line in lines if "begin" in line)


def write_call(op: str, began: int, ended: float, version: Version | None, content: str, **more: Any) -> Call:
    """Return a put that was acknowledged as `version`; None if its outcome is unknown."""
    is_known = version is not None
    return Call(op, began, ended if is_known else NEVER, content, known=is_known, version=version, **more)


def read_call(began: int, ended: int, found: list[Any] | None, **more: Any) -> Call:
    """Return a read that returned what `seen` made of its result."""
    if found is None:
        return Call("read", began, ended, **more)
    return Call("read", began, ended, found[2], version=(found[0], found[1]), **more)


def histories(lines: list[dict[str, Any]]) -> tuple[dict[str, History], list[str], Counter[str]]:
    """Return the history of each module, the faults that processes noticed themselves, and the number of calls of each kind."""
    by_id = {id: History(LOSES_NOTHING) for id in IDS}
    counts: Counter[str] = Counter(
        {"samples": max((line["samples"] for line in lines if "samples" in line), default=0)}
    )
    faults = [f"{line['process']}: {line['bad']}" for line in lines if "bad" in line]
    for line, end in pairs(lines):
        op, began, ended = line["begin"], line["t"], end.get("t", NEVER)
        counts[op if "end" in end else f"{op} {end.get('refused', 'killed' if not end else 'failed')}"] += 1
        if end.get("refused") in ("Conflict", "Full") and op != "delete":
            continue  # nothing was changed
        results = end.get("end") or [None] * len(line["ids"])
        for i, id in enumerate(line["ids"]):
            if op == "put":
                version = tuple(results[i]) if results[i] else None
                by_id[id].add(write_call(op, began, ended, version, line["contents"][i], level="redis"))
            elif op == "delete":
                by_id[id].add(Call("delete", began, ended, level="redis"))
            elif op == "get" and "end" in end:
                by_id[id].add(read_call(began, end["t"], results[i]))
                counts[f"get {results[i][3] if results[i] else 'miss'}"] += 1
    return by_id, faults, counts


def check_the_end(args: argparse.Namespace, by_id: dict[str, History], kills: int) -> Iterator[str]:
    """All processes are dead. The state must be consistent before and after maintenance, in Redis and the archive."""
    with connect(settings(args)) as store:
        shard = store.space.keys.shards[0]
        yield from compare_accounts(store, "after the last kill")
        before = {id: final_read(store, id, by_id[id]) for id in IDS}
        store.archive_now()
        worker = Careless(store)
        if not worker.run_once():
            yield f"the last round of maintenance failed: {worker.report.last_failure}"
        store.run(sweep(store.space), deadline_s=60)  # the worker's turn comes once in `sweep_interval`
        yield from compare_accounts(store, "after maintenance")
        client = redis.Redis.from_url(args.url)
        for id in IDS:
            if final_read(store, id, by_id[id]) != before[id]:
                yield f"{id!r} changed without a write"
            placed = store.where(id)
            if (placed is None) != (before[id] is None):
                yield f"{id!r}: where returned {placed}, get returned {before[id]}"
            if placed is not None and placed.archived_key is None:
                yield f"{id!r} is still dirty after archive_now"
            elif placed is not None and placed.archived_key is not None:
                content = lzma.decompress((args.directory / "cold" / placed.archived_key).read_bytes())
                if hashlib.sha256(content).hexdigest() != placed.sha256:
                    yield f"{id!r}: its object has another content"
        for key in client.scan_iter(match="distier:*:lease:*"):
            if client.pttl(key) == -1:
                yield f"{key!r} has no TTL"
        if client.zcard(shard.dirty):
            yield f"still dirty: {client.zrange(shard.dirty, 0, -1)}"
        yield from check_archive(args.directory / "cold", kills)


def final_read(store: Store, id: str, history: History) -> list[Any] | None:
    began = time.monotonic_ns()
    found = seen(id, store.get(id))
    history.add(read_call(began, time.monotonic_ns(), found))
    return found[:3] if found else None


def compare_accounts(store: Store, when: str) -> Iterator[str]:
    for shard in store.space.keys.shards:
        recounted = store.run(recount(store.space, shard))
        found: dict[bytes, bytes] = store.run(iter(Command(shard, ("HGETALL", shard.usage), lambda reply: reply)))
        accounts = {name.decode(): int(n) for name, n in found.items() if int(n)}
        if accounts != recounted:
            different = {n for n in accounts | recounted if accounts.get(n, 0) != recounted.get(n, 0)}
            yield f"{when} the accounts of shard {shard.index} are wrong: " + ", ".join(
                f"{n} {accounts.get(n, 0)} is {recounted.get(n, 0)}" for n in sorted(different)
            )


def check_archive(path: Path, kills: int) -> Iterator[str]:
    left = list((path / ".tmp").iterdir())
    if (
        len(left) > (kills + AGENTS + WORKERS) * THREADS_MAX
    ):  # a killed process leaves the files that its threads were writing
        yield f"{len(left)} temporary files of {kills} killed processes"
    for file in left:
        os.utime(file, (0, 0))  # as if an hour had passed
    archive = DirectoryArchive(path)
    if list((path / ".tmp").iterdir()):
        yield "old temporary files are not removed"
    groups: dict[str, list[names.VersionObject]] = {}
    for entry in archive.list("h/modules/", limit=100_000):
        found = names.parse_key(entry.key)
        if found is None:
            yield f"an object with a name that distier does not give: {entry.key}"
        else:
            groups.setdefault(found.directory, []).append(found)
    for directory, objects in groups.items():
        if names.dominated(objects):
            yield f"{directory} was not swept: {names.dominated(objects)}"


def report(args: argparse.Namespace, hammer: Hammer) -> dict[str, Any]:
    by_id, faults, counts = histories(list(read_logs(args.directory)))
    faults += hammer.ended
    try:
        faults += check_the_end(args, by_id, hammer.kills)
    except (DistierError, Bad) as e:
        faults.append(f"at the end: {type(e).__name__}: {e}")
    for id, history in by_id.items():
        faults += history.faults(id)
    return {
        "kills": hammer.kills,
        "processes": hammer.started,
        "counts": dict(sorted(counts.items())),
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--directory", type=Path, required=True, help="empty directory for logs and the archive")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--near", action="store_true", help="with near caches: reads may be 2 s old, so order is unchecked"
    )
    parser.add_argument("--nodes", type=int, default=0, help="number of nodes with warm copies on their disks")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    with connect(settings(args)):
        pass  # the namespace exists before any process is killed
    hammer = Hammer(args, random.Random(args.seed))
    hammer.run()
    found = report(args, hammer)
    json.dump(found, sys.stdout, indent=1)
    print()
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
