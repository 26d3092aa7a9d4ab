"""The page for operators: what the tiers do, at a glance. `distier web` serves it, and `app` mounts it into an ASGI app.

Needs the extra `web` (starlette). Everything is rendered on the server, from the shapes in `distier.views`; htmx replaces
parts of a page, and nothing runs inline, so that the strictest content security policy holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distier.errors import ConfigError

if TYPE_CHECKING:
    from distier.client import AsyncStore, Store

    from .security import Guard

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""The names under which a page on this machine may be asked for."""


def app(
    store: Store | AsyncStore, *, write: bool = False, token: str | None = None, hosts: Sequence[str] = LOOPBACK
) -> Guard:
    """Return the page for operators as an ASGI app.

    It does not close the store. It reads events and totals while somebody looks, and keeps two hours of them in memory. A
    mounted app is not told when the server ends: call its `stop()` before you close the store.

    Args:
        store: The store whose namespace is shown.
        write: Offer to demote, promote, pin and unpin. Without it each POST is refused with 403.
        token: A secret for the link `/?token=...`, which works once and sets a cookie; without the cookie each request is
            refused with 401. None leaves that to the app into which this one is mounted.
        hosts: The names that the header `Host` may have, without a port; `*` allows all. Others are refused with 421, so
            that no web site can read the page through a name of its own that resolves to this machine.

    Raises:
        ConfigError: The extra `web` is not installed.
    """
    try:
        import starlette  # noqa: F401
    except ImportError as e:
        raise ConfigError("the page needs the extra `web`: pip install 'distier[web]'") from e
    from .pages import make_app
    from .security import Guard

    inner, live = make_app(store, write=write)
    return Guard(inner, live, write=write, token=token, hosts=hosts)


__all__ = ["LOOPBACK", "app"]
