"""Opening stores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from distier.client.aio import AsyncStore
from distier.client.arguments import Source, check_hooks
from distier.client.assemble import archive_of, make_space, redis_url, resolve, reviver
from distier.client.store import Store
from distier.config import Config
from distier.domain.tokens import TokenCounter
from distier.observe.hooks import MetricsHook
from distier.stores.open import open_local
from distier.stores.redis.open import open_async_exchange, open_exchange
from distier.stores.threads import Helpers


def _counter(counter: TokenCounter | str | None, config: Config) -> tuple[TokenCounter | None, Config]:
    return (None, config.with_overrides(counter=counter)) if isinstance(counter, str) else (counter, config)


def connect(
    source: Source = None, *, counter: TokenCounter | str | None = None, metrics: Sequence[MetricsHook] = (),
    **overrides: Any,
) -> Store:  # fmt: skip
    """Open a namespace and return its `Store`.

    Without a Redis URL, `connect` starts a private embedded server, or attaches to the one that runs.

    Args:
        source: a Redis URL, the path of a YAML file, the home directory of an embedded server, a mapping or a `Config`.
            None reads the file that `DISTIER_CONFIG` names or ./distier.yaml, and the variables `DISTIER_*`.
        counter: the name of a token counter (`auto`, `o200k`, `estimate`), or a `TokenCounter` of your own.
        metrics: hooks that get what this store counts and measures, as `distier.observe.MetricsHook` describes.
        overrides: settings by name (`namespace="team"`, `storage_tiers__hot__max_size=20000`). They take precedence
            over `source`.

    Raises:
        ConfigError: a setting is unknown or impossible, or a server refused the credentials.
        Invalid: an element of `metrics` is no hook.
        Unavailable: Redis did not answer.
    """
    counter, config = _counter(counter, resolve(source, **overrides))
    store = _unopened(config, counter, metrics=check_hooks(metrics)).open()
    store._load_counter_soon()
    return store


def connect_once(config: Config) -> Store:
    """As `connect`, for a process that runs one command: the tables of the token counter are loaded only if it counts."""
    return _unopened(config).open()


def connect_existing(config: Config, *, reading: bool = False) -> Store:
    """Open a namespace that exists already, so that a mistyped name does not create one.

    Args:
        config: the configuration.
        reading: open the store only to read from Redis: nothing is written, and this node's disk is not opened.

    Raises:
        NotFound: the namespace does not exist.
        ConfigError: a setting is impossible, or a server refused the credentials.
        Unavailable: Redis did not answer.
    """
    return _unopened(config, reading=reading).open_existing(reading=reading)


def _unopened(
    config: Config, counter: TokenCounter | None = None, *, reading: bool = False, metrics: Sequence[MetricsHook] = ()
) -> Store:
    url = redis_url(config)  # first: it creates the embedded home with permissions for the owner only
    archive, local = archive_of(config), None if reading else open_local(config)
    space = make_space(config, archive, counter, local)
    redis = open_exchange(config, url, space.process.forget, reviver(config))
    return Store(space, redis, archive, url=url, local=local, metrics=metrics)


async def connect_async(
    source: Source = None, *, counter: TokenCounter | str | None = None, metrics: Sequence[MetricsHook] = (),
    **overrides: Any,
) -> AsyncStore:  # fmt: skip
    """As `connect`; returns an `AsyncStore`."""
    hooks = check_hooks(metrics)
    counter, config = _counter(counter, resolve(source, **overrides))
    helper = Helpers(1)  # does what `AsyncDriver.in_thread` does; the driver does not exist yet
    url = await asyncio.wrap_future(helper.submit(partial(redis_url, config)))
    archive, local = archive_of(config), await asyncio.wrap_future(helper.submit(partial(open_local, config)))
    space = make_space(config, archive, counter, local)
    redis = open_async_exchange(config, url, space.process.forget, reviver(config))
    store = await AsyncStore(space, redis, archive, url=url, local=local, metrics=hooks).open()
    store._load_counter_soon()
    return store
