"""All checks of `distier doctor` in order. They yield findings, which the command line prints.

The services are passed as functions, because a server that cannot be started or a bucket that cannot be opened is a
finding here and must not end the checks. The checks use no command that managed services forbid, except where noted:
`INFO` reports nearly everything that `CONFIG GET` does. A fact that cannot be read is reported as unknown, which is no
failure.
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
    """Yield the findings of each check as soon as it is done.

    Args:
        config: The configuration to check.
        redis_url: Returns the URL of Redis, and starts an embedded server if necessary.
        archive: Opens the archive.
        make_space: Makes the space of a namespace, with its token counter.
    """
    yield from check_redis(config, redis_url)
    yield from check_the_archive(config, redis_url, archive)
    yield from _disk(config)
    yield _counter(config, make_space)


def _disk(config: Config) -> Findings:
    """Check this node's disk if it keeps copies."""
    try:
        local = open_local(config)
    except ConfigError as e:
        yield Finding("disk", "fail", str(e), "fix the configuration: until then no store opens with it")
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
        return Finding("tokens", "ok", "counted exactly with o200k")
    return Finding("tokens", "ok", f"counted with {name}; `pip install distier[tokens]` counts exactly")
