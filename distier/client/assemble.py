"""Build the parts of a store from a configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distier.client.arguments import Source
from distier.config import NO_ARCHIVE, Config, check_directory, expanded, is_url, load_config
from distier.domain.tokens import TokenCounter, token_counter
from distier.embedded import Home, ensure_server, revive
from distier.plans.common.namespace import Namespace
from distier.stores.absent import AbsentArchive
from distier.stores.archive import Archive
from distier.stores.open import open_archive
from distier.stores.redis import Revive

if TYPE_CHECKING:
    from distier.stores.local import LocalStore


def resolve(source: Source = None, **overrides: Any) -> Config:
    """Return the configuration that `connect(source, **overrides)` uses.

    Args:
        source: a Redis URL, the path of a YAML file, the home directory of an embedded server, a mapping or a `Config`.
            None reads the file that `DISTIER_CONFIG` names or ./distier.yaml, and the variables `DISTIER_*`.
        overrides: settings by name, with `__` between the levels: `redis__url="redis://host"`.

    Raises:
        ConfigError: a setting is unknown or has an impossible value.
    """
    if isinstance(source, str) and is_url(source):
        return load_config(None, redis__url=source, **overrides)
    if isinstance(source, str | Path) and Path(source).suffix.lower() not in (".yaml", ".yml"):
        return load_config(None, home=expanded(check_directory(str(source))).absolute(), **overrides)
    return load_config(source, **overrides)


def redis_url(config: Config) -> str:
    """Return the URL of Redis; start the embedded server if the configuration names no URL. Raises `Unavailable`."""
    if config.redis.url is not None:
        return config.redis.url
    return ensure_server(Home(config.home)).url


def reviver(config: Config) -> Revive | None:
    """Return the function that starts the embedded server again; None for a Redis that somebody else runs."""
    return partial(revive, Home(config.home)) if config.embedded else None


def archive_of(config: Config) -> Archive:
    """Return the archive of the configuration. Raises `ConfigError`."""
    cold = config.storage_tiers.cold
    if cold.directory == NO_ARCHIVE:
        return AbsentArchive()
    if cold.url is None:
        return open_archive(directory=config.archive_directory)
    return open_archive(
        url=cold.url,
        endpoint_url=cold.endpoint_url,
        region=cold.region,
        access_key=cold.access_key,
        secret_key=cold.secret_key.get_secret_value() if cold.secret_key else None,
        session_token=cold.session_token.get_secret_value() if cold.session_token else None,
        addressing_style=cold.addressing_style,
        timeout_s=cold.timeout_ms / 1000,
        **cold.requests,
    )


def make_space(
    config: Config, archive: Archive, counter: TokenCounter | None = None, local: LocalStore | None = None
) -> Namespace:
    """Return what plans know: the configuration, the token counter, the archive's needs and limits, this node's name."""
    sidecar = {"always": True, "never": False, "auto": not archive.keeps_metadata}[config.storage_tiers.cold.sidecar]
    limits = None if archive.limits.take_all else archive.limits
    node = local.node if local else None
    return Namespace(config, counter or token_counter(config.counter), sidecar, node=node, archive_limits=limits)
