"""Opening stores."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from distier.client.aio import AsyncStore
from distier.client.arguments import Source
from distier.client.assemble import archive_of, make_space, redis_url, resolve, reviver
from distier.client.store import Store
from distier.config import Config
from distier.domain.tokens import TokenCounter
from distier.stores.open import open_local
from distier.stores.redis.open import open_async_exchange, open_exchange
from distier.stores.threads import Helpers


def _counter(counter: TokenCounter | str | None, config: Config) -> tuple[TokenCounter | None, Config]:
    return (None, config.with_overrides(counter=counter)) if isinstance(counter, str) else (counter, config)


def connect(source: Source = None, *, counter: TokenCounter | str | None = None, **overrides: Any) -> Store:
    """Open a namespace and answer its `Store`.

    `source`: see `resolve`. With no Redis configured, a private embedded server is started or attached to.
    `overrides` are settings by name (`namespace="team"`, `storage_tiers__hot__max_size=20000`). `counter` is the name of a
    token counter, or one of your own. Raises `ConfigError`, `Unavailable`.
    """
    counter, config = _counter(counter, resolve(source, **overrides))
    return _unopened(config, counter).open()


def connect_existing(config: Config, *, reading: bool = False) -> Store:
    """`connect` to a namespace that exists: who mistypes its name does not make it. If only for `reading` what Redis knows,
    nothing is written and no disk of this node is opened. Raises `NotFound`."""
    return _unopened(config, reading=reading).open_existing(reading=reading)


def _unopened(config: Config, counter: TokenCounter | None = None, *, reading: bool = False) -> Store:
    url = redis_url(config)  # first: it makes the embedded home, owner-only
    archive, local = archive_of(config), None if reading else open_local(config)
    space = make_space(config, archive, counter, local)
    redis = open_exchange(config, url, space.process.forget, reviver(config))
    return Store(space, redis, archive, url=url, local=local)


async def connect_async(
    source: Source = None, *, counter: TokenCounter | str | None = None, **overrides: Any
) -> AsyncStore:
    """`connect` for asyncio: the same arguments, answers an `AsyncStore`."""
    counter, config = _counter(counter, resolve(source, **overrides))
    helper = Helpers(1)  # as `AsyncDriver.in_thread`, which is not there yet
    url = await asyncio.wrap_future(helper.submit(partial(redis_url, config)))
    archive, local = archive_of(config), await asyncio.wrap_future(helper.submit(partial(open_local, config)))
    space = make_space(config, archive, counter, local)
    redis = open_async_exchange(config, url, space.process.forget, reviver(config))
    return await AsyncStore(space, redis, archive, url=url, local=local).open()
