"""Checks of one server: version, role, memory, persistence and clock."""

from __future__ import annotations

import time
from typing import Any

from distier.config import Config, mask_url
from distier.doctor.finding import Finding, Findings, size_text
from distier.domain.keys import Keyspace
from distier.drive.sync import SyncDriver
from distier.effects import Command, Effect
from distier.errors import ConfigError, DistierError, Invalid
from distier.stores.memory import MemoryArchive
from distier.stores.redis.open import open_exchange

SKEW_WARN_MS = 1000


class Server:
    """A connection to a Redis server, and the fields of its `INFO` reply."""

    def __init__(self, config: Config, url: str) -> None:
        self.config = config
        self.exchange = open_exchange(config, url, lambda: None)
        self.driver = SyncDriver(self.exchange, MemoryArchive(), deadline_s=config.deadline_ms / 1000)
        self.shard = Keyspace(config.namespace, config.shards).shards[0]
        self.info: dict[str, str] = {}

    def ask(self, *command: str | int) -> Any:
        """Send a command and return its reply.

        Raises:
            ConfigError: The server does not allow the command.
            Invalid: The server does not allow the command.
            DistierError: The command failed otherwise.
        """
        return self.perform(Command(self.shard, command, lambda reply: reply))

    def setting(self, name: str) -> str | None:
        """Return a setting of the server: empty if it has none of this name, `None` if the server forbids CONFIG.

        Raises:
            DistierError: The command failed otherwise.
        """
        try:
            reply = self.ask("CONFIG", "GET", name)
        except (ConfigError, Invalid):  # managed services forbid CONFIG
            return None
        pair = next(iter(reply.items())) if isinstance(reply, dict) and reply else tuple(reply or ())
        return pair[1].decode() if len(pair) == 2 else ""

    def perform(self, effect: Effect[Any]) -> Any:
        return self.driver.perform(effect, time.monotonic() + self.driver.deadline_s)

    def number(self, name: str) -> int | None:
        text = self.info.get(name, "")
        return int(text) if text.isdigit() else None


def check_server(server: Server, url: str, needed_bytes: int) -> Findings:
    """Check one server, or one master of a cluster."""
    try:
        info: bytes = server.ask("INFO")
        server.info = fields_of(info)
    except (ConfigError, Invalid) as e:
        yield Finding("redis", "warn", f"{mask_url(url)} replies, but not to INFO: {e}", "allow INFO, or check by hand")
        found = "scripts cannot run INFO: no new epoch begins after a restart or failover, so lost writes go unnoticed"
        yield Finding("fencing", "warn", found, "grant the user `+info`")
    else:
        yield Finding("redis", "ok", f"{_name(server.info)} at {mask_url(url)}")
        yield _role(server)
        yield _policy(server)
        yield _memory(server, needed_bytes)
        yield from _persistence(server)
        yield from _backlog(server)
    yield from _undeclared_keys(server)
    yield _clock(server)


def fields_of(text: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)


def _name(info: dict[str, str]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '(unknown version)')}"


def _role(server: Server) -> Finding:
    role = server.info.get("role", "unknown")
    if role == "slave":
        return Finding("role", "fail", "this is a replica: it accepts no writes", "set redis.url to the primary")
    return Finding("role", "ok", f"{role}, {server.info.get('connected_slaves', '0')} replicas")


def _policy(server: Server) -> Finding:
    policy = server.info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy is noeviction: Redis evicts no keys")
    wanted = "set maxmemory-policy noeviction: distier enforces its own budgets"
    if policy.startswith("allkeys-"):
        return Finding("eviction", "fail", f"maxmemory-policy {policy} may evict the only copy of a module", wanted)
    if policy.startswith("volatile-"):
        found = f"maxmemory-policy {policy} may evict leases and archived warm copies (slower reads, no loss)"
        return Finding("eviction", "warn", found, wanted)
    return Finding("eviction", "warn", f"maxmemory-policy is {policy}: cannot be checked", wanted)


def _memory(server: Server, needed_bytes: int) -> Finding:
    """Check that the budgets fit into the server's memory."""
    limit, total = server.number("maxmemory"), server.number("total_system_memory")
    budgets = f"the budgets of namespace {server.config.namespace!r} need about {size_text(needed_bytes)}"
    if limit:
        found = f"maxmemory is {size_text(limit)}; {budgets}"
        advice = "raise maxmemory, or lower storage_tiers.hot.max_bytes and storage_tiers.warm.max_bytes"
        return Finding("memory", "ok", found) if needed_bytes <= limit else Finding("memory", "warn", found, advice)
    if limit is None or total is None:
        return Finding("memory", "warn", f"maxmemory cannot be checked; {budgets}", "compare them by hand")
    found = f"maxmemory is not set, the machine has {size_text(total)}; {budgets}"
    if needed_bytes > total:
        return Finding("memory", "warn", found, "set maxmemory, and lower the budgets below it")
    return Finding("memory", "ok", found)


def _persistence(server: Server) -> Findings:
    aof = server.info.get("aof_enabled")
    if aof == "1":
        yield from _fsync(server)
        if server.info.get("aof_last_write_status", "ok") != "ok":
            yield Finding("disk", "fail", "the last write to the append-only file failed", "is the disk full?")
    elif aof == "0":
        found = "no append-only file: a crash of Redis loses all dirty modules"
        after = server.config.storage_tiers.cold.archive_after
        yield Finding("persistence", "warn", f"{found} (up to {after / 1000:g} s of puts)", "set appendonly yes")
    else:
        yield Finding(
            "persistence", "warn", "cannot be checked: INFO does not report it", "check the server's settings"
        )


def _fsync(server: Server) -> Findings:
    fsync = server.setting("appendfsync")
    if fsync is None:
        yield Finding("persistence", "ok", "append-only file on; appendfsync cannot be checked: CONFIG is forbidden")
        return
    lost = {
        "everysec": ", a power cut loses up to a second",
        "no": ", a power cut loses what the kernel has not written",
    }.get(fsync, "")
    yield Finding("persistence", "ok", f"append-only file on, appendfsync {fsync or 'unknown'}{lost}")


def _backlog(server: Server) -> Findings:
    """Check a setting of a primary with replicas that makes an epoch without a loss of data."""
    ttl_s = server.setting("repl-backlog-ttl") if server.number("connected_slaves") else None
    if ttl_s not in (None, "", "0"):
        found = (
            f"repl-backlog-ttl is {ttl_s}: a new epoch begins once all replicas have been away for that many seconds"
        )
        yield Finding(
            "backlog",
            "warn",
            found,
            "set repl-backlog-ttl 0: nothing is lost then, and records are compared for nothing",
        )


def _undeclared_keys(server: Server) -> Findings:
    """Check that scripts may use keys in the slot of those that they declare. Some compatible services refuse that.

    The masters of a cluster are not checked: this key belongs to one of them.
    """
    if server.info.get("cluster_enabled") == "1":
        return
    try:
        sha = server.ask("SCRIPT", "LOAD", "return redis.call('EXISTS', ARGV[1])")
        server.ask("EVALSHA", sha.decode() if isinstance(sha, bytes) else sha, 1, server.shard.epoch, server.shard.ids)
    except (ConfigError, Invalid) as e:
        advice = "use Redis or Valkey: distier's scripts use the keys of the modules that they evict, and of the index of ids"
        yield Finding("scripts", "fail", f"scripts may not use keys that they do not declare: {e}", advice)
    except DistierError as e:
        yield Finding("scripts", "warn", f"cannot be checked: {e}")


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
        advice = "synchronize both with NTP; distier uses the server's clock, but S3 and people use this host's"
        return Finding("clock", "warn", found, advice)
    return Finding("clock", "ok", found)
