"""Redis as a whole: the servers, a cluster, the scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from distier.config import Config, mask_url
from distier.doctor.finding import Finding, Findings, bare_space, counted_text
from distier.doctor.server import Server, check_server, fields_of
from distier.domain.keys import Keyspace, Shard
from distier.effects import Pipeline, collect
from distier.errors import ConfigError, DistierError, Invalid, RedisUnavailable
from distier.lua import Opened, open_shard
from distier.plans.fleet.statistics import read_stats
from distier.plans.recovery.epochs import check_shape
from distier.stores.redis.cluster import ClusterExchange
from distier.stores.redis.topology import Topology

# A record and its places in the sorted sets take about this much besides the content.
RECORD_BYTES = 1500
SHARDS_A_MASTER = 16


def check_redis(config: Config, redis_url: Callable[[], str]) -> Findings:
    try:
        url = redis_url()
        server = Server(config, url)
        server.ask("PING")
    except DistierError as e:
        if _cannot_persist(e):
            yield Finding("redis", "fail", str(e), "make room on the server's disk, or see its log; reading goes on")
            return
        yield Finding("redis", "fail", str(e), _redis_advice(config, e))
        return
    if isinstance(server.exchange, ClusterExchange) and server.exchange.routes.topology:
        yield from _cluster(server, server.exchange, server.exchange.routes.topology)
    else:
        yield from check_server(server, url, _budget_bytes(server))
    yield _scripts(server)
    server.driver.close()


def _cannot_persist(error: DistierError) -> bool:
    return str(error.__cause__).startswith("MISCONF")


def _cluster(server: Server, exchange: ClusterExchange, topology: Topology) -> Findings:
    """The cluster as a whole, then each master; what is the same on all of them is told once."""
    masters, shards = topology.masters, _shards(server.config)
    serving = [sum(topology.owner(shard.slot) == master for shard in shards) for master in masters]
    yield _cluster_state(server, topology)
    yield _spread(server.config, serving)
    alone = [f"{host}:{port}" for host, port in masters if not topology.replicas_of((host, port))]
    if alone:
        found = f"without a replica: {', '.join(alone)}; where it dies, its shards are down until it is back"
        yield Finding("replicas", "warn", found, "give every master a replica")
    else:
        yield Finding("replicas", "ok", "every master has a replica")
    needed_bytes, each = _budget_bytes(server), list[list[Finding]]()
    for master, n in zip(masters, serving, strict=True):
        url = exchange.nodes.url_of(master)
        node = Server(server.config, url)
        try:
            found_here = [*check_server(node, url, needed_bytes * n // len(shards)), *_full_coverage(node)]
        except DistierError as e:
            found_here = [Finding("redis", "fail", f"{mask_url(url)}: {e}", "is this master up?")]
        finally:
            node.driver.close()
        here = f"{master[0]}:{master[1]}: "
        each.append([replace(f, found=here + f.found.removesuffix(f" at {mask_url(url)}")) for f in found_here])
    yield from _told_once(each)


def _cluster_state(server: Server, topology: Topology) -> Finding:
    nodes = f"{len(topology.masters)} masters, {len(topology.nodes) - len(topology.masters)} replicas"
    try:
        info = fields_of(server.ask("CLUSTER", "INFO"))
    except (ConfigError, Invalid):
        return Finding("cluster", "ok", f"{nodes}; CLUSTER INFO is forbidden, its state cannot be checked")
    state, served = info.get("cluster_state", "unknown"), int(info.get("cluster_slots_ok", 0))
    found = f"{nodes}; state {state}, {served} of 16384 slots are served"
    if state == "ok" and served == 16384:
        return Finding("cluster", "ok", found)
    return Finding("cluster", "fail", found, "`redis-cli --cluster check`: which master is missing?")


def _spread(config: Config, serving: Sequence[int]) -> Finding:
    """How the namespace's shards lie on the masters."""
    found = f"{config.shards} shard(s), by master: {', '.join(map(str, sorted(serving, reverse=True)))}"
    if config.shards >= len(serving) * 2 or len(serving) == 1:
        return Finding("shards", "ok", found)
    advice = (
        f"a shard is served by one master: with shards: {len(serving) * SHARDS_A_MASTER} (about {SHARDS_A_MASTER} a master) "
        f"the namespace has the memory and the speed of all {len(serving)}, and loses less with one. `shards` is fixed when "
        "a namespace is created: for this one it means a new namespace"
    )
    return Finding("shards", "warn", found, advice)


def _full_coverage(server: Server) -> Findings:
    """A setting that makes one lost master the loss of all."""
    try:
        reply = server.ask("CONFIG", "GET", "cluster-require-full-coverage")
    except (ConfigError, Invalid):  # managed services forbid CONFIG
        yield Finding("coverage", "ok", "cluster-require-full-coverage cannot be checked, CONFIG is forbidden")
        return
    words = next(iter(reply.items())) if isinstance(reply, dict) and reply else tuple(reply or ())
    if len(words) == 2 and words[1] == b"yes":
        found = "cluster-require-full-coverage is yes: while one slot has no master, all masters refuse everything"
        yield Finding("coverage", "warn", found, "set it to no: the other shards go on")
    else:
        yield Finding("coverage", "ok", "cluster-require-full-coverage is no: a lost master stops its own shards only")


def _told_once(each: Sequence[Sequence[Finding]]) -> Findings:
    """The findings of all masters; those that differ in nothing but the address as one."""
    said: dict[tuple[str, str, str, str], list[str]] = {}
    for finding in (f for findings in each for f in findings):
        address, _, found = finding.found.partition(": ")
        said.setdefault((finding.check, finding.status, found, finding.advice), []).append(address)
    for (check, status, found, advice), addresses in said.items():
        who = "all masters" if len(addresses) == len(each) > 1 else ", ".join(addresses)
        yield Finding(check, status, f"{who}: {found}", advice)  # type: ignore[arg-type]


def _redis_advice(config: Config, error: DistierError) -> str:
    if not isinstance(error, RedisUnavailable):
        return "see the message: the configuration has to change"
    if config.embedded:
        return f"see {config.home}/server.log; `distier up` starts the server"
    return "is the server up, and redis.url right? `distier config show` says where it comes from"


def _budget_bytes(server: Server) -> int:
    """What full tiers take: the stored limits where the namespace exists, else those of the configuration."""
    tiers = server.config.storage_tiers
    hot_bytes, warm_bytes, modules = tiers.hot.max_bytes, tiers.warm.max_bytes, tiers.warm.max_modules
    try:
        stats = server.driver.run(read_stats(bare_space(server.config), {}))
    except DistierError:  # `scripts` below tells it
        return hot_bytes + warm_bytes + modules * RECORD_BYTES
    hot_bytes, warm_bytes = stats.hot.max_bytes or hot_bytes, stats.warm.max_bytes or warm_bytes
    return hot_bytes + warm_bytes + (stats.count or modules) * RECORD_BYTES


def _scripts(server: Server) -> Finding:
    """Runs a script that only looks: that scripts are allowed and load, and that the namespace has our shape."""
    shape = f"namespace {server.config.namespace!r} with {counted_text(server.config.shards, 'shard')}"
    try:
        server.driver.run(check_shape(bare_space(server.config)))
        looks = [open_shard(shard, ()) for shard in _shards(server.config)]
        opened = [collect(reply) for reply in server.perform(Pipeline(looks))]
    except Invalid as e:
        advice = "scripts need EVALSHA and SCRIPT LOAD, on a server of version 7 or later" if _is_refusal(e) else ""
        return Finding("scripts", "fail", str(e), advice)
    except DistierError as e:
        return Finding("scripts", "fail", str(e), "the namespace is there, but not usable now")
    fresh = not any(isinstance(o, Opened) for o in opened)
    return Finding("scripts", "ok", f"run; {shape}: {'does not exist yet' if fresh else 'is as configured'}")


def _is_refusal(error: Invalid) -> bool:
    return error.__cause__ is not None


def _shards(config: Config) -> tuple[Shard, ...]:
    return tuple(Keyspace(config.namespace, config.shards).shards)
