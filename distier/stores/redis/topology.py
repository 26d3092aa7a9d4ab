"""The slots of a cluster and the servers that serve them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from distier.config import Address


@dataclass(frozen=True)
class Topology:
    """The reply of one node to `CLUSTER SLOTS`."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    owners: tuple[Address, ...]
    replicas: tuple[tuple[Address, ...], ...]

    def owner(self, slot: int) -> Address | None:
        """Return the master that serves this slot, or None."""
        i = bisect_right(self.starts, slot) - 1
        return self.owners[i] if i >= 0 and slot <= self.ends[i] else None

    @property
    def masters(self) -> tuple[Address, ...]:
        """The masters that serve at least one slot."""
        return tuple(dict.fromkeys(self.owners))

    @property
    def nodes(self) -> tuple[Address, ...]:
        """All nodes: masters, then replicas."""
        return tuple(dict.fromkeys((*self.owners, *(r for some in self.replicas for r in some))))

    def replicas_of(self, master: Address) -> tuple[Address, ...]:
        found = [r for owner, some in zip(self.owners, self.replicas, strict=True) if owner == master for r in some]
        return tuple(dict.fromkeys(found))


def parse_slots(reply: Any, asked: Address) -> Topology:
    """Parse the reply to `CLUSTER SLOTS`.

    Args:
        reply: The reply.
        asked: The address of the node that sent it, for a node that does not know its own host name.

    Raises:
        ConnectionError: The reply is invalid (redis-py's error).
    """

    def address(node: Sequence[Any]) -> Address:
        host = (node[0] or b"").decode()
        return (asked[0] if host in ("", "?") else host, int(node[1]))

    try:
        rows = sorted((int(row[0]), int(row[1]), tuple(map(address, row[2:]))) for row in reply)
        return Topology(
            tuple(r[0] for r in rows), tuple(r[1] for r in rows), tuple(r[2][0] for r in rows), tuple(r[2][1:] for r in rows)
        )  # fmt: skip
    except (TypeError, ValueError, LookupError, AttributeError) as e:
        raise RedisConnectionError(f"a node replies to CLUSTER SLOTS with {reply!r:.80}") from e


class Routes:
    """This process's knowledge of a cluster: its nodes, and the masters of the slots that the process uses. Does no I/O."""

    def __init__(self, seeds: Sequence[Address]) -> None:
        self._seeds = tuple(seeds)
        self._nodes = self._seeds
        self._by_slot: dict[int, Address] = {}
        self._last: dict[int, Address] = {}
        self.topology: Topology | None = None
        self.stale = True
        self.looks = 0

    def owner(self, slot: int) -> Address | None:
        """Return the master of this slot, or None if it is unknown."""
        found = self._by_slot.get(slot)
        if found is None and self.topology is not None and (found := self.topology.owner(slot)):
            self._by_slot[slot] = found
            self._last.setdefault(slot, found)
        return found

    def to_ask(self) -> tuple[Address, ...]:
        """Return the nodes to ask for the slots, the most promising first."""
        return tuple(dict.fromkeys((*self._nodes, *self._seeds)))

    def learn(self, topology: Topology, asked: Address) -> bool:
        """Store the reply of a node. Returns whether a slot that was used has another master now."""
        others = [node for node in topology.nodes if node != asked]
        self._nodes = (asked, *others) if asked in topology.nodes else tuple(others)
        others_now = {
            slot: owner
            for slot, last in list(self._last.items())
            if (owner := topology.owner(slot)) not in (None, last)
        }
        self._last |= others_now
        self.topology, self._by_slot = topology, {}
        self.stale = False
        self.looks += 1
        return bool(others_now)

    def moved(self, slot: int, target: Address) -> bool:
        """Record that `target` serves this slot, and ask it first for the other slots. Returns whether this is new."""
        self.stale = True
        self._nodes = (target, *(node for node in self._nodes if node != target))
        known, self._last[slot] = self._last.get(slot), target
        self._by_slot[slot] = target
        return known != target

    def suspect(self, address: Address) -> None:
        """Record that a node did not reply: fetch the slots again, and ask this node last."""
        self.stale = True
        self._nodes = (*(node for node in self._nodes if node != address), address)


class Redirect(NamedTuple):
    kind: str
    target: Address


def redirect_of(reply: Any, asked: Address) -> Redirect | None:
    """Parse `MOVED slot host:port` or `ASK slot host:port`; None for other replies. An empty host means that of `asked`."""
    if type(reply) is not ResponseError:
        return None
    kind, _, rest = str(reply).partition(" ")
    if kind not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.partition(" ")[2].rpartition(":")
    return Redirect(kind, (host or asked[0], int(port))) if port.isdigit() else None


NOT_COVERED = "CLUSTERDOWN no master serves this slot"
