"""Commands that move modules and run processes: promote, demote, pin, unpin, flush, worker, up, down, demo."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distier.errors import Conflict, DistierError, Full, Invalid
from distier.views import view

from . import exits, output
from .modules import Glob, Prefix, SomeIds, Zero
from .session import Chosen, Session, duration_ms, session_of

if TYPE_CHECKING:
    from distier.client import Store
    from distier.config import Config
    from distier.domain.module import Moved, Placement
    from distier.worker import Report, Worker


def register(app: typer.Typer) -> None:
    for function in (promote, demote, pin, unpin, flush, worker, up, down, demo):
        app.command(function.__name__)(function)


# -- moves --------------------------------------------------------------------------------------------------------


def promote(
    context: typer.Context, ids: SomeIds = None, prefix: Prefix = None, glob: Glob = None, zero: Zero = False
) -> None:
    """Move modules to the hot tier."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        _print_moves(session, store.promote_many(chosen.ids(store)))
    session.end()


def demote(
    context: typer.Context,
    ids: SomeIds = None,
    to: Annotated[Literal["warm", "cold"] | None, typer.Option("--to", help="Target tier [default: the next one].")] = (
        None
    ),
    prefix: Prefix = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Move modules down to the next tier, or to the tier given by --to."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        _print_moves(session, store.demote_many(chosen.ids(store), to=to))
    session.end()


def _print_moves(session: Session, results: list[Moved | DistierError]) -> None:
    for result in results:
        if isinstance(result, DistierError):
            session.failed(result)
            continue
        session.print_result(view(result), f"{output.shown(result.id)}: {result.tier}{_why(result)}")
        if not result.moved and result.reason != "already":
            session.failed(_not_moved(result))


def _not_moved(result: Moved) -> DistierError:
    if result.reason == "pinned":
        return Pinned(f"module {result.id!r} stays {result.tier}: it is pinned; run `distier unpin ID` first")
    kind = Full if result.reason in ("no room", "too large for hot") else Conflict
    return kind(f"module {result.id!r} stays {result.tier}: {result.reason}")


class Pinned(Conflict):
    """The module is pinned, so it does not move down."""


def _why(result: Moved) -> str:
    return f" ({result.reason})" if result.reason else ""


def pin(
    context: typer.Context,
    ids: SomeIds = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="Duration of the pin: 90s, 15m, 24h.")] = ("1h"),
    prefix: Prefix = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Move modules to the hot tier and keep them there for --ttl."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    ttl_s = duration_ms(ttl) / 1000
    with session.store(existing=True) as store:

        def one(id: str) -> None:
            until_ms = store.pin(id, ttl_s)
            placement = store.where(id)
            tier = placement.tier if placement else None
            text = f"{output.shown(id)}: {'' if tier == 'hot' else f'{tier}, '}pinned until {output.moment(until_ms)}"
            session.print_result({"id": id, "pinned_until_ms": until_ms, "tier": tier}, text)
            if placement and placement.tier != "hot":
                session.failed(Full(_not_hot(store, placement)))

        session.each(chosen.ids(store), one)
    session.end()


def _not_hot(store: Store, placement: Placement) -> str:
    """Return why a pinned module is not hot. This is an error, because the user asked for a hot module."""
    hot = store.space.config.storage_tiers.hot
    large = placement.tokens > hot.max_size or placement.size_bytes > hot.max_bytes
    why = "too large for hot" if large else "no room in hot"
    return f"module {placement.id!r} stays {placement.tier}: {why}; the pin takes effect once the module is hot"


def unpin(
    context: typer.Context, ids: SomeIds = None, prefix: Prefix = None, glob: Glob = None, zero: Zero = False
) -> None:
    """Remove the pins of modules."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        session.each(chosen.ids(store), store.unpin)
    session.end()


def flush(context: typer.Context) -> None:
    """Archive all dirty modules now."""
    session = session_of(context)
    with session.store(existing=True) as store:  # a namespace that is misspelt is not made by this
        n = store.archive_now()
    session.print_result({"archived": n}, f"{n} archived")


# -- the worker -----------------------------------------------------------------------------------------------------


def worker(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Run one round over the shards that no other worker leases, then exit.")
    ] = False,
    health: Annotated[
        str | None,
        typer.Option(
            "--health", metavar="HOST:PORT", help="Serve /healthz, /readyz and /metrics here (overrides worker.health)."
        ),
    ] = None,
) -> None:
    """Maintain the namespace: archive, demote, keep headroom and sweep.

    Any number of workers divide the shards among themselves. SIGTERM or Ctrl-C finishes the current step; a second
    signal exits at once.
    """
    import logging

    from distier.worker import Worker
    from distier.worker.health import HealthServer

    session = session_of(context)
    if not session.verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    overrides: dict[str, Any] = {"worker": {"health": health}} if health else {}
    with session.store(**overrides) as store:
        service = Worker(store)
        address = store.space.config.worker.health
        if once:
            good = service.run_once()
        else:
            served = HealthServer(address, service) if address else None
            where = f", health at http://{served.address}/healthz" if served else ""
            output.say(
                f"distier: working on namespace {store.space.namespace!r}{where}; press Ctrl-C or send SIGTERM to stop"
            )
            good = _until_signal(service)
            if served:
                served.close()
    session.print_result(_report_row(service.report), _report_text(service.report))
    if not good:
        raise typer.Exit(exits.FAILED)


def _until_signal(service: Worker) -> bool:
    """Run rounds in a thread until a signal arrives. Returns True; an error in the thread is raised here.

    The main thread waits for the signals instead of handling them. A handler would interrupt the main thread's own
    wait, and setting an event there may deadlock.
    """
    import threading

    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before the thread starts: it inherits the mask
    crashed: list[BaseException] = []

    def rounds() -> None:
        try:
            service.run()
        except BaseException as e:
            crashed.append(e)
            os.kill(os.getpid(), signal.SIGTERM)  # wakes the main thread

    thread = threading.Thread(target=rounds, name="distier-worker", daemon=True)
    thread.start()
    signal.sigwait(ends)
    for end in ends:  # a second signal ends the process at once
        signal.signal(end, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    service.stop_in(thread)
    if crashed:
        raise crashed[0]
    return True


def _report_row(report: Report) -> dict[str, Any]:
    counts = {"rounds": report.rounds, "failures": report.failures, "last_failure": report.last_failure}
    return counts | {"did": report.did}


def _report_text(report: Report) -> str:
    did = ", ".join(f"{name} {n}" for name, n in report.did.items() if n) or "nothing to do"
    failed = (
        f"; {output.counted(report.failures, 'failure')}, the last: {report.last_failure}" if report.failures else ""
    )
    return f"{output.counted(report.rounds, 'round')}: {did}{failed}"


# -- the embedded server ----------------------------------------------------------------------------------------------


def up(
    context: typer.Context,
    maxmemory: Annotated[
        str | None,
        typer.Option("--maxmemory", metavar="SIZE", help="Memory limit of a server that this command starts."),
    ] = None,
) -> None:
    """Start the embedded server if necessary, and print its URL."""
    from distier.config import parse_size_bytes
    from distier.embedded import Home, ensure_server

    session = session_of(context)
    config = _embedded(session)
    try:
        limit_bytes = None if maxmemory is None else parse_size_bytes(maxmemory)
    except ValueError as e:
        raise typer.BadParameter(f"--maxmemory {maxmemory!r}: {e}") from None
    running = ensure_server(Home(config.home), maxmemory_bytes=limit_bytes)
    output.say(f"{running.server} {'started' if running.started else 'is running'} in {config.home}, pid {running.pid}")
    data = {"url": running.url, "pid": running.pid, "server": running.server}
    session.print_result(data | {"started": running.started, "home": str(config.home)}, running.url)


def down(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Stop even if the disk is full, which loses the latest writes.")
    ] = False,
) -> None:
    """Stop the embedded server. Its data is kept."""
    from distier.embedded import Home, stop_server

    session = session_of(context)
    home = _embedded(session).home
    stopped = stop_server(Home(home), anyway=force)
    text = f"stopped the server in {home}" if stopped else f"no server was running in {home}"
    if session.json:
        output.emit({"stopped": stopped, "home": str(home)})
    else:
        output.say(text)


def _embedded(session: Session) -> Config:
    config = session.config()
    if not config.embedded:
        where = config.sources()["redis.url"]
        raise Invalid(f"redis.url is configured ({where}): `up` and `down` apply only to the embedded server")
    return config


# -- the demo -----------------------------------------------------------------------------------------------------------


def demo(
    context: typer.Context,
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="How long the agents work.")] = 15.0,
    agents: Annotated[int, typer.Option("--agents", min=1, max=64, help="Number of agent processes.")] = 4,
    modules: Annotated[int, typer.Option("--modules", min=10, help="Maximum number of modules.")] = 700,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the access pattern.")] = 1,
    details: Annotated[bool, typer.Option("--details", help="Print all measurements before the report.")] = False,
) -> None:
    """Run agents under memory pressure, then check every byte.

    The agents share the sources of Python's standard library as modules. The demo starts a private server in a temporary
    directory, or in --home, which must be new and is kept.
    """
    session = session_of(context)
    if session.url or session.config_file:
        raise typer.BadParameter("the demo starts its own server: --url and --config do not apply; use --home")
    output.say("distier demo: starting")  # at once; the imports alone take half a second
    from . import resume_gc
    from .demo import run_demo

    resume_gc()
    from distier.demo import Settings

    settings = Settings(seconds, agents, modules, seed, session.home)
    if not run_demo(settings, as_json=session.json, details=details):
        raise typer.Exit(exits.FAILED)
