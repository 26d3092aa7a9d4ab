"""Modules and skills over the Model Context Protocol (MCP): `distier mcp` serves them, and `make_server` makes the server.

Needs the extra `mcp` (the official SDK, version 2). The server speaks the revisions of the protocol that the SDK speaks, and
the extension for skills, `io.modelcontextprotocol/skills`
(https://github.com/modelcontextprotocol/ext-skills/blob/main/specification/stable/skills.mdx).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distier.errors import ConfigError

if TYPE_CHECKING:
    from distier.client import AsyncStore
    from distier.mcp.server import Served


def make_server(store: AsyncStore, *, write: bool = True) -> Served:
    """Return an MCP server of a store's namespace. It does not close the store.

    Args:
        store: The store, from `connect_async`. Its methods run on the event loop of the server, and never block it.
        write: Offer the tools that write and delete.

    Raises:
        ConfigError: The extra `mcp` is not installed.
    """
    try:
        import mcp.server.lowlevel  # noqa: F401
    except ImportError as e:
        raise ConfigError("the MCP server needs the extra `mcp`: pip install 'distier[mcp]'") from e
    from distier.mcp.server import Served

    return Served(store, write=write)


__all__ = ["make_server"]
