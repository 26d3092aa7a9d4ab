"""One of several masters is down: only calls that need its shard are refused.

The exchange here replies for all shards but those that are `down`. For these it replies CLUSTERDOWN as a cluster does, or
nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from distier.domain.keys import Shard
from distier.domain.outcome import Outcome
from distier.drive.sync import SyncDriver
from distier.effects import Plan
from distier.errors import DistierError, RedisUnavailable, Unavailable
from distier.plans.fleet.leases import HeldLeases, join
from distier.plans.fleet.nodes import announce_changes
from distier.plans.fleet.nodes import heartbeat as heartbeat_plan
from distier.plans.get.one import get
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.tier import ledger
from distier.plans.tier.keep import keep
from distier.plans.tier.ledger import enlarge_quota, settled
from distier.plans.tier.peers import DiskSums
from distier.plans.tier.promote import promote
from distier.stores.redis import Answer, Batch
from distier.stores.redis.wire import RawCommand
from distier.worker import Worker
from distier.worker.health import not_ready, reasons
from tests.fakes import World

SHARDS = 4
TTL_MS = 60_000
AWAY: dict[str, Callable[[], ResponseError | RedisConnectionError]] = {
    "refuses": lambda: ResponseError("CLUSTERDOWN Hash slot not served"),
    "silent": lambda: RedisConnectionError("refused"),
}


class Partly:
    """`world.redis` without the shards that are down. It counts the requests to each shard."""

    def __init__(self, world: World, how: str) -> None:
        self.world, self.how = world, how
        self.down: set[int] = set()
        self.asked: Counter[int] = Counter()

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        self.asked[shard.index] += 1
        if shard.index not in self.down:
            return self.world.redis.exchange(shard, commands, timeout_s)
        error = AWAY[self.how]()
        if isinstance(error, RedisConnectionError):
            raise error
        return [error] * len(commands)

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        return [self._one(shard, commands, timeout_s) for shard, commands in batches]

    def _one(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> Answer:
        try:
            return self.exchange(shard, commands, timeout_s)
        except RedisConnectionError as e:
            return e

    def drop(self) -> None:
        """Do nothing: replies are never out of step here."""

    def close(self) -> None:
        """Do nothing: there are no connections."""


class Client:
    """The part of a store that a worker needs, with the real driver."""

    def __init__(self, world: World, redis: Partly) -> None:
        self.space, self.redis = world.space, redis
        self.driver = SyncDriver(redis, world.archive, deadline_s=3.0)

    def run(
        self, plan: Plan[Any], *, deadline_s: float | None = None, on_progress: Callable[[Any], object] | None = None
    ) -> Any:
        return self.driver.run(plan, deadline_s, on_progress)


@pytest.fixture(params=AWAY)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    world = World.make(
        shards=SHARDS,
        storage_tiers__hot__max_size=400,
        storage_tiers__hot__max_bytes=40_000,
        storage_tiers__warm__max_modules=24,
        storage_tiers__warm__max_bytes=80_000,
        storage_tiers__promotion_threshold=1,
        storage_tiers__cold__archive_after="0s",
        worker__lease="2s",
    )
    world.run(settled(world.space))
    made = Client(world, Partly(world, request.param))
    yield made
    made.driver.close()


def id_on(client: Client, shard: int, nth: int = 0) -> str:
    found = (id for id in (f"m{i}" for i in itertools.count()) if client.space.shard(id).index == shard)
    return next(itertools.islice(found, nth, None))


BIG = b"large " * 500


def put_big(client: Client, id: str) -> Any:
    return client.run(put(client.space, Item(id, BIG, tokens=300)))


# -- quotas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [0, 2])
def test_put_over_quota_with_a_shard_down_lands_warm(client: Client, down: int) -> None:
    client.redis.down = {down}
    landed = put_big(client, id_on(client, 3))
    assert landed.tier == "warm" and landed.reason == "too large for hot"
    assert client.redis.asked[down] == 1, "one request is enough: its time is part of the caller's deadline"
    assert client.driver.counters.snapshot()["shares.refused"] == 1
    client.redis.down = set()
    assert put_big(client, id_on(client, 3, 1)).tier == "hot", "with all shards the quota grows"


def test_read_succeeds_though_its_promotion_needs_a_down_shard(client: Client) -> None:
    id = id_on(client, 3)
    client.redis.down = {0}
    assert put_big(client, id).tier == "warm"
    for _ in range(4):
        module = client.run(get(client.space, id))
        assert module is not None and module.content == BIG
    assert client.driver.counters.snapshot()["shares.refused"] >= 2, "a read tried to promote the module"
    client.redis.down = set()
    assert client.run(promote(client.space, id)).tier == "hot"


def test_quota_change_is_refused_if_a_shard_fails_midway(client: Client) -> None:
    client.redis.down = {1}
    client.driver.deadline_s = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "all_answer", lambda space: iter(()))
        assert client.run(enlarge_quota(client.space, client.space.keys.shards[3], 300, 3000)) is False
    client.redis.down = set()
    assert client.run(settled(client.space)).next == {}


def test_keep_ignores_only_an_unavailable_redis(client: Client) -> None:
    def raises(error: Exception) -> Plan[Outcome]:
        yield from ()
        raise error

    assert client.run(keep(raises(RedisUnavailable("away")))) is Outcome.UNAVAILABLE
    assert client.driver.counters.snapshot()["keeps.failed"] == 1
    with pytest.raises(DistierError, match="wrong password"):
        client.run(keep(raises(DistierError("wrong password"))))
    client.redis.down = {3}
    client.driver.deadline_s = 0.2
    with pytest.raises(Unavailable):  # from the read itself
        client.run(get(client.space, id_on(client, 3)))


# -- the fleet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [0, 2])
def test_worker_keeps_leases_of_shards_that_reply(client: Client, down: int) -> None:
    worker: Any = Worker(client)  # type: ignore[arg-type]
    worker._heartbeat()
    assert {s.index for s in worker.held} == {0, 1, 2, 3} and worker.last_heartbeat_failure is None
    client.redis.down = {down}
    healthy = {0, 1, 2, 3} - {down}
    for _ in range(5):  # longer than a lease, if each takes its whole time
        worker._heartbeat()
        assert {s.index for s in worker.held} == healthy and worker.workers == [worker.name]
        assert "RedisUnavailable" in str(worker.last_heartbeat_failure)
        assert not not_ready(worker) and any(why.startswith("redis: ") for why in reasons(worker))
    client.redis.down = set()
    worker._heartbeat()
    assert {s.index for s in worker.held} == {0, 1, 2, 3} and worker.last_heartbeat_failure is None


def test_last_list_of_workers_counts_while_first_shard_is_down(client: Client) -> None:
    run, space = client.run, client.space
    held: dict[str, HeldLeases] = {"a": {}, "b": {}}
    workers: dict[str, list[str]] = {"a": [], "b": []}

    def heartbeats() -> None:
        for name in held:
            deadline_s = 1.0 if client.redis.down else 30.0  # the whole of it, if a shard does not answer
            found = run(join(space, name, held[name], TTL_MS, workers=workers[name]), deadline_s=deadline_s)
            held[name], workers[name] = found.held, found.workers

    for _ in range(3):
        heartbeats()
    before = {name: set(mine) for name, mine in held.items()}
    assert all(len(mine) == 2 for mine in before.values())
    client.redis.down = {0}
    for _ in range(2):
        heartbeats()
    assert {name: sorted(all_of) for name, all_of in workers.items()} == {"a": ["a", "b"], "b": ["a", "b"]}
    assert {name: set(mine) for name, mine in held.items()} == {
        n: mine - {space.keys.shards[0]} for n, mine in before.items()
    }


def test_heartbeat_without_any_answer_is_an_error(client: Client) -> None:
    client.redis.down = {0, 1, 2, 3}
    with pytest.raises(Unavailable):
        client.run(join(client.space, "a", {}, TTL_MS), deadline_s=0.2)
    worker: Any = Worker(client)  # type: ignore[arg-type]
    worker._heartbeat()
    assert worker.held == [] and worker.last_heartbeat_s is None and worker.last_heartbeat_failure


def test_worker_round_reports_the_down_shard_and_does_the_rest(client: Client) -> None:
    ids = [id_on(client, 1), id_on(client, 3)]
    for id in ids:
        client.run(put(client.space, Item(id, b"content", tokens=1)))
    client.redis.down = {2}
    worker: Any = Worker(client)  # type: ignore[arg-type]
    assert worker.run_once() is False and "RedisUnavailable" in str(worker.report.last_failure)
    assert client.redis.asked[2] < 100, "nothing waits for the shard that is down"
    assert worker.report.did["archived"] == 2 and "swept" not in worker.report.did
    assert worker._pause_s == client.space.config.worker.interval_ms / 1000, "the healthy shards are not slowed down"
    client.redis.down = set()
    assert worker.run_once() is True and worker.last_round_failure is None and "swept" in worker.report.did


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_node_reports_to_a_down_shard_when_it_is_back(client: Client) -> None:
    ids = {shard: id_on(client, shard) for shard in range(SHARDS)}
    more = {shard: id_on(client, shard, 1) for shard in range(SHARDS)}
    disk = [*ids.values()]
    node = f"node-{client.redis.how}"

    def heartbeat(changes: dict[str, bool]) -> None:
        held = DiskSums(len(disk), 1, 9, 9)
        client.run(heartbeat_plan(client.space, node, held, changes, lambda: list(disk), rebuild=False))

    def held_sets() -> dict[int, set[str]]:
        ask = client.redis.world.ask
        return {s.index: {m.decode() for m in ask([("SMEMBERS", s.held(node))])[0]} for s in client.space.keys.shards}

    heartbeat({})
    assert held_sets() == {shard: {id} for shard, id in ids.items()}
    client.redis.down = {2}
    disk += more.values()
    client.run(announce_changes(client.space, node, dict.fromkeys(more.values(), True)))
    healthy = [0, 1, 3]
    unlinked: list[RawCommand] = []
    client.redis.world.redis.before = lambda command: unlinked.append(command) if command[0] == "UNLINK" else None
    for _ in range(3):
        heartbeat({})
        assert {s: held_sets()[s] for s in healthy} == {s: {ids[s], more[s]} for s in healthy}
        assert held_sets()[2] == {ids[2]} and unlinked == [], "the other sets are unchanged"
    disk.remove(ids[2])
    heartbeat({ids[2]: False})
    client.redis.down = set()
    heartbeat({})
    assert held_sets() == {s: {more[2]} if s == 2 else {ids[s], more[s]} for s in range(SHARDS)}
    assert [command[1] for command in unlinked] == [client.space.keys.shards[2].held(node)]
    heartbeat({})
    assert len(unlinked) == 1


def test_node_is_not_alive_while_first_shard_is_down(client: Client) -> None:
    client.redis.down = {0}
    with pytest.raises(Unavailable):
        client.run(heartbeat_plan(client.space, "n", DiskSums(0, 0, 1, 1), {}, list, rebuild=False), deadline_s=0.2)
