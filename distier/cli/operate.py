"""Commands that make something happen: promote, demote, pin, unpin, flush, worker, up, down, demo."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distier.errors import Conflict, DistierError, Full, Invalid

from . import exits, output
from .modules import Glob, Prefix, SomeIds, Zero
from .session import Chosen, Session, session_of

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
    """Make modules hot."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        _tell_moves(session, store.promote_many(chosen.ids(store)))
    session.end()


def demote(
    context: typer.Context,
    ids: SomeIds = None,
    to: Annotated[Literal["warm", "cold"] | None, typer.Option("--to", help="How far down; one step if not given.")] = (
        None
    ),
    prefix: Prefix = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Take modules one tier down, or down to a tier."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        _tell_moves(session, store.demote_many(chosen.ids(store), to=to))
    session.end()


def _tell_moves(session: Session, results: list[Moved | DistierError]) -> None:
    for result in results:
        if isinstance(result, DistierError):
            session.failed(result)
            continue
        session.tell(output.row(result), f"{output.shown(result.id)}: {result.tier}{_why(result)}")
        if not result.moved and result.reason != "already":
            session.failed(_stays(result))


def _stays(result: Moved) -> DistierError:
    if result.reason == "pinned":
        return Pinned(f"module {result.id!r} stays {result.tier}: it is pinned; `distier unpin ID` ends that")
    kind = Full if result.reason in ("no room", "too large for hot") else Conflict
    return kind(f"module {result.id!r} stays {result.tier}: {result.reason}")


class Pinned(Conflict):
    """The module does not move down while it is pinned."""


def _why(result: Moved) -> str:
    return f" ({result.reason})" if result.reason else ""


def pin(
    context: typer.Context,
    ids: SomeIds = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long: 90s, 15m, 24h. A pin always ends.")] = (
        "1h"
    ),
    prefix: Prefix = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Make modules hot and keep them there for a time."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    ttl_s = _duration_ms(ttl) / 1000
    with session.store(existing=True) as store:

        def one(id: str) -> None:
            until_ms = store.pin(id, ttl_s)
            placement = store.where(id)
            tier = placement.tier if placement else None
            words = f"{output.shown(id)}: {'' if tier == 'hot' else f'{tier}, '}pinned until {output.moment(until_ms)}"
            session.tell({"id": id, "pinned_until_ms": until_ms, "tier": tier}, words)
            if placement and placement.tier != "hot":
                session.failed(Full(_not_hot(store, placement)))

        session.each(chosen.ids(store), one)
    session.end()


def _not_hot(store: Store, placement: Placement) -> str:
    """Why a pinned module is not hot: a pin keeps it where it is, which for its readers is not what was asked for."""
    hot = store.space.config.storage_tiers.hot
    large = placement.tokens > hot.max_size or placement.size_bytes > hot.max_bytes
    why = "too large for hot" if large else "no room in hot"
    return f"module {placement.id!r} stays {placement.tier}: {why}; its pin holds, and begins to keep it hot once it gets there"


def _duration_ms(text: str) -> int:
    from distier.config import parse_duration_ms

    try:
        return parse_duration_ms(text)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r}: {e}") from None


def unpin(
    context: typer.Context, ids: SomeIds = None, prefix: Prefix = None, glob: Glob = None, zero: Zero = False
) -> None:
    """End pins."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        session.each(chosen.ids(store), store.unpin)
    session.end()


def flush(context: typer.Context) -> None:
    """Archive every version that is not in the archive yet, now."""
    session = session_of(context)
    with session.store() as store:
        n = store.archive_now()
    session.tell({"archived": n}, f"{n} archived")


# -- the worker -----------------------------------------------------------------------------------------------------


def worker(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One round over what no other worker has, then end.")] = False,
    health: Annotated[
        str | None,
        typer.Option(
            "--health", metavar="HOST:PORT", help="Serve /healthz, /readyz and /metrics there (worker.health)."
        ),
    ] = None,
) -> None:
    """Maintain the namespace: archive, demote, keep head-room, sweep; any number of workers share its shards. Ends with the
    step under way at SIGTERM or Ctrl-C, at once at a second one."""
    import logging

    from distier.worker import Worker
    from distier.worker.health import HealthServer

    session = session_of(context)
    if not session.verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    overrides: dict[str, Any] = {"worker": {"health": health}} if health else {}
    with session.store(**overrides) as store:
        works = Worker(store)
        address = store.space.config.worker.health
        if once:
            good = works.run_once()
        else:
            served = HealthServer(address, works) if address else None
            where = f", health at http://{served.address}/healthz" if served else ""
            output.say(f"distier: working on namespace {store.space.namespace!r}{where}; SIGTERM or Ctrl-C ends it")
            good = _until_signal(works)
            if served:
                served.close()
    session.tell(_report(works.report), _report_words(works.report))
    if not good:
        raise typer.Exit(exits.FAILED)


def _until_signal(works: Worker) -> bool:
    """Run rounds in a thread until a signal; True if the thread lived until then.

    The signals are waited for, not handled: a handler would run in the middle of the main thread's own waiting,
    where setting an event may deadlock.
    """
    import threading

    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before the thread starts: it inherits the mask
    crashed: list[BaseException] = []

    def rounds() -> None:
        try:
            works.run()
        except BaseException as e:
            crashed.append(e)
            os.kill(os.getpid(), signal.SIGTERM)  # wakes the main thread

    thread = threading.Thread(target=rounds, name="distier-worker", daemon=True)
    thread.start()
    signal.sigwait(ends)
    for end in ends:  # a second one ends it at once
        signal.signal(end, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    works.stop_in(thread)
    if crashed:
        raise crashed[0]
    return True


def _report(report: Report) -> dict[str, Any]:
    counts = {"rounds": report.rounds, "failures": report.failures, "last_failure": report.last_failure}
    return counts | {"did": report.did}


def _report_words(report: Report) -> str:
    did = ", ".join(f"{name} {n}" for name, n in report.did.items() if n) or "nothing to do"
    failed = (
        f"; {output.counted(report.failures, 'failure')}, the last: {report.last_failure}" if report.failures else ""
    )
    return f"{output.counted(report.rounds, 'round')}: {did}{failed}"


# -- the embedded server ----------------------------------------------------------------------------------------------


def up(
    context: typer.Context,
    maxmemory: Annotated[
        str | None, typer.Option("--maxmemory", metavar="SIZE", help="Of the server, if this starts it.")
    ] = None,
) -> None:
    """Start the embedded server, if it is not up; its URL on stdout."""
    from distier.config import parse_size_bytes
    from distier.embedded import Home, ensure_server

    session = session_of(context)
    config = _embedded(session)
    try:
        limit_bytes = None if maxmemory is None else parse_size_bytes(maxmemory)
    except ValueError as e:
        raise typer.BadParameter(f"--maxmemory {maxmemory!r}: {e}") from None
    running = ensure_server(Home(config.home), maxmemory_bytes=limit_bytes)
    output.say(f"{running.server} {'started' if running.started else 'is up'} in {config.home}, pid {running.pid}")
    data = {"url": running.url, "pid": running.pid, "server": running.server}
    session.tell(data | {"started": running.started, "home": str(config.home)}, running.url)


def down(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the disk is full, and what was written last would be lost.")
    ] = False,
) -> None:
    """Stop the embedded server. Its data stays."""
    from distier.embedded import Home, stop_server

    session = session_of(context)
    home = _embedded(session).home
    stopped = stop_server(Home(home), anyway=force)
    words = f"stopped the server in {home}" if stopped else f"no server was up in {home}"
    if session.json:
        output.emit({"stopped": stopped, "home": str(home)})
    else:
        output.say(words)


def _embedded(session: Session) -> Config:
    config = session.config()
    if not config.embedded:
        where = config.sources()["redis.url"]
        raise Invalid(f"redis.url is configured ({where}): `up` and `down` are for the embedded server")
    return config


# -- the demo -----------------------------------------------------------------------------------------------------------


def demo(
    context: typer.Context,
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="How long the agents work.")] = 15.0,
    agents: Annotated[int, typer.Option("--agents", min=1, max=64, help="Agent processes.")] = 4,
    modules: Annotated[int, typer.Option("--modules", min=10, help="At most so many modules.")] = 700,
    seed: Annotated[int, typer.Option("--seed", help="Of the access pattern.")] = 1,
    details: Annotated[bool, typer.Option("--details", help="All numbers, before the report.")] = False,
) -> None:
    """See it work: agents share the standard library's sources under memory pressure, then every byte is checked.

    Uses a private server in a temporary directory, or in --home if given (which must be new, and is kept).
    """
    session = session_of(context)
    if session.url or session.config_file:
        raise typer.BadParameter("the demo runs on a server of its own: only --home and --json go with it")
    output.say("distier demo: starting")  # at once; the imports alone take half a second
    from . import all_is_loaded
    from .demo import run_demo

    all_is_loaded()
    from distier.demo import Settings

    settings = Settings(seconds, agents, modules, seed, session.home)
    if not run_demo(settings, as_json=session.json, details=details):
        raise typer.Exit(exits.FAILED)
