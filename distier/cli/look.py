"""Commands that only read: stats, watch, doctor, config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distier.views import stats_view, view

from . import exits, output
from .session import session_of

if TYPE_CHECKING:
    from distier.doctor.finding import Finding
    from distier.domain.module import Event
    from distier.plans.fleet.statistics import Stats

settings = typer.Typer(rich_markup_mode=None, help="Show and check the configuration.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    for function in (stats, watch, doctor):
        app.command(function.__name__)(function)
    app.add_typer(settings, name="config")


def stats(context: typer.Context) -> None:
    """Show the contents and budgets of each tier."""
    session = session_of(context)
    with session.look() as store:
        found = store.stats()
        space = store.space
    if session.json:
        output.emit({"namespace": space.namespace, "shards": space.config.shards} | stats_view(found))
        return
    shards = f", {space.config.shards} shards" if space.config.shards > 1 else ""
    title = f"namespace {space.namespace}{shards}: {output.counted(found.count, 'module')}"
    columns = ("tier", ">modules", ">tokens", ">bytes", ">stored", ">ratio")
    print(title, "", *output.long_rows(columns, stats_rows(found), ()), sep="\n")
    if found.quotas:
        of_shards = ("shard", ">hot tokens", ">hot bytes", ">warm modules", ">warm stored")
        print("", *output.long_rows(of_shards, quota_rows(found), ()), sep="\n")
    print(f"\nnot archived yet: {_dirty(found)}")
    if found.reads.hit_ratio is not None:
        print(f"reads of all processes: {_reads(found)}")
    if found.warm.dictionary:
        print(
            f"warm copies are made with the dictionary {found.warm.dictionary}, unless storage_tiers.warm.dictionary is off"
        )
    if found.eviction.policy != "lru":
        print(f"eviction policy: {_eviction(found)}")
    for name, held in sorted(found.nodes.items()):
        mine = " (this node)" if name == found.node else ""
        modules = f"{output.number(held.modules)}/{output.counted(held.max_modules, 'module')}"
        print(f"disk of node {name}{mine}: {modules}, {output.size(held.size_bytes)} of {output.size(held.max_bytes)}")
    for incarnation in found.epochs:
        if not incarnation.first:
            compared = "compared with the archive" if incarnation.verified else "not compared with the archive yet"
            since = output.moment(incarnation.since_ms)
            print(
                f"shard {incarnation.shard}: epoch {incarnation.epoch} since {since} (Redis restarted or was lost), {compared}"
            )


def stats_rows(s: Stats) -> list[tuple[str, ...]]:
    """Return a row for each tier and one for the archive. Amounts with a budget are shown as `used/budget`."""
    n, size = output.number, output.size
    hot, warm, cold = s.hot, s.warm, s.cold
    return [
        ("hot", n(hot.count), f"{n(hot.tokens)}/{n(hot.max_tokens)}", size(hot.size_bytes),
         f"{size(hot.size_bytes)}/{size(hot.max_bytes)}", ""),
        ("warm", f"{n(warm.count)}/{n(warm.max_modules)}", n(warm.tokens), size(warm.size_bytes),
         f"{size(warm.stored_bytes)}/{size(warm.max_bytes)}", output.ratio(warm.ratio)),
        ("cold", n(cold.count), n(cold.tokens), size(cold.size_bytes), "", ""),
        ("archived", n(cold.archived_count), "", size(cold.archived_size_bytes), size(cold.stored_bytes),
         output.ratio(cold.ratio)),
    ]  # fmt: skip


def _reads(s: Stats) -> str:
    """Return how many reads of the fleet needed no archive, and how many of those that did were regretted evictions."""
    r, n = s.reads, output.number
    assert r.hit_ratio is not None
    tiers = f"hot {n(r.hot)}, warm {n(r.warm)}, cold {n(r.cold)}"
    regret = f"; {output.counted(s.eviction.regret, 'module')} evicted too early" if s.eviction.regret else ""
    return f"{r.hit_ratio:.1%} without the archive ({tiers}){regret}"


def _eviction(s: Stats) -> str:
    """Return the eviction policy, and whether its order is still being made."""
    ranking = s.eviction.ranking
    return (
        f"{s.eviction.policy}; {output.counted(ranking, 'shard')} still being ranked" if ranking else s.eviction.policy
    )


def _dirty(s: Stats) -> str:
    """Return what is not archived yet: modules, and deletions (which have no bytes)."""
    text = f"{output.counted(s.dirty_count - s.dirty_deletions, 'module')}, {output.size(s.dirty_bytes)}"
    return f"{text}; {output.counted(s.dirty_deletions, 'deletion')}" if s.dirty_deletions else text


def quota_rows(s: Stats) -> list[tuple[str, ...]]:
    """Return a row for each shard: its contents and its quota of each budget."""
    n, size = output.number, output.size
    return [
        (str(x.shard), f"{n(x.hot_tokens)}/{n(x.max_hot_tokens)}", f"{size(x.hot_bytes)}/{size(x.max_hot_bytes)}",
         f"{n(x.warm_modules)}/{n(x.max_warm_modules)}", f"{size(x.warm_bytes)}/{size(x.max_warm_bytes)}")
        for x in s.quotas
    ]  # fmt: skip


def watch(
    context: typer.Context,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only ids with this prefix.")] = "",
    since: Annotated[
        str, typer.Option("--since", metavar="ID", help="Start after this stream id (0: all retained events).")
    ] = "$",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Keep watching until Ctrl-C.")] = True,
    every: Annotated[
        bool, typer.Option("--all", help="Include events without a tier change (archived versions).")
    ] = False,
) -> None:
    """Show tier changes as they happen."""
    session = session_of(context)
    with session.look() as store:
        if wait and not session.json:
            output.say(f"distier: watching namespace {store.space.namespace!r}; press Ctrl-C to stop")
        for event in store.events(since=since, wait=wait):
            # An event without an id concerns a whole shard, and so every watcher: Redis restarted or was lost.
            if not event.id or (event.id.startswith(prefix) and (every or event.is_tier_change)):
                session.print_result(view(event), _event(event))
                _flush()


def _event(e: Event) -> str:
    time = f"{output.moment(e.at_ms)[11:]}.{e.at_ms % 1000:03d}"
    if not e.id:
        return f"{time}  {e.reason} {e.version}: Redis restarted or was lost; comparing modules with the archive"
    return f"{time}  {e.from_:>7} > {e.to:<7}  {e.reason:<9} {e.version:<8} {output.shown(e.id)}"


def _flush() -> None:
    import sys

    sys.stdout.flush()


# -- doctor -------------------------------------------------------------------------------------------------------------


def doctor(context: typer.Context) -> None:
    """Check Redis, the archive and the settings.

    Each finding that needs attention comes with advice. Exits with code 1 if a check fails.
    """
    from distier.client import archive_of, make_space, redis_url
    from distier.doctor.check import examine

    session = session_of(context)
    config = session.config()
    worst = "ok"
    for finding in examine(config, lambda: redis_url(config), lambda: archive_of(config), make_space):
        worst = "fail" if "fail" in (worst, finding.status) else finding.status if worst == "ok" else worst
        session.print_result(
            {"check": finding.check, "status": finding.status, "found": finding.found, "advice": finding.advice},
            _finding(finding),
        )
        _flush()
    if worst == "fail":
        raise typer.Exit(exits.FAILED)


def _finding(f: Finding) -> str:
    import sys

    colour = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}[f.status]
    status = f"{f.status:<4}"
    if sys.stdout.isatty():
        status = typer.style(status, fg=colour, bold=True)
    line = f"{status}  {f.check:<12} {f.found}"
    return f"{line}\n{'':19}{f.advice}" if f.advice else line


# -- config -------------------------------------------------------------------------------------------------------------


@settings.command("show")
def config_show(context: typer.Context) -> None:
    """Show every setting with its value and its source. Secrets are masked."""
    session = session_of(context)
    config = session.config()
    values = dict(_leaves(config.dump()))
    rows = [(key, values.get(key), source) for key, source in config.sources().items()]
    if session.json:
        for key, value, source in rows:
            output.emit({"key": key, "value": value, "source": source})
        return
    width = max(len(key) for key, _, _ in rows)
    lines = [(f"{key:<{width}}", "" if value is None else str(value), source) for key, value, source in rows]
    value_width = min(40, max(len(value) for _, value, _ in lines))
    for key, value, source in lines:
        print(f"{key}  {value:<{value_width}}  {source}")


def _leaves(data: dict[str, object], above: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in data.items():
        if isinstance(value, dict) and name != "transforms":
            found += _leaves(value, f"{above}{name}.")
        else:
            found.append((above + name, value))
    return found


@settings.command("check")
def config_check(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="File to check instead of --config.")] = None,
) -> None:
    """Check the configuration without connecting to a server. Exits with code 9 if it is invalid."""
    session = session_of(context)
    session.config_file = file or session.config_file
    config = session.config()
    redis = "an embedded server" if config.embedded else "the Redis server at redis.url"
    session.print_result({"ok": True, "namespace": config.namespace}, f"ok: namespace {config.namespace!r} on {redis}")
