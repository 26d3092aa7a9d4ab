"""The archive: its identity, its names, what it promises."""

from __future__ import annotations

import time
from collections.abc import Callable

from distier.config import Config
from distier.doctor.finding import Finding, Findings, bare_space
from distier.domain.archived import id_bytes_left
from distier.domain.ids import MAX_SEGMENT_CHARS
from distier.drive.sync import SyncDriver
from distier.errors import DistierError
from distier.plans.recovery.epochs import WrongArchive
from distier.plans.recovery.identity import check_archive
from distier.stores.archive import Archive, probe
from distier.stores.redis.open import open_exchange


def check_the_archive(config: Config, redis_url: Callable[[], str], archive: Callable[[], Archive]) -> Findings:
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
        named = driver.run(check_archive(bare_space(config), name=False))
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
