"""An explicit-state model of the durable protocol: every order of every step, for one module on one shard.

The world has a primary, perhaps an old partitioned primary (a zombie), a replica's snapshot, an archive of objects that
are never overwritten, and epoch markers. Clients take the steps of their operation one at a time. They may stop between
any two steps for ever, and may be connected to the primary or to the zombie. Everything is a value; `successors` returns
all states that one step leads to. The search is breadth first, so the trace of a violation is a shortest one.

The operations of the code, and their names here:

    put, delete             `put0 del0`   one script; a write-back brings the version to the archive
    put, delete (durable)   `put2 del2`   reserve, PUT, look for a newer epoch, apply, acknowledge
                                          The record stores the reserved position: only the write that holds it is applied,
                                          versions before it are not adopted, and unconditional writes keep it. A write that
                                          lost its position does not know the fate of its object (`unknown`). A write that
                                          finds a newer epoch reserves a position there (`again`), and in the same step
                                          sees whether its object was adopted; if not, it puts its object again
    delete of nothing       `not2`        finds an archived tombstone, looks for a newer epoch, and says that nothing is there
    conditional put         `cas2`        the same; only a later version refuses it. It reports that once this version is in
                                          the archive and no newer epoch is (`settle`)
                            `cas0`        read, one script; it may pass a reserved position, which then ends
    end of a ttl            `exp0`        the same as a delete: the worker deletes the version that it found expired
    write-back              `archive`     read, PUT, commit if the version is still current
    sweep                   (environment) deletes an object that comes before a committed version, also on an old primary.
                            A reader whose object is gone adopts a greater one. If a position is held, it waits for the
                            holder, or passes it; never for an earlier object of the holder
    archived version        `was2`        no client: a version that is archived, and has no other copy, from the beginning
    claim                   `claim`       list the markers, put the next number, list again; install if no other has it
    recovery elsewhere      (environment) the same as one step, for the cases that are not about claims

Invariants, in every reachable state:

    J1 durable     a version that was acknowledged as durable has an object that is as great or greater
    J2 fresh       a read returns nothing older than the acknowledged version
    J3 readable    a record of a present module has a copy somewhere
    J4 order       no epoch is installed twice, so no position is given twice; positions of one incarnation only grow
    J5 closure     if all processes die now, recovery, write-back and sweep leave one object, and it is readable
    J6 refused     a refused version is never read, and a conditional write overtakes no acknowledged version
    J7 once        an overwritten version never comes back on the server where it was overwritten

`mutants` are names of single wrong steps; each must violate an invariant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Order = tuple[int, int]  # (epoch, ver)
Step = tuple[Any, ...]  # the state of a client: the name of its next step, and what it remembers
NONE: Order = (0, 0)


class Object(NamedTuple):
    order: Order
    op: int
    kind: str  # "v" content, "d" tombstone


class Record(NamedTuple):
    order: Order
    op: int
    kind: str
    clean: bool
    copy: bool  # Redis has the bytes
    seen: int  # the epoch in which the record was last known to be the newest version


class Server(NamedTuple):
    epoch: int
    valid: bool  # the epoch was installed in this incarnation
    ver: int
    record: Record | None
    floor: Order  # the greatest version that this server acknowledged
    incarnation: int
    reserved: Order = NONE  # the position of a durable write in front of the record
    past: frozenset[int] = frozenset()  # operations whose versions were overwritten here
    flushed: int = 0  # how often it was emptied in its incarnation

    @property
    def slot(self) -> Order:
        """The reserved position; a position of an older epoch no longer counts."""
        return self.reserved if self.reserved[0] == self.epoch else NONE

    def with_record(self, record: Record, **changes: Any) -> Server:
        """Replace the record."""
        old = self.record
        past = self.past | {old.op} if old and old.op >= 0 and old.op != record.op else self.past
        return self._replace(record=record, past=past, **changes)


class State(NamedTuple):
    primary: Server
    zombie: Server | None
    snapshot: Server
    objects: frozenset[Object]
    markers: tuple[int, ...]  # claimed epoch numbers, each as often as it was claimed
    installed: tuple[tuple[int, int], ...]  # (epoch, incarnation of the server)
    clients: tuple[Step, ...]
    durable: Order
    faults: int
    collected: bool = False
    refused: frozenset[int] = frozenset()  # the operations whose clients know that they were refused


START = Server(1, True, 0, None, NONE, 0)
EMPTY = Server(0, False, 0, None, NONE, 0)
CLAIMS_MAX = 3
TRIES_MAX = 2
MARKERS_MAX = 5
"""Bounds for loops that could be endless: two claimers that always meet."""


@dataclass
class Result:
    states: int
    transitions: int
    violation: str = ""
    trace: Sequence[State] = ()
    complete: bool = True


def greatest(objects: frozenset[Object]) -> Object | None:
    return max(objects, key=lambda o: (o.order, o.op)) if objects else None


class Model:
    """`ops` are the operations of the clients, `faults` the number of failovers and losses, `mutants` the wrong steps."""

    def __init__(self, ops: Sequence[str], faults: int, mutants: Sequence[str] = ()) -> None:
        self.ops, self.faults, self.mutants = tuple(ops), faults, frozenset(mutants)
        self.claims_are_clients = "claim" in ops

    # -- the search --------------------------------------------------------------------------------------------------

    def run(self, limit: int = 2_000_000) -> Result:
        start = State(START, None, START, frozenset(), (1,), ((1, 0),), (("idle",),) * len(self.ops), NONE, 0)
        if "was2" in self.ops:
            i = self.ops.index("was2")
            server = START._replace(ver=1, record=Record((1, 1), i, "v", True, False, 1), floor=(1, 1))
            objects = frozenset({Object((1, 1), i, "v")})
            start = self.go(start, i, ("done",), primary=server, snapshot=server, objects=objects, durable=(1, 1))
        before: dict[State, State | None] = {start: None}
        queue, transitions = deque([start]), 0
        while queue:
            state = queue.popleft()
            bad = self.violation(state)
            if bad:
                return Result(len(before), transitions, bad, _trace(before, state))
            for after in self.successors(state):
                transitions += 1
                if after not in before:
                    before[after] = state
                    queue.append(after)
            if len(before) > limit:
                return Result(len(before), transitions, complete=False)
        return Result(len(before), transitions)

    # -- what must hold ----------------------------------------------------------------------------------------------

    def violation(self, s: State) -> str:
        numbers = [number for number, _ in s.installed]
        incarnations = [
            [number for number, incarnation in s.installed if incarnation == one]
            for one in {incarnation for _, incarnation in s.installed}
        ]
        if len(set(numbers)) < len(numbers) or any(incarnation != sorted(incarnation) for incarnation in incarnations):
            return f"J4 order: an epoch was installed twice: {s.installed}"
        top = greatest(s.objects)
        if s.durable > NONE and not s.collected and (top is None or top.order < s.durable):
            return f"J1 durable: {s.durable} was acknowledged, but the archive has {top}"
        seen = self.view(s.primary, s.objects)
        if seen == "lost":
            return "J3 readable: the module of the record has no copy"
        if isinstance(seen, tuple):
            need = max(s.durable, s.primary.floor)
            if seen[0] < need and not (seen == (NONE, "d") and s.collected):
                return f"J2 fresh: {seen} is read, but {need} was acknowledged"
        if isinstance(seen, tuple) and any(self.wrote(s, i, seen[0]) for i in s.refused):
            return f"J6 refused: {seen} is read, but was refused"
        for _, server in self.servers(s):
            if server.record and server.record.op in server.past:
                return f"J7 once: operation {server.record.op} is back, after it was overwritten"
        acked = [step for step in s.clients if step[0] == "done" and len(step) == 4]
        durable = [step for op, step in zip(self.ops, s.clients, strict=True) if op[-1] == "2" and step in acked]
        for _, position, at, _ in acked:
            for _, other, _, where in durable:
                if at is not None and where == "applied" and at < other < position:
                    return f"J6 refused: {position} replaced {at}, but {other} was acknowledged"
        return self.closure(s)

    def wrote(self, s: State, i: int, order: Order) -> bool:
        """Whether operation `i` wrote this version."""
        records = [server.record for _, server in self.servers(s)]
        return any(x and x.order == order and x.op == i for x in (*s.objects, *records))

    def view(self, server: Server, objects: frozenset[Object]) -> object:
        """The result of a read on this server: a version, "lost", or None if it must recover first."""
        if not server.valid and "no_epoch" not in self.mutants:
            return None
        top, record = greatest(objects), server.record
        found = (top.order, top.kind) if top else None
        if record is None:
            return found or (NONE, "d")
        if record.seen != server.epoch and "no_verify" not in self.mutants and top and top.order > record.order:
            return found
        if not self.is_lost(server, objects):
            return (record.order, record.kind)
        if not found or found[0] < record.order:
            return "lost"
        if record.seen == server.epoch and found[0] <= server.slot:  # the reader waits for the holder
            return None if "waits_forever" not in self.mutants else "lost"
        return found

    def is_lost(self, server: Server, objects: frozenset[Object]) -> bool:
        """Whether no copy of the record's version is left."""
        record = server.record
        if record is None or record.kind == "d" or record.copy:
            return False
        return all(o.order != record.order for o in objects)

    def closure(self, s: State) -> str:
        record, objects = s.primary.record, s.objects
        top = greatest(objects)
        if top and (record is None or top.order > record.order):
            record = Record(top.order, top.op, top.kind, True, False, 0)
        if record and not record.clean:
            objects = self.put(objects, Object(record.order, record.op, record.kind))
        top = greatest(objects)
        if record and record.kind == "v" and not record.copy and not any(o.order == record.order for o in objects):
            return "J5 closure: nothing is left to read"
        return "" if top is None or record is None or top.order == record.order else "J5 closure: two versions remain"

    # -- what can happen ---------------------------------------------------------------------------------------------

    def put(self, objects: frozenset[Object], o: Object) -> frozenset[Object]:
        if "no_unique_key" in self.mutants:  # names by version only, so the object is overwritten
            objects = frozenset(x for x in objects if x.order[1] != o.order[1])
        return objects | {o}

    def accepts(self, server: Server, epoch: int | None = None) -> bool:
        """Whether a mutating script changes anything there. `epoch` is the epoch in which it was prepared."""
        if "no_epoch" in self.mutants:
            return True
        return server.valid and (epoch is None or epoch == server.epoch)

    def successors(self, s: State) -> Iterator[State]:
        for i, op in enumerate(self.ops):
            step = s.clients[i]
            if op in ("put0", "del0"):
                yield from self.fast_write(s, i, op, step)
            elif op in ("cas0", "exp0"):
                yield from self.fast_cas(s, i, op, step)
            elif op in ("put2", "del2", "cas2"):
                yield from self.durable_write(s, i, op, step)
            elif op == "not2":
                yield from self.finds_nothing(s, i, step)
            elif op == "archive":
                yield from self.write_back(s, i, step)
            elif op == "claim":
                yield from self.claim(s, i, step)
            elif op == "bury" and step == ("idle",):
                yield from self.bury(s, i)
        yield from self.environment(s)

    def servers(self, s: State) -> list[tuple[str, Server]]:
        return [("primary", s.primary), *([("zombie", s.zombie)] if s.zombie else [])]

    def at(self, s: State, name: str, server: Server) -> State:
        return s._replace(primary=server) if name == "primary" else s._replace(zombie=server)

    def go(self, s: State, i: int, step: Step, **changes: Any) -> State:
        return s._replace(clients=(*s.clients[:i], step, *s.clients[i + 1 :]), **changes)

    def fast_write(self, s: State, i: int, op: str, step: Step) -> Iterator[State]:
        for name, server in self.servers(s):
            if step == ("idle",) and self.accepts(server):
                order = (server.epoch, server.ver + 1)
                record = Record(order, i, "v" if op == "put0" else "d", False, True, server.epoch)
                after = server.with_record(record, ver=server.ver + 1, floor=max(server.floor, order))
                yield self.go(s, i, ("done",), **{name: after})

    def is_checked(self, server: Server, objects: frozenset[Object]) -> bool:
        """Whether the record, or its absence, is known to be the newest version."""
        return server.record.seen == server.epoch if server.record else not objects

    def fast_cas(self, s: State, i: int, op: str, step: Step) -> Iterator[State]:
        for name, server in self.servers(s):
            if not (self.accepts(server) and self.is_checked(server, s.objects)):
                continue
            now = server.record.order if server.record else NONE
            there = server.record is not None and server.record.kind == "v"
            blind = op == "exp0" and "expires_any" in self.mutants
            if step == ("idle",):
                if op == "cas0" or there:
                    yield self.go(s, i, ("cas", now))
            elif step[0] == "cas" and step[1] != now and not (blind and there):
                yield self.go(s, i, ("refused",))
            elif step[0] == "cas":
                order = (server.epoch, server.ver + 1)
                record = Record(order, i, "d" if op == "exp0" else "v", False, True, server.epoch)
                after = server.with_record(record, ver=server.ver + 1, floor=max(server.floor, order), reserved=NONE)
                yield self.go(s, i, ("done", order, step[1], "applied"), **{name: after})

    def durable_write(self, s: State, i: int, op: str, step: Step) -> Iterator[State]:
        kind = "d" if op == "del2" else "v"
        match step:
            case ("idle",):
                for name, server in self.servers(s):
                    if self.accepts(server) and self.is_checked(server, s.objects):
                        at = server.record.order if server.record else NONE
                        yield self.reserve(s, i, at, name, server, 0, None)
            case (
                "again",
                last,
                at,
                tries,
                first,
            ):  # a newer epoch was found; not on an old primary, which does not know it
                for name, server in self.servers(s):
                    newer = server.epoch > last[0] or "again_anywhere" in self.mutants
                    if newer and self.accepts(server) and self.is_checked(server, s.objects):
                        now = server.record.order if server.record else NONE
                        if server.record and server.record.op == i:
                            yield self.go(s, i, ("done", now, None, "adopted"), durable=max(s.durable, now))
                        elif op == "cas2" and now != at:
                            yield self.go(s, i, ("unknown",) if first else ("settle", last))
                        elif tries < TRIES_MAX:
                            yield self.reserve(s, i, at, name, server, tries, first)
            case ("check", order, at, tries, first):
                for _, server in self.servers(
                    s
                ):  # the mistake: any server, which may have lost what the other one knew
                    yield self.unless_adopted(s, i, server, order, at, tries, first)
            case ("put", order, at, tries, first):
                if op == "del2" and "no_tombstone" in self.mutants:
                    yield self.go(s, i, ("look", order, at, tries, first))
                else:
                    objects = self.put(s.objects, Object(order, i, kind))
                    yield self.go(s, i, ("look", order, at, tries, first), objects=objects)
            case ("look", order, at, tries, first):
                if max(s.markers) > order[0] and "no_validate" not in self.mutants:
                    yield self.go(s, i, ("again", order, at, tries, first or order))
                else:
                    yield self.go(s, i, ("apply", order, at, tries, first))
            case ("apply", order, at, tries, first):
                for name, server in self.servers(s):
                    if self.accepts(server, order[0]):
                        yield self.apply(s, i, op, kind, order, at, tries, first, name, server)
            case ("settle", order):
                yield from self.settle(s, i, order)
            case ("settled", order):
                if max(s.markers) == order[0]:
                    yield self.go(s, i, ("refused",), refused=s.refused | {i})

    def reserve(self, s: State, i: int, at: Order, name: str, server: Server, tries: int, first: Order | None) -> State:
        """Reserve the next position.

        A position that another write holds may be passed, because its holder may be dead. If the archive has an object of the
        same write from before (`first`), this step also sees whether another client has adopted it.
        """
        order = (server.epoch, server.ver + 1)
        record = server.record or Record(NONE, -1, "d", True, False, server.epoch)  # the module is known not to exist
        held = {name: server._replace(ver=order[1], record=record, reserved=order)}
        if not first:
            return self.go(s, i, ("put", order, at, tries + 1, None), **held)
        if "checks_elsewhere" in self.mutants:
            return self.go(s, i, ("check", order, at, tries + 1, first), **held)
        return self.unless_adopted(s, i, server, order, at, tries + 1, first, **held)

    def unless_adopted(
        self, s: State, i: int, server: Server, order: Order, at: Order, tries: int, first: Order, **held: Server
    ) -> State:
        """Put again at the reserved `order`, if no process has adopted the object at `first`; afterwards none does."""
        record = server.record
        if "puts_again" in self.mutants or record is None or record.order < first:
            return self.go(s, i, ("put", order, at, tries, first), **held)
        if record.op == i:
            done = ("done", record.order, None, "adopted")
            return self.go(s, i, done, durable=max(s.durable, record.order))
        return self.go(s, i, ("unknown",))

    def apply(
        self,
        s: State,
        i: int,
        op: str,
        kind: str,
        order: Order,
        at: Order,
        tries: int,
        first: Order | None,
        name: str,
        server: Server,
    ) -> State:
        record = server.record
        now = record.order if record else NONE
        acked = ("done", order, at if op == "cas2" else None, "applied")
        durable = max(s.durable, order)
        if record and record.op == i and now == order:  # another client adopted it
            return self.go(s, i, acked, durable=durable)
        held = server.slot == order or "nothing_reserved" in self.mutants
        if now > order:
            if op == "cas2":
                return self.go(s, i, ("settle", order) if held else ("unknown",))
            if "blind_apply" in self.mutants:
                applied = server.with_record(Record(order, i, kind, True, True, server.epoch))
                return self.go(s, i, acked, durable=durable, **{name: applied})
            if held or "acks_overtaken" in self.mutants:
                return self.go(s, i, acked, durable=durable)
            return self.go(s, i, ("unknown",))
        if not held:
            return self.go(s, i, ("unknown",))
        if op == "cas2" and now != at:
            return self.go(s, i, ("settle", order))
        record = Record(order, i, kind, True, True, server.epoch)
        after = server.with_record(record, reserved=NONE)
        return self.go(s, i, acked, durable=durable, **{name: after})

    def settle(self, s: State, i: int, order: Order) -> Iterator[State]:
        """Archive the version that refused it, on the server of its epoch; then there must be no newer epoch."""
        if "takes_back" in self.mutants:
            left = frozenset(o for o in s.objects if o.order != order)
            yield self.go(s, i, ("refused",), objects=left, refused=s.refused | {i})
        elif self.mutants & {"not_settled", "nothing_reserved"}:
            yield self.go(s, i, ("refused",), refused=s.refused | {i})
        for name, server in self.servers(s):
            now = server.record
            if now and now.order > order and self.accepts(server, order[0]):
                objects = s.objects if now.clean else self.put(s.objects, Object(now.order, now.op, now.kind))
                after = server._replace(record=now._replace(clean=True))
                yield self.go(s, i, ("settled", order), objects=objects, **{name: after})

    def finds_nothing(self, s: State, i: int, step: Step) -> Iterator[State]:
        """The answer of a durable delete that there is nothing is as durable as the tombstone that it found."""
        match step:
            case ("idle",):
                for _, server in self.servers(s):
                    now = server.record
                    if now and now.kind == "d" and now.clean and self.accepts(server) and now.seen == server.epoch:
                        yield self.go(s, i, ("found", now.order, server.epoch))
            case ("found", order, epoch):
                if max(s.markers) == epoch or "nothing_unlooked" in self.mutants:
                    yield self.go(s, i, ("done",), durable=max(s.durable, order))

    def write_back(self, s: State, i: int, step: Step) -> Iterator[State]:
        match step:
            case ("idle",):
                for _, server in self.servers(s):
                    if self.accepts(server) and server.record and not server.record.clean:
                        yield self.go(s, i, ("put", server.record))
            case ("put", Record() as record):
                written = Object(record.order, record.op, record.kind)
                yield self.go(s, i, ("commit", record), objects=self.put(s.objects, written))
            case ("commit", Record() as read):
                for name, server in self.servers(s):
                    now = server.record
                    if self.accepts(server) and now:
                        same = now.order == read.order and now.op == read.op
                        if same or "no_tok_check" in self.mutants:
                            now = now._replace(clean=True)
                        yield self.go(s, i, ("done",), **{name: server._replace(record=now)})

    def claim(self, s: State, i: int, step: Step) -> Iterator[State]:
        """A client finds no epoch, on the primary or on an old one, and claims one for `incarnation`."""
        match step:
            case ("idle",):
                for _, server in self.servers(s):
                    if not server.valid and len(s.markers) < MARKERS_MAX:
                        if "epoch_reuse" in self.mutants and max(s.markers) > server.epoch:
                            yield self.go(s, i, ("install", max(s.markers), server.incarnation, server.flushed))
                        else:
                            yield self.go(s, i, ("mark", max(s.markers) + 1, server.incarnation, server.flushed))
            case ("mark", number, incarnation, flushed):
                yield self.go(s, i, ("check", number, incarnation, flushed), markers=(*s.markers, number))
            case ("check", number, incarnation, flushed):
                alone = s.markers.count(number) == 1 or "no_second_list" in self.mutants
                yield self.go(s, i, ("install", number, incarnation, flushed) if alone else ("idle",))
            case ("install", number, incarnation, flushed):
                for name, server in self.servers(s):
                    same = server.flushed == flushed or "install_after_flush" in self.mutants
                    if not server.valid and server.incarnation == incarnation and same and number > server.epoch:
                        after = server._replace(epoch=number, valid=True)
                        yield self.go(s, i, ("done",), installed=(*s.installed, (number, incarnation)), **{name: after})
                yield self.go(s, i, ("done",))

    def bury(self, s: State, i: int) -> Iterator[State]:
        """A tombstone expires when no older write can follow it any more."""
        top = greatest(s.objects)
        if top is None or top.kind != "d" or len(s.objects) > 1:
            return
        under_way = any(step[0] in ("put", "look", "apply", "commit") for step in s.clients)
        older = any(x and x.record and x.record.order < top.order for x in (s.snapshot, s.zombie, s.primary))
        if "early_tomb_gc" in self.mutants or not (under_way or older or s.zombie):
            yield self.go(s, i, ("done",), objects=frozenset(), collected=True)

    def environment(self, s: State) -> Iterator[State]:
        for name, server in self.servers(s):
            record = server.record
            if record and record.copy and (record.clean or "ttl_on_dirty" in self.mutants):
                yield self.at(s, name, server._replace(record=record._replace(copy=False)))
        yield from self.verify(s)
        yield from self.sweep(s)
        if s.snapshot != s.primary:
            yield s._replace(snapshot=s.primary)
        if not s.primary.valid and not self.claims_are_clients and len(s.markers) < CLAIMS_MAX + self.faults:
            number = s.primary.epoch + 1 if "epoch_reuse" in self.mutants else max(s.markers) + 1
            marks = s.markers if number in s.markers else (*s.markers, number)
            after = s.primary._replace(epoch=number, valid=True)
            yield s._replace(primary=after, markers=marks, installed=(*s.installed, (number, after.incarnation)))
        for name, server in self.servers(s):
            number = max(s.markers) + 1
            if (
                "outbid" in self.mutants
                and self.accepts(server)
                and server.epoch + 1 < number <= CLAIMS_MAX + self.faults
            ):
                after = server._replace(epoch=number)
                yield self.at(s, name, after)._replace(
                    markers=(*s.markers, number), installed=(*s.installed, (number, after.incarnation))
                )
        zombie = s.zombie
        if (
            "zombie_claims" in self.mutants
            and zombie
            and not zombie.valid
            and len(s.markers) < CLAIMS_MAX + self.faults
        ):
            number = max(s.markers) + 1
            back = zombie._replace(epoch=number, valid=True)
            yield s._replace(
                zombie=back, markers=(*s.markers, number), installed=(*s.installed, (number, back.incarnation))
            )
        yield from self.fail(s)

    def verify(self, s: State) -> Iterator[State]:
        """A reader compares the module with the archive, or a rescue does, which compares checked records too.

        Versions before a held position are not adopted, unless the version of the record is lost and its reader has waited.
        """
        server, top = s.primary, greatest(s.objects)
        if not self.accepts(server):
            return
        record = server.record
        held = server.slot if "adopts_held" not in self.mutants else NONE
        may = top and (top.order > held or held == NONE)
        if top and not may and self.is_lost(server, s.objects):
            may = top.order == held or top.op not in self.holders(s, held)
        if top and may and (record is None or top.order > record.order):
            adopted = Record(top.order, top.op, top.kind, True, False, server.epoch)
            yield s._replace(primary=server.with_record(adopted, reserved=NONE))
        elif record is not None and record.seen != server.epoch:
            yield s._replace(primary=server._replace(record=record._replace(seen=server.epoch)))

    def holders(self, s: State, position: Order) -> set[int]:
        return {i for i, step in enumerate(s.clients) if step[0] in ("put", "look", "apply") and step[1] == position}

    def sweep(self, s: State) -> Iterator[State]:
        top = greatest(s.objects)
        for o in s.objects:
            if self.unneeded(s, o, top):
                yield s._replace(objects=s.objects - {o})

    def unneeded(self, s: State, o: Object, top: Object | None) -> bool:
        if "gc_any_unreferenced" in self.mutants:
            return not (s.primary.record and s.primary.record.order == o.order)
        return any(
            server.record
            and server.record.clean
            and o.order < server.record.order
            and top
            and top.order >= server.record.order
            for _, server in self.servers(s)
        )

    def fail(self, s: State) -> Iterator[State]:
        if s.zombie:
            yield s._replace(zombie=None)
        if s.faults == self.faults:
            return
        valid = "no_epoch" in self.mutants
        incarnation = s.faults + 1
        new = s.snapshot._replace(valid=valid, incarnation=incarnation)
        lost = (START if valid else EMPTY)._replace(incarnation=incarnation)
        yield s._replace(
            primary=new, zombie=s.primary, snapshot=new, faults=incarnation
        )  # fails over, the old primary keeps running
        yield s._replace(primary=new, zombie=None, snapshot=new, faults=incarnation)
        yield s._replace(primary=lost, zombie=None, snapshot=lost, faults=incarnation)
        if self.claims_are_clients:  # FLUSHALL: the same incarnation continues
            empty = EMPTY._replace(incarnation=s.primary.incarnation, flushed=s.primary.flushed + 1)
            yield s._replace(primary=empty, snapshot=empty, faults=incarnation)


def _trace(before: dict[State, State | None], state: State) -> list[State]:
    path: list[State] = []
    at: State | None = state
    while at is not None:
        path.append(at)
        at = before[at]
    return path[::-1]
