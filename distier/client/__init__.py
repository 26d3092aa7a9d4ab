"""`Store` and `AsyncStore`."""

from __future__ import annotations

from distier.client.aio import AsyncStore
from distier.client.assemble import archive_of, make_space, redis_url, resolve
from distier.client.connect import connect, connect_async, connect_existing, connect_once
from distier.client.session import AsyncSession, Session
from distier.client.store import Store

__all__ = [
    "AsyncSession",
    "AsyncStore",
    "Session",
    "Store",
    "archive_of",
    "connect",
    "connect_async",
    "connect_existing",
    "connect_once",
    "make_space",
    "redis_url",
    "resolve",
]
