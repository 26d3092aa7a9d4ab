"""Ids for the shell's completion. It runs while somebody types, so it is quick, prints no error and starts no server."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import typer

from .session import needing_no_archive

TIME_S = 0.5
"""Time limit of the whole completion, in seconds; the ids found by then are shown. A SCAN of a million keys takes about a
second."""
IDS_MAX = 200


def complete_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Return ids that start with the typed text."""
    try:
        return _found(context, incomplete)
    except Exception:  # an error message would break the line that is being typed
        return []


def complete_ids_and_directories(context: typer.Context, incomplete: str) -> list[str]:
    """Return ids that start with the typed text, then directories: what `put` takes."""
    found = complete_ids(context, incomplete)
    with suppress(OSError):
        above = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
        found += sorted(
            f"{path}/" for path in above.expanduser().iterdir() if path.is_dir() and str(path).startswith(incomplete)
        )[:IDS_MAX]
    return found


def _found(context: typer.Context, prefix: str) -> list[str]:
    from distier.config import load_config
    from distier.domain.tokens import token_counter
    from distier.drive.sync import SyncDriver
    from distier.embedded import Home
    from distier.plans.common.namespace import Namespace
    from distier.plans.get.browse import next_ids
    from distier.stores.absent import AbsentArchive
    from distier.stores.redis.open import open_exchange

    given = (context.find_root().params or {}) if context.parent else {}
    config = needing_no_archive(
        partial(
            load_config, given.get("config"), redis__url=given.get("url"), home=given.get("home"),
            namespace=given.get("namespace"), deadline="500ms", near={"enabled": False},
        )
    )  # fmt: skip
    url = Home(config.home).url if config.redis.url is None else config.redis.url
    space = Namespace(config, token_counter("estimate"), sidecar=False)
    driver = SyncDriver(open_exchange(config, url, space.process.forget), AbsentArchive(), deadline_s=TIME_S)
    try:
        ids, _ = driver.run(next_ids(space, prefix, "", IDS_MAX), TIME_S)
        return [id for id in ids if id.isprintable()]
    except Exception:
        return []
    finally:
        driver.close()
