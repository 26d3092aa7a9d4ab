"""The command that serves modules and skills over the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from distier.errors import ConfigError

from . import output
from .session import Session, session_of
from .web import listen

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def register(app: typer.Typer) -> None:
    app.command("mcp")(mcp)


def mcp(
    context: typer.Context,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="HOST:PORT",
            help="Serve HTTP there instead of stdio; port 0 selects a free one.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="DISTIER_MCP_TOKEN",
            help="Bearer token of each HTTP request.",
            show_envvar=True,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="Name under which the server may be asked for; can be repeated."
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer no tools that write or delete.")] = False,
) -> None:
    """Serve the namespace to agents over MCP: tools, resources, prompts and skills.

    Over stdio for one client, which starts this command; stdout then belongs to the protocol. HTTP is plain: for other hosts,
    put a proxy with TLS before it. Needs the extra `mcp`.
    """
    import asyncio

    session = session_of(context)
    _need_extra()
    if http is None:
        if token is not None or allow_host:
            raise typer.BadParameter("--token and --allow-host need --http")
        asyncio.run(_stdio(session, write=not read_only))
        return
    host, _, port = http.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter(f"--http {http!r} must be HOST:PORT, such as 127.0.0.1:8090")
    if token == "":
        raise typer.BadParameter("--token is empty: is the variable that it comes from not set?")
    bare = host.strip("[]")
    if token is None and bare not in ("127.0.0.1", "localhost", "::1"):
        raise typer.BadParameter(
            "another --http host than loopback needs --token: everybody in the network could write"
        )
    hosts = [f"{name}:*" for name in (*LOOPBACK, host, *(allow_host or ()))] + list(allow_host or ())
    with listen(bare, int(port)) as listener:
        base = f"http://{host}:{listener.getsockname()[1]}"
        session.print_result({"url": f"{base}/mcp", "token": token is not None}, f"{base}/mcp")
        output.flush()
        asyncio.run(_http(session, listener, base, hosts, token, write=not read_only))


def _need_extra() -> None:
    try:
        import mcp.server.lowlevel  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as e:
        raise ConfigError("the MCP server needs the extra `mcp`: pip install 'distier[mcp]'") from e


async def _stdio(session: Session, *, write: bool) -> None:
    from distier.client import connect_async
    from distier.mcp import make_server
    from distier.mcp.serve import serve_stdio

    async with await connect_async(session.config()) as store:
        await serve_stdio(make_server(store, write=write))


async def _http(
    session: Session, listener: Any, base: str, hosts: list[str], token: str | None, *, write: bool
) -> None:
    from distier.client import connect_async
    from distier.mcp import make_server
    from distier.mcp.serve import http_app, serve_http

    async with await connect_async(session.config()) as store:
        served = make_server(store, write=write)
        await serve_http(served, http_app(served, base, hosts=hosts, token=token), listener)
