"""Real clusters for tests: three masters and three replicas on loopback, with a node timeout of one second. They are joined by
single commands, because the wheel has no cli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import redis

from distier.stores.redis.topology import Topology, parse_slots
from tests.servers import READY_S, Kind, TestServer, poll, short_directory, start_server

MASTERS = 3
SLOTS = 16384
NODE_TIMEOUT_MS = 1000
ARGS = (
    "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
    "--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0",
    "--repl-ping-replica-period", "1", "--repl-backlog-ttl", "0",
)  # fmt: skip


@dataclass
class TestCluster:
    """Six nodes. Masters and replicas change their roles; the order of `nodes` does not change."""

    __test__: ClassVar[bool] = False

    nodes: list[TestServer]

    @property
    def url(self) -> str:
        return "cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def log(self) -> str:
        return "\n".join(f"-- {node.port}\n{node.log[-2000:]}" for node in self.nodes)

    def ask(self, node: TestServer, *command: Any) -> Any:
        with node.client(protocol=2) as client:
            connection = client.connection_pool.get_connection()
            connection.send_command(*command)  # redis-py's own parsers of CLUSTER replies do not help here
            return connection.read_response()

    def alive(self) -> list[TestServer]:
        return [node for node in self.nodes if node._process is not None]

    def topology(self, node: TestServer | None = None) -> Topology:
        """Return the topology as this node, or the first living node, sees it."""
        return parse_slots(self.ask(node or self.alive()[0], "CLUSTER", "SLOTS"), ("127.0.0.1", 0))

    def at(self, address: tuple[str, int] | None) -> TestServer:
        assert address is not None, "no master serves this slot"
        return next(node for node in self.nodes if node.port == address[1])

    def owner(self, slot: int) -> TestServer:
        return self.at(self.topology().owner(slot))

    def masters(self) -> list[TestServer]:
        return [self.at(address) for address in self.topology().masters]

    def replicas(self) -> list[TestServer]:
        masters = self.masters()
        return [node for node in self.alive() if node not in masters]

    def id_of(self, node: TestServer) -> str:
        return str(self.ask(node, "CLUSTER", "MYID").decode())

    def state(self, node: TestServer) -> dict[str, str]:
        lines = self.ask(node, "CLUSTER", "INFO").decode().split()
        return dict(line.split(":", 1) for line in lines)

    def agrees(self, masters: int = MASTERS, replicas: int | None = None) -> bool:
        """Whether all living nodes agree: all slots have a master, and there are this many masters and linked replicas."""
        replicas = len(self.alive()) - masters if replicas is None else replicas
        try:
            views = [self.topology(node) for node in self.alive()]
            states = [self.state(node) for node in self.alive()]
            roles = [self.ask(node, "ROLE") for node in self.alive()]
        except redis.RedisError:
            return False
        served = all(
            s["cluster_state"] == "ok" and int(s["cluster_slots_ok"]) == SLOTS and int(s["cluster_slots_fail"]) == 0
            for s in states
        )
        seen = {(view.starts, view.owners) for view in views}
        listed = {sum(len(view.replicas_of(m)) for m in view.masters) for view in views}
        linked = sum(role[0] == b"slave" and role[3] == b"connected" for role in roles)
        return (
            served
            and len(seen) == 1
            and len(views[0].masters) == masters
            and listed == {replicas}
            and linked == replicas
        )

    def await_agreement(self, masters: int = MASTERS) -> None:
        try:
            poll(lambda: self.agrees(masters), timeout_s=READY_S, what="the cluster's agreement")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log}") from e

    def await_failover(self, dead: TestServer, slots: list[int]) -> None:
        """Wait until all living nodes know other masters for the slots of a dead one."""

        def done() -> bool:
            views = [self.topology(node) for node in self.alive()]
            return all(view.owner(s) not in (None, ("127.0.0.1", dead.port)) for view in views for s in slots)

        try:
            poll(done, timeout_s=READY_S, what="the failover")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log}") from e

    # -- moving slots ------------------------------------------------------------------------------------------------

    def begin_move(self, slot: int, target: TestServer) -> TestServer:
        """Begin a classic move: mark the slot as migrating. Return its master."""
        source = self.owner(slot)
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        return source

    def keys_in(self, node: TestServer, slot: int) -> list[bytes]:
        return list(self.ask(node, "CLUSTER", "GETKEYSINSLOT", slot, 10_000))

    def move_keys(self, source: TestServer, target: TestServer, keys: list[bytes]) -> None:
        if keys:
            self.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *keys)

    def end_move(self, slot: int, target: TestServer) -> None:
        """End a classic move: report the new master to all nodes, first to the new master."""
        masters = self.masters()
        for node in (target, *(m for m in masters if m is not target)):
            self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def move(self, slot: int, target: TestServer) -> None:
        """Move a slot in the classic way, while others write."""
        source = self.begin_move(slot, target)
        while keys := self.keys_in(source, slot):
            self.move_keys(source, target, keys[:20])
        self.end_move(slot, target)

    def move_atomically(self, slot: int, target: TestServer) -> bool:
        """Move a slot atomically, as Valkey 9 does; return False if the server cannot."""
        source = self.owner(slot)
        command = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(target))
        try:
            self.ask(source, *command)
        except redis.ResponseError as e:
            if "unknown subcommand" in str(e).lower():
                return False
            raise
        poll(lambda: self.owner(slot) is target, timeout_s=READY_S, what=f"slot {slot} on {target.port}")
        return True

    # -- start and stop ------------------------------------------------------------------------------------------------

    def revive(self, node: TestServer) -> None:
        """Start a dead node on its data; by now it joins as a replica."""
        node.start()
        self.await_agreement()

    def stop(self) -> None:
        for node in self.nodes:
            with suppress(AssertionError):
                node.kill9()


@contextmanager
def running_cluster(kind: Kind) -> Iterator[TestCluster]:
    """Run three masters and three replicas of one kind; stop and remove them at the end."""
    with short_directory() as tmp:
        cluster = start_cluster(kind, tmp)
        try:
            yield cluster
        finally:
            cluster.stop()


def start_cluster(kind: Kind, tmp: Path) -> TestCluster:
    """Start three masters and three replicas in the empty directory `tmp`. The caller stops them."""
    cluster = TestCluster([])
    try:
        _start(cluster, kind, tmp)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _start(cluster: TestCluster, kind: Kind, tmp: Path) -> None:
    for i in range(2 * MASTERS):
        (tmp / f"n{i}").mkdir()
        cluster.nodes.append(start_server(kind, tmp / f"n{i}", tcp=True, args=ARGS))
    join(cluster)


def join(cluster: TestCluster) -> None:
    """Join six new nodes into a cluster; the first three become masters."""
    first, *others = cluster.nodes
    for i, node in enumerate(cluster.nodes):
        cluster.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
    for i, node in enumerate(cluster.nodes[:MASTERS]):
        cluster.ask(node, "CLUSTER", "ADDSLOTSRANGE", SLOTS * i // MASTERS, SLOTS * (i + 1) // MASTERS - 1)
    for node in others:
        cluster.ask(first, "CLUSTER", "MEET", "127.0.0.1", node.port)
    all_nodes = len(cluster.nodes)
    poll(
        lambda: all(int(cluster.state(n)["cluster_known_nodes"]) == all_nodes for n in cluster.nodes),
        timeout_s=READY_S, what="the nodes' acquaintance",
    )  # fmt: skip
    for i, replica in enumerate(cluster.nodes[MASTERS:]):
        master = cluster.id_of(cluster.nodes[i])
        poll(lambda r=replica, m=master: _follows(cluster, r, m), timeout_s=READY_S, what="a replica")  # type: ignore[misc]
    cluster.await_agreement()


def _follows(cluster: TestCluster, replica: TestServer, master: str) -> bool:
    try:
        cluster.ask(replica, "CLUSTER", "REPLICATE", master)
    except redis.ResponseError:  # the node does not know this master yet
        return False
    return True
