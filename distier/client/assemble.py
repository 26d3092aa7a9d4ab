"""From a configuration to what a store is made of."""

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
    """The configuration that `connect(source, **overrides)` uses.

    `source` is a Redis URL, the path of a YAML file, a directory (an embedded server lives there), a mapping or a
    `Config`; None reads `DISTIER_CONFIG`, ./distier.yaml and `DISTIER_*`. Raises `ConfigError`.
    """
    if isinstance(source, str) and is_url(source):
        return load_config(None, redis__url=source, **overrides)
    if isinstance(source, str | Path) and Path(source).suffix.lower() not in (".yaml", ".yml"):
        return load_config(None, home=expanded(check_directory(str(source))).absolute(), **overrides)
    return load_config(source, **overrides)


def redis_url(config: Config) -> str:
    """Where Redis is; starts the embedded server if the configuration names none. Raises `Unavailable`."""
    if config.redis.url is not None:
        return config.redis.url
    return ensure_server(Home(config.home)).url


def reviver(config: Config) -> Revive | None:
    return partial(revive, Home(config.home)) if config.embedded else None


def archive_of(config: Config) -> Archive:
    """The archive that the configuration means. Raises `ConfigError`."""
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
    )


def make_space(
    config: Config, archive: Archive, counter: TokenCounter | None = None, local: LocalStore | None = None
) -> Namespace:
    """What plans know: the configuration, who counts tokens, whether the archive needs sidecars, this node's name."""
    sidecar = {"always": True, "never": False, "auto": not archive.keeps_metadata}[config.storage_tiers.cold.sidecar]
    limits = None if archive.limits.take_all else archive.limits
    node = local.node if local else None
    return Namespace(config, counter or token_counter(config.counter), sidecar, node=node, archive_limits=limits)
