"""Servers die, restart with old data, are partitioned and fail over, while real processes use them. Then every promise of
docs/PROTOCOL.md is checked.

    python -m tests.chaos.failover --kind valkey --scenario partition --directory DIR --rounds 5 --pace 1.0

    restart     kill -9 of the server (AOF always and everysec in turn), of agents and of the worker; restart
    old-rdb     kill -9, and a restart from an older RDB file: all later writes in Redis are certainly lost
    partition   the replication link is cut, the primary keeps running, and the replica is promoted too; the agents of the
                old primary stay with it as zombies, and others begin with the new one
    sentinel    kill -9 of the primary; three sentinels promote the replica, and the agents find it by themselves
    cluster     six shards on three masters with a replica each: slots move under the agents (the classic way and, if the
                server has it, the atomic one), then a master is killed, and its lagging replica is promoted

Each process logs each call before it starts and after it was acknowledged, as in `hammer`, with the epoch that the process
knew before and after the call. For every module the rules of `tests/history.py` must hold. Versions that were acknowledged as
`archived` survive everything (as `replicated`, if a replica is promoted), and durable writes are ordered.

At the end all reads are the same after a write-back, after a rescue, and after FLUSHALL and a rescue from the archive alone,
and the accounts equal a recount.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import redis

from distier import Item, Store, connect
from distier.domain.keys import Keyspace
from distier.errors import Conflict, DistierError, Full, NotFound, Unavailable
from distier.plans.get.one import get as get_plan
from distier.plans.put.delete import delete as delete_plan
from distier.plans.put.one import put as put_plan
from distier.plans.recovery.epochs import recover
from distier.plans.recovery.rescue import rescue
from tests.chaos import hammer
from tests.chaos.careless import Careless
from tests.chaos.hammer import (
    Bad,
    Log,
    compare_accounts,
    die_with,
    make_content,
    pairs,
    read_call,
    read_logs,
    seen,
    write_call,
)
from tests.children import freeze
from tests.clusters import TestCluster, start_cluster
from tests.history import NEVER, Call, History, Promises
from tests.patching import replace_in
from tests.servers import (
    READY_S,
    TestServer,
    await_replica,
    clear,
    poll,
    short_directory,
    start_replica,
    start_sentinels,
    start_server,
)

AGENTS, READERS = 3, 1
KEPT = [f"kept/{i}" for i in range(24)]
SHORT = [f"short/{i}" for i in range(8)]  # these are deleted often
IDS = KEPT + SHORT
CLUSTER_SHARDS = 6
REPLICATING = ("partition", "sentinel")
LEVELS = ("redis", "replicated", "archived")


def settings(url: str, directory: Path) -> dict[str, Any]:
    found = hammer.settings(argparse.Namespace(url=url, directory=directory, near=False, nodes=0))
    found["storage_tiers"]["hot"] = {"max_size": 20_000, "max_bytes": 36_000}
    found["storage_tiers"]["warm"] |= {"max_modules": 12, "max_bytes": 24_000}
    # A call that waits for a dead server ends soon, so that the round goes on.
    return found | {"deadline": "5s", "shards": CLUSTER_SHARDS if url.startswith("cluster://") else 1}


# -- processes -----------------------------------------------------------------------------------------------------


class Agent:
    """Random calls at all levels, each logged before and after."""

    def __init__(self, store: Store, log: Log, name: str, seed: int, scenario: str) -> None:
        self.store, self.log, self.name = store, log, name
        self.rng = random.Random(seed)
        self.weights = (55, 5, 40) if scenario in REPLICATING else (60, 0, 40)
        self.n = 0

    def run(self) -> None:
        calls: list[Callable[[], None]] = [self.get, self.put, self.delete, self.get_many, self.demote, self.promote]
        while True:
            self.n += 1
            self.rng.choices(calls, (50, 32, 6, 5, 4, 3))[0]()

    def run_reading(self) -> None:
        """Only read: such a process must learn of a new epoch from reads. The loop has pauses, because others need the CPU."""
        while True:
            self.n += 1
            self.rng.choice((self.get, self.get, self.get_many))()
            time.sleep(0.002)

    def level(self) -> Any:
        return self.rng.choices(LEVELS, self.weights)[0]

    def epochs(self, ids: list[str]) -> list[int | None]:
        """Return the epoch of each of these modules' shards, as this process knows it."""
        known = [self.store.space.process.epochs.get(self.store.space.shard(id)) for id in ids]
        return [k.epoch if k else None for k in known]

    def logged(
        self, op: str, ids: list[str], call: Callable[[], Any], describe: Callable[[Any], Any], **more: Any
    ) -> None:
        before = self.epochs(ids)
        self.log.write(n=self.n, begin=op, ids=ids, **more)
        try:
            result = describe(call())
        except (Conflict, NotFound, Full) as e:
            self.log.write(n=self.n, refused=type(e).__name__)
        except Unavailable as e:
            self.log.write(n=self.n, failed=f"{type(e).__name__}: {e}"[:120])
        except DistierError as e:
            self.log.write(n=self.n, bad=f"{op} {ids}: {type(e).__name__}: {e}")
        except Bad as e:
            self.log.write(n=self.n, bad=str(e))
        else:
            self.log.write(n=self.n, end=result, epochs=list(zip(before, self.epochs(ids), strict=True)))

    def put(self) -> None:
        id, level = self.rng.choice(IDS), self.level()
        item = Item(id, make_content(id, self.name, self.n, self.rng), durability=level)
        self.logged("put", [id], lambda: self.store.run(put_plan(self.store.space, item)),
                    lambda landed: [list(landed.version[:2])], level=level, content=f"{self.name}/{self.n}")  # fmt: skip

    def delete(self) -> None:
        id, level = self.rng.choice(SHORT), self.level()
        self.logged("delete", [id], lambda: self.store.run(delete_plan(self.store.space, id, None, level)),
                    lambda was_there: was_there, level=level)  # fmt: skip

    def get(self) -> None:
        id = self.rng.choice(IDS)
        self.logged("get", [id], lambda: self.store.get(id), lambda module: [seen(id, module)])

    def get_many(self) -> None:
        ids = self.rng.sample(IDS, 5)
        self.logged("get", ids, lambda: self.store.get_many(ids), lambda found: [seen(id, found[id]) for id in ids])

    def demote(self) -> None:
        ids = self.rng.sample(IDS, 3)
        self.logged("demote", ids, lambda: self.store.demote_many(ids, to="cold"), lambda _: True)

    def promote(self) -> None:
        id = self.rng.choice(IDS)
        self.logged("promote", [id], lambda: self.store.promote(id), lambda _: True)


class Child(NamedTuple):
    role: str
    number: int
    group: str
    url: str
    pid: int


@dataclass
class Run:
    """The parent process: it forks agents and workers, and kills, cuts off and restarts servers."""

    scenario: str
    kind: Any
    directory: Path
    rounds: int
    pace_s: float
    rng: random.Random
    log: Log = field(init=False)
    children: list[Child] = field(default_factory=list)
    started: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = Log(self.directory / "parent.log")

    def start_group(self, group: str, url: str) -> None:
        for i in range(AGENTS):
            self.start("agent", i, group, url)
        for i in range(READERS):
            self.start("reader", i, group, url)
        self.start("worker", 0, group, url)

    def start(self, role: str, number: int, group: str, url: str) -> None:
        self.started += 1
        name, seed, parent = f"{group}-{role}{number}-{self.started}", self.rng.randrange(2**32), os.getpid()
        pid = os.fork()
        if pid == 0:
            log = Log(self.directory / f"{name}.log")
            try:
                die_with(parent)
                self.child(role, log, name, seed, url)
            except BaseException as e:
                log.write(bad=f"{name} ended: {type(e).__name__}: {e}")
            finally:
                os._exit(1)
        self.children.append(Child(role, number, group, url, pid))

    def child(self, role: str, log: Log, name: str, seed: int, url: str) -> None:
        store = None
        while store is None:
            with suppress(Unavailable):
                store = connect(settings(url, self.directory))
        if role == "agent":
            Agent(store, log, name, seed, self.scenario).run()
        if role == "reader":
            Agent(store, log, name, seed, self.scenario).run_reading()
        worker = Careless(store)
        while True:
            if not worker.run_once() and worker.report.last_failure:
                kind = worker.report.last_failure.partition(":")[0]
                is_weather = kind in ("RedisUnavailable", "DeadlineExceeded", "Recovering", "Full", "Fenced")
                log.write(**{"failed" if is_weather else "bad": f"worker: {worker.report.last_failure}"})
            time.sleep(0.05)

    def kill_some(self, n: int) -> None:
        """kill -9 of random processes of the latest group, which are then started again."""
        group = self.children[-1].group
        for victim in self.rng.sample([c for c in self.children if c.group == group], n):
            self.kill(victim)
            self.start(victim.role, victim.number, victim.group, victim.url)

    def kill(self, child: Child) -> None:
        self.children.remove(child)
        os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        self.kills += 1
        if not os.WIFSIGNALED(status):
            self.faults.append(f"{child.role}{child.number} of {child.group} ended by itself with {status}")

    def end_group(self, group: str) -> None:
        for child in [c for c in self.children if c.group == group]:
            self.kill(child)

    def await_result(self) -> None:
        """Wait until a process of the latest group has a result. On a busy machine, that may take longer than a round."""
        since, of = time.monotonic_ns(), f"{self.children[-1].group}-"
        poll(lambda: any("end" in line and line["t"] > since and line["process"].startswith(of)
                         for line in read_logs(self.directory)), what="a result")  # fmt: skip

    def work(self, fraction: float) -> None:
        """Let the processes work for about this fraction of a round."""
        time.sleep(self.pace_s * fraction * self.rng.uniform(0.7, 1.3))


# -- the faults of servers -----------------------------------------------------------------------------------------


def restart(run: Run, tmp: Path) -> TestServer:
    server = start_server(run.kind, tmp, args=("--appendfsync", "always"))
    run.start_group("g0", server.url)
    for i in range(run.rounds):
        run.work(0.7)
        fsync = server.args[1]
        server.kill9()
        run.log.write(down=fsync)
        run.kill_some(2)
        server.args = ("--appendfsync", "everysec" if i % 2 == 0 else "always")
        server.start()
        run.log.write(up=True)
        run.await_result()
        run.work(0.3)
    return server


def old_rdb(run: Run, tmp: Path) -> TestServer:
    server = start_server(run.kind, tmp, args=("--appendonly", "no"))
    run.start_group("g0", server.url)
    copies: list[Path] = []
    for i in range(run.rounds):
        run.work(0.3)
        with server.client() as client:
            client.save()
        copies.append(Path(shutil.copy(tmp / "dump.rdb", tmp / f"copy{i}.rdb")))
        run.work(0.4)
        server.kill9()
        run.log.write(down="old rdb")
        shutil.copy(run.rng.choice(copies[-2:]), tmp / "dump.rdb")
        if i % 2:
            run.kill_some(2)
        server.start()
        run.log.write(up=True)
        run.await_result()
        run.work(0.3)
    return server


def pair(run: Run, tmp: Path) -> tuple[TestServer, TestServer]:
    for name in "ab":
        (tmp / name).mkdir()
    primary = start_server(run.kind, tmp / "a", tcp=True)
    return primary, start_replica(primary, tmp / "b")


def follow(server: TestServer, primary: TestServer) -> None:
    """Start a dead server again, without its data, as a replica of `primary`."""
    clear(server.directory, keep=("log",))
    server.args = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
    server.start()
    await_replica(server)


def partition(run: Run, tmp: Path) -> TestServer:
    primary, replica = pair(run, tmp)
    run.start_group("g0", primary.socket_url)
    for i in range(run.rounds):
        run.work(0.3)
        with replica.client() as client:
            client.replicaof("127.0.0.1", 1)  # no server listens there: the link ends at once
            run.work(0.2)
            client.replicaof("NO", "ONE")
        run.log.write(down="partition", zombies=f"g{i}")
        run.log.write(up=True)
        run.start_group(f"g{i + 1}", replica.socket_url)
        run.await_result()
        run.work(0.5)
        run.end_group(f"g{i}")
        primary.kill9()
        follow(primary, replica)
        primary, replica = replica, primary
    run.work(0.1)
    return primary


def sentinel(run: Run, tmp: Path) -> TestServer:
    primary, replica = pair(run, tmp)
    sentinels = start_sentinels(primary, tmp)
    try:
        run.start_group("g0", sentinels.url)
        for i in range(run.rounds):
            run.work(0.6)
            poll(lambda r=replica: sentinels.see_replica(r.port), timeout_s=READY_S, what="the replica")  # type: ignore[misc]
            primary.kill9()
            run.log.write(down="sentinel")
            if i % 2:
                run.kill_some(1)
            poll(lambda r=replica: sentinels.primary_port() == r.port, timeout_s=READY_S, what="the failover")  # type: ignore[misc]
            run.log.write(up=True)
            run.await_result()
            run.work(0.4)
            follow(primary, replica)
            primary, replica = replica, primary
    except AssertionError as e:
        raise AssertionError(f"{e}\n{sentinels.log[-3000:]}") from e
    finally:
        for child in list(run.children):
            run.kill(child)
        sentinels.stop()
    return primary


class Masters:
    """All masters of a cluster, for code that expects one server."""

    def __init__(self, cluster: TestCluster) -> None:
        self._cluster = cluster
        self.socket_url = cluster.url

    @contextmanager
    def client(self) -> Iterator[Masters]:
        yield self

    def flushall(self) -> None:
        for master in self._cluster.masters():
            with master.client() as client:
                client.flushall()


def cluster(run: Run, tmp: Path) -> Masters:
    nodes = start_cluster(run.kind, tmp)
    shards = Keyspace("h", CLUSTER_SHARDS).shards
    run.start_group("g0", nodes.url)
    for i in range(run.rounds):
        run.work(0.3)
        shard, dead = run.rng.choice(shards), run.rng.choice(nodes.masters())
        target = run.rng.choice([m for m in nodes.masters() if m is not nodes.owner(shard.slot)])
        if i % 2 == 0 or not nodes.move_atomically(shard.slot, target):
            nodes.move(shard.slot, target)
        run.work(0.2)
        slots = [s.slot for s in shards if nodes.owner(s.slot) is dead]
        behind = [nodes.at(replica) for replica in nodes.topology().replicas_of(("127.0.0.1", dead.port))]
        for replica in behind:  # the replica misses the next writes, and takes over all the same
            freeze(replica.pid)
        nodes.ask(dead, "CLIENT", "KILL", "TYPE", "replica")  # otherwise the kernel still delivers the stream
        time.sleep(0.1)
        dead.kill9()
        run.log.write(down="cluster")
        for replica in behind:
            os.kill(replica.pid, signal.SIGCONT)
        if i % 2:
            run.kill_some(1)
        nodes.await_failover(dead, [*slots, *dead_slots(nodes, dead)])
        run.log.write(up=True)
        run.await_result()
        run.work(0.5)
        nodes.revive(dead)
    return Masters(nodes)


def dead_slots(nodes: TestCluster, dead: TestServer) -> list[int]:
    """Return the first slot of each range that a dead master still has. It is replaced even if it has none of our shards."""
    view = nodes.topology()
    return [start for start, owner in zip(view.starts, view.owners, strict=True) if owner[1] == dead.port]


SCENARIOS: dict[str, Callable[[Run, Path], TestServer | Masters]] = {
    "restart": restart, "old-rdb": old_rdb, "partition": partition, "sentinel": sentinel, "cluster": cluster,
}  # fmt: skip


# -- the verdict ---------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    histories: dict[str, History]
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    downs: list[tuple[int, str]] = field(default_factory=list)
    outages_ms: list[float] = field(default_factory=list)
    slowest_ms: list[float] = field(default_factory=list)
    stats_epochs: dict[str, int] = field(default_factory=dict)
    """The epoch of each module's shard at the end, as `stats` reports it."""

    @property
    def acknowledged(self) -> int:
        return sum(n for name, n in self.counts.items() if name.endswith(" ok"))


def judge(directory: Path, promises: Promises) -> Verdict:
    lines = list(read_logs(directory))
    verdict = Verdict({id: History(promises) for id in IDS})
    verdict.faults = [f"{line['process']}: {line['bad']}" for line in lines if "bad" in line]
    verdict.downs = [(line["t"], line["down"]) for line in lines if "down" in line]
    zombies = {line["zombies"]: line["t"] for line in lines if "zombies" in line}
    for line, end in pairs(lines):
        outcome = "ok" if "end" in end else "refused" if "refused" in end else "failed" if end else "killed"
        verdict.counts[f"{line['begin']}{' ' + line['level'] if 'level' in line else ''} {outcome}"] += 1
        note(verdict, line, end, zombies.get(line["process"].partition("-")[0], NEVER))
    recovery(verdict, lines, [line["t"] for line in lines if "up" in line])
    return verdict


def note(verdict: Verdict, line: dict[str, Any], end: dict[str, Any], zombie_since: float) -> None:
    """Add one call to the histories of its modules."""
    epochs = [after if before == after else None for before, after in end.get("epochs", [(None, None)])]
    op, began, ended = line["begin"], line["t"], end["t"] if "end" in end else NEVER
    history = verdict.histories[line["ids"][0]]
    more = {"process": line["process"], "zombie": NEVER > ended > zombie_since}
    if op == "put":
        version = tuple(end["end"][0]) if "end" in end else None
        epoch = version and version[0]
        history.add(write_call(op, began, ended, version, line["content"], epoch=epoch, level=line["level"], **more))
    elif op == "delete" and "refused" not in end and end.get("end") is not False:
        history.add(Call(op, began, ended, epoch=epochs[0], level=line["level"], **more))
    elif op == "get" and "end" in end:
        for id, found, epoch in zip(line["ids"], end["end"], epochs, strict=True):
            verdict.counts[f"read {found[3] if found else 'miss'}"] += 1
            verdict.histories[id].add(read_call(began, end["t"], found, epoch=epoch, **more))


def may_appear(history: History, found: list[Any] | None, epoch: int) -> bool:
    """Whether a rescue may restore this version, or a delete: an unacknowledged write, or a `redis` write that a failover lost
    and that a worker of the old primary archived all the same."""
    if found is None:
        return any(
            delete.ended == NEVER or (delete.level == "redis" and (delete.epoch is None or delete.epoch < epoch))
            for delete in history.deletes
        )
    puts = [put for put in history.puts if put.value == found[2]]
    return bool(puts) and all(p.version is None or (p.level == "redis" and p.version[0] < epoch) for p in puts)


def recovery(verdict: Verdict, lines: list[dict[str, Any]], ups: list[int]) -> None:
    """Measure the time from each loss of the server to the first result, and from its return to the first result of the slowest
    process. A put of a zombie does not count."""
    good = sorted((x["t"], x["process"]) for x in lines if "end" in x)
    zombies = {line["t"]: line["zombies"] for line in lines if "zombies" in line}
    for (down, _), up in zip(verdict.downs, ups, strict=True):
        old = zombies.get(down, "none")
        following = [t for t, _ in verdict.downs if t > down]
        until = following[0] if following else good[-1][0] + 1
        firsts: dict[str, int] = {}
        for t, process in good:
            if up < t < until and not process.startswith(f"{old}-"):
                firsts.setdefault(process, t)
        if firsts:
            verdict.outages_ms.append((min(firsts.values()) - down) / 1e6)
            verdict.slowest_ms.append((max(firsts.values()) - up) / 1e6)


def check_the_end(run: Run, server: TestServer | Masters, verdict: Verdict) -> Iterator[str]:
    """All processes are dead. The remaining modules must be the same after write-back, rescue and FLUSHALL."""
    with connect(settings(server.socket_url, run.directory)) as store:
        before = final_reads(store, verdict)
        epochs = {shard.shard: shard.epoch for shard in store.stats().epochs}
        verdict.stats_epochs = {id: epochs[store.space.shard(id).index] for id in IDS}
        store.archive_now()
        yield from compare(store, before, "a write-back", verdict)
        store.run(rescue(store.space), deadline_s=60)
        yield from compare(store, before, "a rescue", verdict, is_rescue=True)
        with server.client() as client:
            client.flushall()
        store.run(rescue(store.space), deadline_s=60)
        # The position that a dead writer holds keeps its object from being adopted in that epoch; in the next it may appear.
        yield from compare(store, before, "FLUSHALL and a rescue", verdict, is_rescue=True)
        verdict.counts["final epoch"] = max(
            store.run(recover(store.space, shard)).epoch for shard in store.space.keys.shards
        )
        verdict.counts["final modules"] = sum(module is not None for module in before.values())


def final_reads(store: Store, verdict: Verdict) -> dict[str, list[Any] | None]:
    found = {}
    for id, history in verdict.histories.items():
        began = time.monotonic_ns()
        module = seen(id, store.run(get_plan(store.space, id)))
        known = store.space.process.epochs.get(store.space.shard(id))
        epoch = known.epoch if known else None
        history.add(read_call(began, time.monotonic_ns(), module, epoch=epoch, process="final"))
        found[id] = module and module[:3]
    return found


def compare(
    store: Store, before: dict[str, list[Any] | None], after_what: str, verdict: Verdict, *, is_rescue: bool = False
) -> Iterator[str]:
    """Yield the changes since `before`, and update it. After a rescue some versions may appear: see `may_appear`."""
    now = final_reads(store, verdict)
    epochs = {shard: store.run(recover(store.space, shard)).epoch for shard in store.space.keys.shards}
    for id in IDS:
        history, was, found, epoch = verdict.histories[id], before[id], now[id], epochs[store.space.shard(id)]
        newer = was is None or found is None or found[:2] > was[:2]
        if found != was and not (is_rescue and newer and may_appear(history, found, epoch)):
            yield f"{id!r} was {was}, and is {found} after {after_what}"
        elif found != was:
            verdict.counts["appeared"] += 1
        before[id] = found
    yield from compare_accounts(store, f"after {after_what}")


def lost_acks(verdict: Verdict) -> tuple[Counter[str], list[str]]:
    """Return how many acknowledged writes of each level are lost, and those that must not be."""
    counts: Counter[str] = Counter()
    faults = []
    for id, history in verdict.histories.items():
        for ack, epoch in history.lost.items():
            counts[ack.level] += 1
            assert ack.version is not None
            # From its begin: on a busy machine, a process logs an acknowledgement after the parent has logged the next loss.
            next_down = next((what for t, what in verdict.downs if t > ack.began), "the end")
            if next_down in ("always", "the end") and not ack.zombie:
                faults.append(f"{id!r}: {ack} is lost, though {next_down!r} loses nothing")
            if epoch is not None and epoch <= ack.version[0]:
                faults.append(f"{id!r}: {ack} is lost and no epoch says so")
            if not ack.zombie and verdict.stats_epochs.get(id, 0) <= ack.version[0]:
                faults.append(f"{id!r}: {ack} is lost, and `stats` shows epoch {verdict.stats_epochs.get(id)}")
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), required=True)
    parser.add_argument("--directory", type=Path, required=True, help="empty directory for logs and the archive")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pace", type=float, default=1.0, help="approximate seconds per round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--break", dest="broken", choices=sorted(BREAKS), help="deliberate bug, which the checks must catch"
    )
    args = parser.parse_args()
    if args.broken:
        BREAKS[args.broken]()
    run = Run(args.scenario, args.kind, args.directory, args.rounds, args.pace, random.Random(args.seed))
    began = time.monotonic()
    with short_directory() as tmp:
        server = SCENARIOS[args.scenario](run, tmp)
        for child in list(run.children):
            run.kill(child)
        found = report(run, server)
    found["seconds"] = round(time.monotonic() - began, 1)
    json.dump(found, sys.stdout, indent=1)
    print()
    return 1 if found["faults"] else 0


def report(run: Run, server: TestServer | Masters) -> dict[str, Any]:
    survives = {"archived", *(["replicated"] if run.scenario in REPLICATING else [])}
    verdict = judge(run.directory, Promises(frozenset(survives), ordered=frozenset({"archived"})))
    faults = run.faults + verdict.faults
    try:
        faults += check_the_end(run, server, verdict)
    except (DistierError, Bad, redis.RedisError) as e:
        faults.append(f"at the end: {type(e).__name__}: {e}")
    for id, history in verdict.histories.items():
        faults += history.faults(id)
    lost, more = lost_acks(verdict)
    return {
        "scenario": run.scenario, "kind": run.kind, "disruptions": len(verdict.downs), "kills": run.kills,
        "processes": run.started, "acknowledged": verdict.acknowledged, "lost": dict(lost),
        "outage_ms": [round(ms) for ms in verdict.outages_ms], "slowest_ms": [round(ms) for ms in verdict.slowest_ms],
        "counts": dict(sorted(verdict.counts.items())), "faults": faults + more,
    }  # fmt: skip


# -- deliberate bugs, which the checks must catch --------------------------------------------------------------------


def break_look() -> None:
    """Do not look for a newer epoch before the acknowledgement."""
    from distier.plans.recovery.epochs import list_epochs

    def nothing(*_: Any, **__: Any) -> Any:
        yield from ()
        return []

    replace_in("distier.plans.put", list_epochs, nothing)


def break_replid() -> None:
    """Let no script compare the incarnation of the server."""
    from distier.lua import loader

    plain = loader.text_of
    loader.text_of = lambda name: plain(name).replace("incarnation ~= '' and", "false and")


def break_seen() -> None:
    """Serve records that were not compared with the archive in this epoch."""
    from distier.domain.module import parse_hot

    replace_in("distier.plans.get", parse_hot, lambda name, fields, epoch, verified: parse_hot(name, fields, 0, 0))


def break_forget() -> None:
    """Let a process keep its knowledge of the epoch when a connection ends."""
    from distier.plans.common.process_state import ProcessState

    ProcessState.forget = lambda self: None  # type: ignore[method-assign]


BREAKS: dict[str, Callable[[], None]] = {
    "look": break_look, "replid": break_replid, "seen": break_seen, "forget": break_forget,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
