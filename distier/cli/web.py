"""The command that serves the page for operators."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distier.errors import ConfigError

from . import output
from .session import session_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

SHUTDOWN_S = 1
"""How long open streams of moves may delay the end. They have no end of their own."""


def register(app: typer.Typer) -> None:
    app.command("web")(web)


def web(
    context: typer.Context,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 selects a free one.")] = 8080,
    write: Annotated[bool, typer.Option("--write", help="Offer to demote, promote, pin and unpin modules.")] = False,
    token: Annotated[
        bool, typer.Option("--token/--no-token", help="Ask for the token of the link (--no-token: only on loopback).")
    ] = True,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="Name under which the page may be asked for; can be repeated."
        ),
    ] = None,
) -> None:
    """Serve a page that shows tiers, moves, modules and the fleet.

    Prints a link that works once and signs a browser in for 12 hours. The server uses plain HTTP, and everybody who has the
    link can read the modules: for other hosts, put a proxy with TLS before it. Needs the extra `web`.
    """
    import secrets

    from distier.web import LOOPBACK, app

    serve = _server()
    loopback = host in ("127.0.0.1", "::1", "localhost")
    if not token and not loopback:
        raise typer.BadParameter(
            "--no-token needs a loopback --host: without it everybody in the network could read modules"
        )
    secret = secrets.token_urlsafe(24) if token else None
    session = session_of(context)
    with session.store(existing=True) if write else session.look() as store, listen(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        mine = () if loopback or host in ("0.0.0.0", "::") else (name,)  # noqa: S104 - it is compared, not listened at
        page = app(store, write=write, token=secret, hosts=[*LOOPBACK, *mine, *(allow_host or ())])
        link = f"http://{name}:{listener.getsockname()[1]}/" + (f"?token={secret}" if secret else "")
        session.print_result({"url": link, "namespace": store.space.namespace, "write": write}, link)
        output.flush()
        if not loopback:
            output.say("distier: this is plain HTTP: others in the network can read what the page shows")
        output.say("distier: serving until Ctrl-C" + ("; the link works once" if secret else ""))
        serve(page, listener)


def _server() -> Any:
    """Return the function that serves an app at a socket. Raises `ConfigError` without the extra `web`."""
    try:
        import uvicorn
    except ImportError as e:
        raise ConfigError("the page needs the extra `web`: pip install 'distier[web]'") from e

    def serve(page: Any, listener: socket.socket) -> None:
        config = uvicorn.Config(
            page, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )  # fmt: skip

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                page.end_streams()  # else the server waits for them, and then cuts them off
                super().handle_exit(sig, frame)

        Server(config).run(sockets=[listener])

    return serve


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises `ConfigError`."""
    try:
        found: Sequence[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as e:
        raise ConfigError(
            f"--port: cannot listen at {host}:{port}: {e.strerror or e}; --port 0 selects a free port"
        ) from e
