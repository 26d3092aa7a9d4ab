"""Checks of Redis as a whole: the servers, the cluster and the scripts."""

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
from distier.lua.deploy import loaded
from distier.lua.library import LIBRARY
from distier.plans.fleet.statistics import read_stats
from distier.plans.recovery.epochs import check_shape
from distier.stores.redis.cluster import ClusterExchange
from distier.stores.redis.topology import Topology

# Approximate memory of a record and its entries in the sorted sets, without the content.
RECORD_BYTES = 1500
SHARDS_A_MASTER = 16


def check_redis(config: Config, redis_url: Callable[[], str]) -> Findings:
    try:
        url = redis_url()
        server = Server(config, url)
        server.ask("PING")
    except DistierError as e:
        if _cannot_persist(e):
            yield Finding("redis", "fail", str(e), "free space on the server's disk, or see its log; reads still work")
            return
        yield Finding("redis", "fail", str(e), _redis_advice(config, e))
        return
    if isinstance(server.exchange, ClusterExchange) and server.exchange.routes.topology:
        yield from _cluster(server, server.exchange, server.exchange.routes.topology)
    else:
        yield from check_server(server, url, _budget_bytes(server))
    yield _scripts(server)
    if (functions := _functions(server)) is not None:
        yield functions
    server.driver.close()


def _cannot_persist(error: DistierError) -> bool:
    return str(error.__cause__).startswith("MISCONF")


def _cluster(server: Server, exchange: ClusterExchange, topology: Topology) -> Findings:
    """Check the cluster as a whole, then each master. Findings that are equal on several masters are reported once."""
    masters, shards = topology.masters, _shards(server.config)
    serving = [sum(topology.owner(shard.slot) == master for shard in shards) for master in masters]
    yield _cluster_state(server, topology)
    yield _spread(server.config, serving)
    alone = [f"{host}:{port}" for host, port in masters if not topology.replicas_of((host, port))]
    if alone:
        found = f"without a replica: {', '.join(alone)}; if such a master fails, its shards are down until it is back"
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
            found_here = [Finding("redis", "fail", f"{mask_url(url)}: {e}", "is this master running?")]
        finally:
            node.driver.close()
        here = f"{master[0]}:{master[1]}: "
        each.append([replace(f, found=here + f.found.removesuffix(f" at {mask_url(url)}")) for f in found_here])
    yield from _merged(each)


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
    return Finding("cluster", "fail", found, "run `redis-cli --cluster check` to see which master is missing")


def _spread(config: Config, serving: Sequence[int]) -> Finding:
    """Check how the namespace's shards are distributed over the masters."""
    found = f"{config.shards} shard(s), by master: {', '.join(map(str, sorted(serving, reverse=True)))}"
    if config.shards >= len(serving) * 2 or len(serving) == 1:
        return Finding("shards", "ok", found)
    advice = (
        f"use shards: {len(serving) * SHARDS_A_MASTER} (about {SHARDS_A_MASTER} per master) in a new namespace, because "
        f"`shards` is fixed when a namespace is created. One master serves each shard: with enough shards, a namespace has "
        f"the memory and speed of all {len(serving)} masters, and the loss of one affects fewer modules"
    )
    return Finding("shards", "warn", found, advice)


def _full_coverage(server: Server) -> Findings:
    """Check a setting with which the loss of one master stops all of them."""
    required = server.setting("cluster-require-full-coverage")
    if required is None:
        yield Finding("coverage", "ok", "cluster-require-full-coverage cannot be checked: CONFIG is forbidden")
        return
    if required == "yes":
        found = "cluster-require-full-coverage is yes: while one slot has no master, all masters refuse all commands"
        yield Finding("coverage", "warn", found, "set it to no, so that the other shards keep working")
    else:
        yield Finding(
            "coverage", "ok", "cluster-require-full-coverage is no: the loss of a master stops only its own shards"
        )


def _merged(each: Sequence[Sequence[Finding]]) -> Findings:
    """Yield the findings of all masters, and merge those that differ only in the address."""
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for finding in (f for findings in each for f in findings):
        address, _, found = finding.found.partition(": ")
        merged.setdefault((finding.check, finding.status, found, finding.advice), []).append(address)
    for (check, status, found, advice), addresses in merged.items():
        where = "all masters" if len(addresses) == len(each) > 1 else ", ".join(addresses)
        yield Finding(check, status, f"{where}: {found}", advice)  # type: ignore[arg-type]


def _redis_advice(config: Config, error: DistierError) -> str:
    if not isinstance(error, RedisUnavailable):
        return "change the configuration as the message says"
    if config.embedded:
        return f"see {config.home}/server.log; `distier up` starts the server"
    return "is the server running, and is redis.url correct? `distier config show` shows its source"


def _budget_bytes(server: Server) -> int:
    """Return the memory of full tiers in bytes, by the stored budgets of the namespace or else the configured ones."""
    tiers = server.config.storage_tiers
    hot_bytes, warm_bytes, modules = tiers.hot.max_bytes, tiers.warm.max_bytes, tiers.warm.max_modules
    try:
        stats = server.driver.run(read_stats(bare_space(server.config), {}))
    except DistierError:  # `_scripts` reports it
        return hot_bytes + warm_bytes + modules * RECORD_BYTES
    hot_bytes, warm_bytes = stats.hot.max_bytes or hot_bytes, stats.warm.max_bytes or warm_bytes
    return hot_bytes + warm_bytes + (stats.count or modules) * RECORD_BYTES


def _scripts(server: Server) -> Finding:
    """Check that scripts are allowed and load, and that the namespace has the configured shape, with a read-only script."""
    shape = f"namespace {server.config.namespace!r} with {counted_text(server.config.shards, 'shard')}"
    try:
        server.driver.run(check_shape(bare_space(server.config)))
        looks = [open_shard(shard, ()) for shard in _shards(server.config)]
        opened = [collect(reply) for reply in server.perform(Pipeline(looks))]
    except Invalid as e:
        advice = "scripts need EVALSHA and SCRIPT LOAD, on a server of version 7 or later" if _is_refusal(e) else ""
        return Finding("scripts", "fail", str(e), advice)
    except DistierError as e:
        return Finding("scripts", "fail", str(e), "the namespace exists, but cannot be used now")
    fresh = not any(isinstance(o, Opened) for o in opened)
    return Finding("scripts", "ok", f"scripts run; {shape} {'does not exist yet' if fresh else 'is as configured'}")


def _functions(server: Server) -> Finding | None:
    """Return which library of functions for redis-cli the server has; None where this user may not ask."""
    try:
        number = server.driver.run(loaded(server.shard))
    except DistierError:
        return None
    if not number:
        return Finding(
            "functions", "ok", "the operators' functions are not loaded (`distier deploy-functions` loads them)"
        )
    if number < LIBRARY:
        advice = "load this version's with `distier deploy-functions`"
        return Finding("functions", "warn", f"the server has library {number} of the operators' functions", advice)
    return Finding("functions", "ok", f"the server has library {number} of the operators' functions")


def _is_refusal(error: Invalid) -> bool:
    return error.__cause__ is not None


def _shards(config: Config) -> tuple[Shard, ...]:
    return tuple(Keyspace(config.namespace, config.shards).shards)
