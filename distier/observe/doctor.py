"""What distier depends on, looked at one by one. Values out; the command line prints them.

The parts are given as functions: a server that cannot be started or a bucket that cannot be opened is a finding here,
not the end. Nothing is asked that a managed service forbids, except where noted: `INFO` tells nearly everything that
`CONFIG GET` would, and what cannot be learned is said to be unknown, which is not a failure.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from distier.config import Config, format_size, mask_url
from distier.domain.archived import id_bytes_left
from distier.domain.ids import MAX_SEGMENT_CHARS
from distier.domain.keys import Keyspace, Shard
from distier.drive.sync import SyncDriver
from distier.effects import Command, Effect, Pipeline, collect
from distier.errors import ConfigError, DistierError, Invalid, RedisUnavailable
from distier.lua import Opened, open_shard
from distier.plans.common.space import Space
from distier.plans.fleet.statistics import read_stats
from distier.plans.recovery.epochs import WrongArchive, check_shape
from distier.plans.recovery.identity import check_archive
from distier.stores.archive import Archive, probe
from distier.stores.cluster import ClusterExchange, Topology, open_exchange
from distier.stores.memory import MemoryArchive
from distier.stores.open import open_local

Status = Literal["ok", "warn", "fail"]

SKEW_WARN_MS = 1000
# A record and its places in the sorted sets take about this much besides the content.
RECORD_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it if that is not good."""

    check: str
    status: Status
    found: str
    advice: str = ""


Findings = Iterator[Finding]


def examine(
    config: Config,
    redis_url: Callable[[], str],
    archive: Callable[[], Archive],
    make_space: Callable[[Config, Archive], Space],
) -> Findings:
    """Each check in turn, as it is done. Raises nothing that a finding can say."""
    yield from _redis(config, redis_url)
    yield from _archive(config, redis_url, archive)
    yield from _disk(config)
    yield _counter(config, make_space)


def _disk(config: Config) -> Findings:
    """This node's disk, where it keeps copies."""
    try:
        local = open_local(config)
    except ConfigError as e:
        yield Finding("disk", "fail", str(e), "see the message: until then no store of this configuration opens")
        return
    if local is None:
        return
    sums, is_open = local.sums(), local.is_open
    local.close()
    if is_open:
        held = f"{_counted(sums.modules, 'module')}, {_size(sums.size_bytes)}"
        yield Finding("disk", "ok", f"node {sums.node}: {held} in {local.directory}")
    else:
        yield Finding(
            "disk", "warn", f"{local.directory} cannot be opened now: warm copies are not kept", "is the disk full?"
        )


# -- Redis ----------------------------------------------------------------------------------------------------------


class Server:
    """A Redis server that can be asked; keeps what `INFO` said."""

    def __init__(self, config: Config, url: str) -> None:
        self.config = config
        self.exchange = open_exchange(config, url, lambda: None)
        self.driver = SyncDriver(self.exchange, MemoryArchive(), deadline_s=config.deadline_ms / 1000)
        self.shard = Keyspace(config.namespace, config.shards).shards[0]
        self.info: dict[str, str] = {}

    def ask(self, *words: str | int) -> Any:
        """The reply. Raises `DistierError`; `ConfigError` or `Invalid` where the server does not allow it."""
        return self.perform(Command(self.shard, words, lambda reply: reply))

    def perform(self, effect: Effect[Any]) -> Any:
        return self.driver.perform(effect, time.monotonic() + self.driver.deadline_s)

    def number(self, name: str) -> int | None:
        text = self.info.get(name, "")
        return int(text) if text.isdigit() else None


def _redis(config: Config, redis_url: Callable[[], str]) -> Findings:
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
        yield from _server(server, url, _budget_bytes(server))
    yield _scripts(server)
    server.driver.close()


def _cannot_persist(error: DistierError) -> bool:
    return str(error.__cause__).startswith("MISCONF")


def _server(server: Server, url: str, needed_bytes: int) -> Findings:
    """One server, or one master of a cluster."""
    try:
        info: bytes = server.ask("INFO")
        server.info = _fields(info)
    except (ConfigError, Invalid) as e:
        yield Finding("redis", "warn", f"{mask_url(url)} answers, but not INFO: {e}", "allow INFO, or check by hand")
        found = (
            "scripts cannot ask INFO: after a restart or failover no new epoch begins, so nothing tells of lost writes"
        )
        yield Finding("fencing", "warn", found, "give the user `+info`")
    else:
        yield Finding("redis", "ok", f"{_name(server.info)} at {mask_url(url)}")
        yield _role(server)
        yield _policy(server)
        yield _memory(server, needed_bytes)
        yield from _persistence(server)
    yield _clock(server)


def _fields(text: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)


# -- a cluster ------------------------------------------------------------------------------------------------------

SHARDS_A_MASTER = 16


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
            found_here = [*_server(node, url, needed_bytes * n // len(shards)), *_full_coverage(node)]
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
        info = _fields(server.ask("CLUSTER", "INFO"))
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


def _name(info: dict[str, str]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '(unknown version)')}"


def _role(server: Server) -> Finding:
    role = server.info.get("role", "unknown")
    if role == "slave":
        return Finding("role", "fail", "this is a replica: it takes no writes", "let redis.url name the primary")
    return Finding("role", "ok", f"{role}, {server.info.get('connected_slaves', '0')} replicas")


def _policy(server: Server) -> Finding:
    policy = server.info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy is noeviction: Redis drops nothing by itself")
    wanted = "set maxmemory-policy noeviction: distier keeps its budgets itself"
    if policy.startswith("allkeys-"):
        return Finding("eviction", "fail", f"maxmemory-policy {policy} may drop the only copy of a module", wanted)
    if policy.startswith("volatile-"):
        found = f"maxmemory-policy {policy} may drop warm copies that are archived (no loss, slower reads) and leases"
        return Finding("eviction", "warn", found, wanted)
    return Finding("eviction", "warn", f"maxmemory-policy is {policy}: cannot be checked", wanted)


def _memory(server: Server, needed_bytes: int) -> Finding:
    """Whether the budgets fit into what the server may take."""
    limit, total = server.number("maxmemory"), server.number("total_system_memory")
    budgets = f"the budgets of namespace {server.config.namespace!r} need about {_size(needed_bytes)}"
    if limit:
        found = f"maxmemory is {_size(limit)}; {budgets}"
        advice = "raise maxmemory, or lower storage_tiers.hot.max_bytes and storage_tiers.warm.max_bytes"
        return Finding("memory", "ok", found) if needed_bytes <= limit else Finding("memory", "warn", found, advice)
    if limit is None or total is None:
        return Finding("memory", "warn", f"maxmemory cannot be checked; {budgets}", "compare it by hand")
    found = f"no maxmemory, the machine has {_size(total)}; {budgets}"
    if needed_bytes > total:
        return Finding("memory", "warn", found, "set maxmemory, and lower the budgets below it")
    return Finding("memory", "ok", found)


def _budget_bytes(server: Server) -> int:
    """What full tiers take: the stored limits where the namespace exists, else those of the configuration."""
    tiers = server.config.storage_tiers
    hot_bytes, warm_bytes, modules = tiers.hot.max_bytes, tiers.warm.max_bytes, tiers.warm.max_modules
    try:
        stats = server.driver.run(read_stats(_bare_space(server.config), {}))
    except DistierError:  # `scripts` below tells it
        return hot_bytes + warm_bytes + modules * RECORD_BYTES
    hot_bytes, warm_bytes = stats.hot.max_bytes or hot_bytes, stats.warm.max_bytes or warm_bytes
    return hot_bytes + warm_bytes + (stats.count or modules) * RECORD_BYTES


def _bare_space(config: Config) -> Space:
    from distier.domain.tokens import token_counter

    return Space(config, token_counter("estimate"), sidecar=False)


def _size(size_bytes: int) -> str:
    """Rounded to three digits or so: 2148864123 -> `2049 MiB`."""
    unit = 1024 ** (2 if size_bytes >= 1024**2 else 1 if size_bytes >= 1024 else 0)
    return re.sub(r"(?<=\d)(?=[A-Za-z])", " ", format_size(round(size_bytes / unit) * unit))


def _persistence(server: Server) -> Findings:
    aof = server.info.get("aof_enabled")
    if aof == "1":
        yield from _fsync(server)
        if server.info.get("aof_last_write_status", "ok") != "ok":
            yield Finding("disk", "fail", "the last write of the append-only file failed", "is its disk full?")
    elif aof == "0":
        found = "no append-only file: a crash of Redis loses what is not archived yet"
        after = server.config.storage_tiers.cold.archive_after
        yield Finding("persistence", "warn", f"{found} (up to {after / 1000:g} s of puts)", "set appendonly yes")
    else:
        yield Finding("persistence", "warn", "cannot be checked: INFO does not tell", "see the server's settings")


def _fsync(server: Server) -> Findings:
    try:
        reply = server.ask("CONFIG", "GET", "appendfsync")
    except (ConfigError, Invalid):  # managed services forbid CONFIG
        yield Finding("persistence", "ok", "append-only file on; appendfsync cannot be checked, CONFIG is forbidden")
        return
    words = next(iter(reply.items())) if isinstance(reply, dict) and reply else tuple(reply or ())
    fsync = words[1].decode() if len(words) == 2 else "unknown"
    lost = {"everysec": ", a power cut loses a second", "no": ", a power cut loses what the kernel holds"}.get(
        fsync, ""
    )
    yield Finding("persistence", "ok", f"append-only file on, appendfsync {fsync}{lost}")


def _scripts(server: Server) -> Finding:
    """Runs a script that only looks: that scripts are allowed and load, and that the namespace has our shape."""
    shape = f"namespace {server.config.namespace!r} with {_counted(server.config.shards, 'shard')}"
    try:
        server.driver.run(check_shape(_bare_space(server.config)))
        looks = [open_shard(shard, ()) for shard in _shards(server.config)]
        opened = [collect(reply) for reply in server.perform(Pipeline(looks))]
    except Invalid as e:
        advice = "scripts need EVALSHA and SCRIPT LOAD, on a server of version 7 or later" if _is_refusal(e) else ""
        return Finding("scripts", "fail", str(e), advice)
    except DistierError as e:
        return Finding("scripts", "fail", str(e), "the namespace is there, but not usable now")
    fresh = not any(isinstance(o, Opened) for o in opened)
    return Finding("scripts", "ok", f"run; {shape}: {'does not exist yet' if fresh else 'is as configured'}")


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def _is_refusal(error: Invalid) -> bool:
    return error.__cause__ is not None


def _shards(config: Config) -> tuple[Shard, ...]:
    return tuple(Keyspace(config.namespace, config.shards).shards)


def _clock(server: Server) -> Finding:
    try:
        before_ms = time.time() * 1000
        seconds, micros = server.ask("TIME")
        after_ms = time.time() * 1000
    except DistierError as e:
        return Finding("clock", "warn", f"cannot be checked: {e}")
    server_ms = int(seconds) * 1000 + int(micros) / 1000
    skew_ms = server_ms - (before_ms + after_ms) / 2
    found = f"the server's clock is {abs(skew_ms):.0f} ms {'ahead of' if skew_ms > 0 else 'behind'} this host's"
    if abs(skew_ms) > SKEW_WARN_MS:
        advice = "set both by NTP; distier goes by the server's clock, but S3 and people go by this one"
        return Finding("clock", "warn", found, advice)
    return Finding("clock", "ok", found)


# -- the archive, and this process ------------------------------------------------------------------------------------


def _archive(config: Config, redis_url: Callable[[], str], archive: Callable[[], Archive]) -> Findings:
    try:
        store = archive()
    except DistierError as e:
        yield Finding("archive", "fail", str(e))
        return
    try:
        began_s = time.monotonic()
        probe(store)
        took_ms = (time.monotonic() - began_s) * 1000
    except DistierError as e:
        advice = "check storage_tiers.cold; until it works, dirty modules stay in Redis and a full cache refuses puts"
        yield Finding("archive", "fail", str(e), advice)
    else:
        found = f"{store.name}: listed, wrote, read and deleted a probe in {took_ms:.0f} ms"
        yield Finding("archive", "ok", found)
        if not store.keeps_metadata:
            yield Finding("metadata", "ok", "the archive keeps no object metadata: written beside each object as JSON")
        yield from _sync(store)
        yield from _names(config, store)
        yield from _identity(config, redis_url, store)
    finally:
        store.close()


def _identity(config: Config, redis_url: Callable[[], str], store: Archive) -> Findings:
    """Whether this archive is the one that the namespace is in."""
    try:
        driver = SyncDriver(
            open_exchange(config, redis_url(), lambda: None), store, deadline_s=config.deadline_ms / 1000
        )
    except DistierError:  # told with Redis
        return
    try:
        named = driver.run(check_archive(_bare_space(config), name=False))
    except WrongArchive as e:
        yield Finding("identity", "fail", str(e), "until then nothing is opened, archived or swept with it")
    except DistierError as e:
        yield Finding("identity", "warn", f"cannot be checked: {e}")
    else:
        found = (
            "the archive is the one that the namespace is in" if named else "the archive gets a name when a store opens"
        )
        yield Finding("identity", "ok", found)
    finally:
        driver.redis.close()


def _sync(store: Archive) -> Findings:
    """Whether a directory's file system keeps what it has taken."""
    syncs = getattr(store, "syncs", None)
    if syncs is None:
        return
    try:
        kept = syncs()
    except DistierError as e:
        yield Finding("sync", "warn", f"cannot be checked: {e}")
        return
    if not kept:
        found = f"the file system of {store.name} cannot sync directories or files: after a power cut or a crash of the host, "
        found += "what was archived lately may be gone, also what a durable put has acknowledged"
        yield Finding("sync", "warn", found, "put the archive on another file system, or into S3")


def _names(config: Config, store: Archive) -> Findings:
    """Which ids can be archived; a put of any other is refused."""
    limits = store.limits
    if limits.take_all:
        return
    left_bytes = id_bytes_left(config.namespace, limits)
    found = f"ids of up to {left_bytes} bytes can be archived"
    if limits.name_bytes <= MAX_SEGMENT_CHARS:
        found += f", and no part of one (between two `/`) may have more than {limits.name_bytes}"
    if limits.refused:
        found += f"; none with {' '.join(limits.refused)}"
    if limits.drops_dots:
        found += "; none with a part that ends in a dot"
    advice = (
        "puts of other ids are refused; a shorter prefix in storage_tiers.cold.url, or another file system, takes more"
    )
    yield Finding("names", "warn" if left_bytes else "fail", found, advice)


def _counter(config: Config, make_space: Callable[[Config, Archive], Space]) -> Finding:
    try:
        name = make_space(config, MemoryArchive()).counter.name
    except DistierError as e:
        return Finding("tokens", "fail", str(e), "install distier[tokens], or set counter: estimate")
    if name == "o200k":
        return Finding("tokens", "ok", "counted exactly, by o200k")
    return Finding("tokens", "ok", f"counted by {name}; `pip install distier[tokens]` counts exactly")
