"""Checks of the archive: access, identity, possible names and durability."""

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
        advice = "check storage_tiers.cold; until it works, dirty modules stay in Redis and puts fail once the budgets are full"
        yield Finding("archive", "fail", str(e), advice)
    else:
        found = f"{store.name}: listed, wrote, read and deleted a probe in {took_ms:.0f} ms"
        yield Finding("archive", "ok", found)
        if not store.keeps_metadata:
            yield Finding(
                "metadata", "ok", "the archive keeps no object metadata: it is written next to each object as JSON"
            )
        yield from _sync(store)
        yield from _names(config, store)
        yield from _identity(config, redis_url, store)
    finally:
        store.close()


def _identity(config: Config, redis_url: Callable[[], str], store: Archive) -> Findings:
    """Check that this archive is the one that the namespace uses."""
    try:
        driver = SyncDriver(
            open_exchange(config, redis_url(), lambda: None), store, deadline_s=config.deadline_ms / 1000
        )
    except DistierError:  # the checks of Redis report it
        return
    try:
        named = driver.run(check_archive(bare_space(config), name=False))
    except WrongArchive as e:
        yield Finding(
            "identity", "fail", str(e), "until then distier opens, archives and sweeps nothing with this archive"
        )
    except DistierError as e:
        yield Finding("identity", "warn", f"cannot be checked: {e}")
    else:
        found = (
            "the archive belongs to this namespace" if named else "the archive gets its identity when a store opens it"
        )
        yield Finding("identity", "ok", found)
    finally:
        driver.redis.close()


def _sync(store: Archive) -> Findings:
    """Check that the file system of a directory archive can sync."""
    syncs = getattr(store, "syncs", None)
    if syncs is None:
        return
    try:
        kept = syncs()
    except DistierError as e:
        yield Finding("sync", "warn", f"cannot be checked: {e}")
        return
    if not kept:
        found = (
            f"the file system of {store.name} cannot sync directories or files: a power cut or a crash of the host may "
        )
        found += "lose recently archived versions, including those that a durable put acknowledged"
        yield Finding("sync", "warn", found, "move the archive to another file system, or to S3")


def _names(config: Config, store: Archive) -> Findings:
    """Report which ids can be archived. Puts of all others are refused."""
    limits = store.limits
    if limits.take_all:
        return
    left_bytes = id_bytes_left(config.namespace, limits)
    found = f"ids of up to {left_bytes} bytes can be archived"
    if limits.name_bytes <= MAX_SEGMENT_CHARS:
        found += f", with at most {limits.name_bytes} bytes in each part (between two `/`)"
    if limits.refused:
        found += f"; not with any of {' '.join(limits.refused)}"
    if limits.drops_dots:
        found += "; not with a part that ends in a dot"
    advice = "puts of other ids are refused; a shorter prefix in storage_tiers.cold.url or another file system allows more ids"
    yield Finding("names", "warn" if left_bytes else "fail", found, advice)
