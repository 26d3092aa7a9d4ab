"""What distier depends on, looked at one by one. Values out; the command line prints them.

The parts are given as functions: a server that cannot be started or a bucket that cannot be opened is a finding here,
not the end. Nothing is asked that a managed service forbids, except where noted: `INFO` tells nearly everything that
`CONFIG GET` would, and what cannot be learned is said to be unknown, which is not a failure.
"""

from __future__ import annotations

from collections.abc import Callable

from distier.config import Config
from distier.doctor.archive import check_the_archive
from distier.doctor.finding import Finding, Findings, counted_text, size_text
from distier.doctor.redis import check_redis
from distier.errors import ConfigError, DistierError
from distier.plans.common.namespace import Namespace
from distier.stores.archive import Archive
from distier.stores.memory import MemoryArchive
from distier.stores.open import open_local


def examine(
    config: Config,
    redis_url: Callable[[], str],
    archive: Callable[[], Archive],
    make_space: Callable[[Config, Archive], Namespace],
) -> Findings:
    """Each check in turn, as it is done. Raises nothing that a finding can say."""
    yield from check_redis(config, redis_url)
    yield from check_the_archive(config, redis_url, archive)
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
        held = f"{counted_text(sums.modules, 'module')}, {size_text(sums.size_bytes)}"
        yield Finding("disk", "ok", f"node {sums.node}: {held} in {local.directory}")
    else:
        yield Finding(
            "disk", "warn", f"{local.directory} cannot be opened now: warm copies are not kept", "is the disk full?"
        )


def _counter(config: Config, make_space: Callable[[Config, Archive], Namespace]) -> Finding:
    try:
        name = make_space(config, MemoryArchive()).counter.name
    except DistierError as e:
        return Finding("tokens", "fail", str(e), "install distier[tokens], or set counter: estimate")
    if name == "o200k":
        return Finding("tokens", "ok", "counted exactly, by o200k")
    return Finding("tokens", "ok", f"counted by {name}; `pip install distier[tokens]` counts exactly")
