"""Commands that check and repair stored data: fsck, rescue, sweep, restore, archive adopt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distier.effects import RestoreTier
from distier.errors import Corrupt, DistierError
from distier.views import finding_view, findings_view

from . import exits, output
from .archive import DEADLINE_S, register_reading
from .counting import counting
from .export import export, import_
from .modules import Glob, Prefix, SomeIds, Zero
from .pack import pack
from .session import Chosen, Session, session_of

if TYPE_CHECKING:
    from distier.drive.sync import SyncDriver
    from distier.effects import Plan
    from distier.plans.common.namespace import Namespace
    from distier.plans.recovery.fsck.findings import Finding, Findings
    from distier.plans.recovery.rescue import Rescued


def register(app: typer.Typer) -> None:
    for function in (fsck, rescue, sweep, restore, migrate):
        app.command(function.__name__)(function)
    archive = typer.Typer(
        no_args_is_help=True, help="Read the namespace's archive without Redis, or change which it is."
    )
    register_reading(archive)
    archive.command("adopt")(adopt)
    archive.command("export")(export)
    archive.command("import")(import_)
    archive.command("pack")(pack)
    app.add_typer(archive, name="archive")


@contextmanager
def _naming_foreign_keys(session: Session) -> Iterator[None]:
    """Name the keys whose wrong type stops a check. Redis does not name the key, and a script uses several keys."""
    try:
        yield
    except Corrupt as e:
        found = _foreign_keys(session)
        for key, is_type, should in found:
            text = f"{key}: is a {is_type}, not a {should}: another program writes to this key"
            row = {"kind": "foreign-type", "level": "fault", "key": key, "detail": text}
            session.print_result(row, f"fault  {text}")
        if not found:
            raise
        raise Corrupt(
            f"the check stopped at {output.counted(len(found), 'key')} of the wrong type: "
            f"{', '.join(key for key, *_ in found)}; rename each key (`redis-cli RENAMENX`), then run `distier fsck --repair`"
        ) from e


def _foreign_keys(session: Session) -> list[tuple[str, str, str]]:
    """Return `(key, actual type, expected type)` of each wrong key, among the keys that exist once per shard."""
    from distier.domain.schema import KEYSPACE
    from distier.effects import Command, Pipeline, collect

    names = {kind.pattern.rpartition(":")[2]: kind.type for kind in KEYSPACE if "<" not in kind.pattern}
    with _unopened(session) as (space, driver):
        wanted = [(shard, shard.root + name, should) for shard in space.keys.shards for name, should in names.items()]
        calls: list[Command[str]] = [Command(shard, ("TYPE", key), _word) for shard, key, _ in wanted]

        def types() -> Plan[list[str]]:
            return [collect(reply) for reply in (yield from Pipeline(calls))]

        found = driver.run(types())
    both = zip(wanted, found, strict=True)
    return [(key, is_type, should) for (_, key, should), is_type in both if is_type not in ("none", should)]


def _word(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


def fsck(
    context: typer.Context,
    repair: Annotated[bool, typer.Option("--repair", help="Repair the faults that can be repaired.")] = False,
    checksums: Annotated[
        float,
        typer.Option("--checksums", metavar="FRACTION", min=0, max=1, help="Fraction of contents to verify (1: all)."),
    ] = 0,
) -> None:
    """Check that Redis and the archive are consistent. Agents may keep working.

    Exits with code 1 if a fault remains, and 6 if a version is lost or damaged.
    """
    from distier.plans.recovery.fsck.check import fsck as fsck_plan
    from distier.plans.recovery.fsck.findings import Findings

    session = session_of(context)
    with _naming_foreign_keys(session), session.store(existing=True) as store, counting("checking") as say:

        def progress(f: Findings) -> None:
            say(f"{output.counted(f.objects, 'object')}, {output.counted(f.records, 'record')}")

        def show(f: Finding) -> None:
            if session.json:
                output.emit(finding_view(f))
            elif f.level != "note" or session.verbose:
                print(_finding_text(f))

        def report(value: Finding | Findings) -> None:
            if isinstance(value, Findings):
                progress(value)
            else:
                show(value)

        plan = fsck_plan(store.space, repair=repair, checksums=checksums)
        found = store.run(plan, deadline_s=DEADLINE_S, on_progress=report)
    session.print_result(findings_view(found), _findings_text(found))
    if found.count("lost"):
        raise typer.Exit(exits.CORRUPT)
    if found.remaining:
        raise typer.Exit(exits.FAILED)


def _finding_text(f: Finding) -> str:
    subject = output.shown(f.id or f.key)
    detail = f" ({f.detail})" if f.detail else ""
    done = f" -> {f.repair}" if f.repaired else "" if not f.repair or f.level == "note" else "  [--repair]"
    return f"{f.level:<5}  {f.kind:<17} {subject}: {f.what}{detail}{done}"


def _findings_text(found: Findings) -> str:
    checked = f"{output.counted(found.objects, 'object')}, {output.counted(found.records, 'record')}"
    if found.contents:
        checked += f", {output.counted(found.contents, 'content')}"
    faults, lost = found.count("fault"), found.count("lost")
    notes = ", ".join(f"{n} {kind}" for kind, n in sorted(found.found.items()) if n and _is_note(kind))
    text = f"{checked}: {lost} lost, {output.counted(faults, 'fault')} ({found.remaining} remain)"
    return f"{text}; notes: {notes}" if notes else text


def _is_note(kind: str) -> bool:
    from distier.plans.recovery.fsck.findings import KINDS

    return KINDS[kind].level == "note"


def rescue(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
) -> None:
    """Rebuild all records from the archive after losing Redis. Safe to interrupt and rerun; reads keep working.

    Exits with code 6 if the newest version of a module is damaged, and 10 if the archive cannot return it. All other
    modules are adopted.
    """
    from distier.plans.recovery.rescue import rescue as rescue_plan

    session = session_of(context)
    with session.store(existing=True) as store, counting("rescuing") as say:

        def progress(r: Rescued) -> None:
            say(f"{output.counted(r.objects, 'object')}, {output.counted(r.adopted, 'module')} adopted")

        report = store.run(rescue_plan(store.space, dry_run=dry_run), deadline_s=DEADLINE_S, on_progress=progress)
    for name, why in report.unreadable.items():
        output.say(f"distier: {output.shown(name)}: {why}")
    for id in report.foreign:
        output.say(f"distier: {output.shown(id)}: not adopted: its objects in the archive name another module")
    session.print_result(_rescued_row(report, dry_run), _rescued_text(report, dry_run))
    if report.unreadable:
        raise typer.Exit(exits.CORRUPT if report.damaged else exits.IN_PART)


def _rescued_row(r: Rescued, dry_run: bool) -> dict[str, Any]:
    counts = {name: getattr(r, name) for name in ("objects", "modules", "adopted", "known", "deleted")}
    return counts | {"unreadable": r.unreadable, "foreign": r.foreign, "dry_run": dry_run}


def _rescued_text(r: Rescued, dry_run: bool) -> str:
    verb = "would be adopted" if dry_run else "adopted"
    text = f"{output.counted(r.modules, 'module')} in the archive, {output.number(r.deleted)} deleted: "
    text += f"{output.number(r.adopted)} {verb}, {output.number(r.known)} already known"
    return f"{text}, {len(r.unreadable)} unreadable" if r.unreadable else text


def sweep(context: typer.Context) -> None:
    """Delete superseded versions and old tombstones now.

    This removes objects from the archive that no module needs any more, as a worker does every worker.sweep_interval.
    Exits with code 10 if an object could not be read or deleted (a lock, a missing permission). All others are swept.
    """
    from distier.plans.fleet.sweep import sweep as sweep_plan
    from distier.plans.recovery.walk import Skipped

    session, skipped = session_of(context), Skipped()
    with session.store(existing=True) as store:
        n = store.run(sweep_plan(store.space, skipped), deadline_s=DEADLINE_S)
    for name, why in skipped.why.items():
        output.say(f"distier: {output.shown(name)}: {why}")
    kept = {name: str(why) for name, why in skipped.why.items()}
    text = f"{output.counted(n, 'object')} swept" + (f", {len(kept)} kept" if kept else "")
    session.print_result({"swept": n, "kept": kept}, text)
    if kept:
        raise typer.Exit(exits.IN_PART)


def restore(
    context: typer.Context,
    ids: SomeIds = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the modules can be read.")] = False,
    days: Annotated[
        int, typer.Option("--days", min=0, max=3650, help="Days that S3 keeps the copy (0: Intelligent-Tiering).")
    ] = 7,
    tier: Annotated[RestoreTier, typer.Option("--tier", help="Speed and price of the restore.")] = "Standard",
    prefix: Prefix = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Make modules readable whose contents are in Glacier or another slow storage class.

    Without --wait, exits with code 10 if a module cannot be read yet. Safe to interrupt and rerun: S3 continues.
    """
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=True) as store:
        wanted, pending = chosen.ids(store), 0

        def ask(id: str, wait_s: float) -> bool:
            return store.restore(id, days=days, tier=tier, wait_s=wait_s)

        def one(id: str) -> None:
            nonlocal pending
            ready = ask(id, DEADLINE_S * 3 if wait else 0)
            pending += not ready
            text = f"{output.shown(id)}: {'can be read' if ready else 'is being restored'}"
            session.print_result({"id": id, "readable": ready}, text)

        if wait:  # S3 works on all of them at once
            for id in wanted:
                with suppress(DistierError):
                    ask(id, 0)
        session.each(wanted, one)
    session.end()
    if pending:
        raise typer.Exit(exits.IN_PART)


def adopt(context: typer.Context) -> None:
    """Accept another archive than before for this namespace.

    Otherwise distier refuses to open a namespace with a different archive, because the usual cause is an unmounted disk
    or a wrong URL. Modules that exist only in the old archive become unreadable. `distier fsck` lists them, and `distier
    fsck --repair` archives the modules again that Redis still holds.
    """
    from distier.plans.recovery.epochs import check_shape, find_space
    from distier.plans.recovery.identity import adopt_archive

    session = session_of(context)
    with _unopened(session) as (space, driver):
        driver.run(check_shape(space))
        driver.run(find_space(space))
        name = driver.run(adopt_archive(space))
        archive = driver.archive
    text = f"namespace {space.namespace!r} now uses the archive {archive.name} ({name}); next: distier rescue, distier fsck"
    session.print_result({"archive": archive.name, "identity": name}, text)


@contextmanager
def _unopened(session: Session) -> Iterator[tuple[Namespace, SyncDriver]]:
    """Yield the namespace and a driver, for plans on a namespace that no store opens."""
    from distier.client import archive_of, make_space, redis_url
    from distier.drive.sync import SyncDriver
    from distier.stores.redis.open import open_exchange

    config = session.config()
    url, archive = redis_url(config), archive_of(config)
    space = make_space(config, archive)
    driver = SyncDriver(open_exchange(config, url, space.process.forget), archive, deadline_s=config.deadline_ms / 1000)
    try:
        yield space, driver
    finally:
        driver.close()


def migrate(context: typer.Context) -> None:
    """Bring the namespace to the key layout of this version, while clients of this version work.

    From its first step on, clients of older versions are refused: end them before. It may be stopped at any time; run it
    again to go on.
    """
    from distier.domain.schema import LAYOUT
    from distier.plans.recovery.migrate import migrate as migrate_plan

    session, records = session_of(context), 0
    with _unopened(session) as (space, driver):
        for shard in space.keys.shards:
            records += driver.run(migrate_plan(shard), DEADLINE_S)
    text = f"namespace {space.namespace!r} has key layout {LAYOUT}; {output.counted(records, 'record')} migrated"
    session.print_result({"layout": LAYOUT, "records": records}, text)
