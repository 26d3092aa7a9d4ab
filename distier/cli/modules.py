"""Commands that read and write modules: put, get, rm, ls, where."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distier.views import view

from . import output
from .complete import complete_ids, complete_ids_and_directories
from .session import Chosen, Session, duration_ms, ids_from, matching, read_stdin, session_of
from .tree import Tree

if TYPE_CHECKING:
    from distier.client import Store
    from distier.domain.module import Landed, Module, Placement

PAGE = 500
TierName = Literal["hot", "warm", "cold"]
_IDS: dict[str, Any] = {"help": "Module ids; `-` reads ids from stdin, one per line.", "autocompletion": complete_ids}
Ids = Annotated[list[str], typer.Argument(metavar="ID...", **_IDS)]
SomeIds = Annotated[list[str] | None, typer.Argument(metavar="[ID...]", **_IDS)]
Zero = Annotated[bool, typer.Option("--null", "-0", help="Ids on stdin (`-`) are NUL-terminated.")]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix", metavar="PREFIX", help="All modules that `ls PREFIX` lists.",
        autocompletion=complete_ids,
    ),
]  # fmt: skip
Glob = Annotated[
    str | None,
    typer.Option("--glob", metavar="PATTERN", help="All modules whose ids match; `*` also matches /."),
]
IfVersion = Annotated[
    str | None,
    typer.Option(
        "--if-version", metavar="VERSION", help="Only if this is the module's version (0: it does not exist)."
    ),
]

Level = Annotated[
    Literal["redis", "replicated", "archived"] | None,
    typer.Option("--durability", help="When to acknowledge the write [default: as configured]."),
]


def register(app: typer.Typer) -> None:
    app.command("put")(put)
    app.command("get")(get)
    app.command("rm")(rm)
    app.command("mv")(mv)
    app.command("ls")(ls)
    app.command("where")(where)


def put(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="ID|DIR",
            help="Module id, or directory to load.",
            autocompletion=complete_ids_and_directories,
        ),
    ],
    source: Annotated[
        str | None, typer.Argument(metavar="[FILE|-]", help="File with the content; `-` is stdin.")
    ] = None,
    type: Annotated[str | None, typer.Option("--type", help="Content type [default: guessed].")] = None,
    keyword: Annotated[list[str] | None, typer.Option("--keyword", "-k", help="Keyword; repeatable.")] = None,
    meta: Annotated[list[str] | None, typer.Option("--meta", metavar="K=V", help="Metadata; repeatable.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Token count, if known [default: counted].")] = None,
    if_version: IfVersion = None,
    durability: Level = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="When it expires: 90s, 15m, 24h [default: never].")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Prefix of each id (DIR only) [default: the directory's name].")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Skip matching paths (DIR only); repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="PATH", help="Put only this file (DIR only); repeatable.")
    ] = None,
    ignore: Annotated[
        bool,
        typer.Option(
            "--ignore/--no-ignore",
            help="Skip files that .gitignore, .distierignore or a built-in list names (DIR only).",
        ),
    ] = True,
) -> None:
    """Write a module from a file, or a module for each file of DIR.

    The id of a file in a directory is the directory's name, a `/` and the file's path in it. Files whose modules are
    unchanged are not written again. Keywords and metadata are also read from YAML front matter.
    """
    session = session_of(context)
    described: dict[str, Any] = {
        "content_type": type, "keywords": keyword or (), "meta": _pairs(meta or []), "durability": durability,
        "ttl": duration_ms(ttl) / 1000 if ttl is not None else None,
    }  # fmt: skip
    if source is None:
        if tokens is not None or if_version is not None:
            raise typer.BadParameter("--tokens and --if-version apply to a single module, not to a directory")
        _put_tree(session, target, prefix, Tree(Path(target), exclude or [], output.say, ignore), only or [], described)
    else:
        if prefix is not None or exclude or only or not ignore:
            raise typer.BadParameter(
                "--prefix, --exclude, --only and --no-ignore apply to a directory: distier put DIR"
            )
        landed = _put_one(session, target, source, described, tokens=tokens, if_version=_version(if_version))
        session.print_result(view(landed), _landed_text(landed))
    session.end()


def _landed_text(landed: Landed) -> str:
    parts = [landed.tier, f"version {landed.version}", output.counted(landed.tokens, "token")]
    parts += [output.size(landed.size_bytes), f"{landed.evicted} evicted" if landed.evicted else ""]
    why = f" ({landed.reason})" if landed.reason else ""
    return f"{output.shown(landed.id)}: {', '.join(part for part in parts if part)}{why}"


def _put_tree(
    session: Session, target: str, prefix: str | None, tree: Tree, only: list[str], described: dict[str, Any]
) -> None:
    from .load import Load

    if not tree.root.is_dir():
        raise typer.BadParameter(
            f"{target!r} is not a directory; to write one module: distier put ID FILE, or distier put ID - for stdin"
        )
    if prefix is None:
        name = tree.root.name if tree.root.name not in ("", "..") else tree.root.resolve().name
        prefix = f"{name}/" if name else ""
    with session.store() as store:
        Load(session, store, tree, prefix, described, only).run()


def _put_one(session: Session, id: str, source: str, described: dict[str, Any], **more: Any) -> Landed:
    from .load import item_of

    content = _content(source, session.config().max_module_bytes, id)
    item = item_of(id, content, described, **more)
    with session.store() as store:
        return store.put(
            id, content, content_type=item.content_type, keywords=item.keywords, meta=item.meta, tokens=item.tokens,
            if_version=item.if_version, durability=item.durability, ttl=item.ttl,
        )  # fmt: skip


def _content(source: str, max_bytes: int, id: str) -> bytes:
    from .load import read_bounded, too_large

    try:
        if source != "-":
            return read_bounded(Path(source), max_bytes, f"module {id!r}")
        content = read_stdin(max_bytes + 1)  # bounded: the other end may never stop
        if len(content) > max_bytes:
            raise too_large(f"module {id!r}", f"more than {max_bytes}", max_bytes)
        return content
    except IsADirectoryError:
        raise typer.BadParameter(f"{source!r} is a directory; to load it: distier put DIR --prefix PREFIX") from None
    except OSError as e:
        raise typer.BadParameter(f"cannot read {source!r}: {e.strerror}") from None


def _pairs(options: list[str]) -> dict[str, str]:
    made = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--meta takes K=V, not {option!r}")
        made[key] = value
    return made


def _version(text: str | None) -> str | int | None:
    return 0 if text == "0" else text


def get(
    context: typer.Context,
    ids: SomeIds = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE|DIR", help="Write to a file, or to a directory with --prefix or --glob."
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix", metavar="PREFIX", help="All modules below PREFIX/, as files in -o [default: ./PREFIX]."
        ),
    ] = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Write the exact bytes of modules to stdout, or to files.

    --prefix writes files and is the inverse of put DIR. With --glob, modules go to stdout one after the other, or with
    -o DIR to files in DIR that are named by their ids.
    """
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    if prefix is not None or (glob is not None and to is not None):
        from .save import save_tree, tree_of

        with session.store(existing=True) as store:
            if glob is not None:
                save_tree(session, store, matching(store, glob), "", to or Path())
            else:
                save_tree(session, store, *tree_of(store, prefix or "", to))
        session.end()
        return
    named = chosen.named
    if to is not None and (named is None or len(named) != 1):
        raise typer.BadParameter("-o FILE takes exactly one module")
    with session.store(existing=True) as store:

        def one(id: str) -> None:
            module = store.get(id)
            if module is None:
                session.missing(store, id)
            else:
                _write(session, module, to)

        session.each(chosen.ids(store) if named is None else named, one)
    session.end()


def _write(session: Session, module: Module, to: Path | None) -> None:
    if to is not None:
        try:
            from .save import write_file

            write_file(to, module.content)
        except OSError as e:
            raise typer.BadParameter(f"cannot write {str(to)!r}: {e.strerror}") from None
    elif session.json:
        try:
            content = {"content": module.text}
        except UnicodeDecodeError:
            content = {"content_base64": b64encode(module.content).decode()}
        output.emit(view(module) | content)
    else:
        sys.stdout.buffer.write(module.content)
        sys.stdout.buffer.flush()


def rm(
    context: typer.Context,
    ids: SomeIds = None,
    if_version: IfVersion = None,
    durability: Level = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Ignore modules that do not exist.")] = False,
    prefix: Prefix = None,
    glob: Glob = None,
    zero: Zero = False,
) -> None:
    """Delete modules from all tiers."""
    session = session_of(context)
    chosen = Chosen(ids, prefix, glob, zero)
    with session.store(existing=not force) as store:

        def one(id: str) -> None:
            deleted = store.delete(id, if_version=_version(if_version), durability=durability)
            if not deleted and not force:
                session.missing(store, id)
            elif session.json:
                output.emit({"id": id, "deleted": deleted})

        session.each(chosen.ids(store), one)
    session.end()


def mv(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Module id.", autocompletion=complete_ids)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new id, which must not exist.")],
    if_version: IfVersion = None,
    durability: Level = None,
) -> None:
    """Rename a module. It is put under the new id and then deleted under the old one, so both exist for a moment."""
    session = session_of(context)
    with session.store(existing=True) as store:
        landed = store.rename(old, new, if_version=_version(if_version), durability=durability)
    text = f"{output.shown(old)} is {output.shown(new)} now, version {landed.version}, {landed.tier}"
    session.print_result(view(landed), text)


LS_DROP_ORDER = ("updated", ">uses", ">stored", "version", ">size", ">tokens")


def ls(
    context: typer.Context,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only ids with this prefix.", autocompletion=complete_ids)
    ] = "",
    tier: Annotated[TierName | None, typer.Option("--tier", help="Only modules in this tier.")] = None,
    after: Annotated[
        str, typer.Option("--after", metavar="ID", help="Only ids after this one, to continue a list.")
    ] = "",
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="Maximum number of ids.")] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show tier, version, tokens and sizes.")] = False,
    zero: Annotated[
        bool, typer.Option("--null", "-0", help="End each id with a NUL byte, as other commands' -0 expects.")
    ] = False,
) -> None:
    """List module ids in the order of their bytes."""
    session = session_of(context)
    with session.look() as store:
        found = store.scan(prefix, after=after, tier=tier, limit=limit)
        placements = _placements(store, found) if long else iter(())
        if session.json:
            for data in map(view, placements) if long else ({"id": id, "tier": tier} for id, tier in found):
                output.emit(data)
        elif long:
            columns = ("tier", "version", ">tokens", ">size", ">stored", ">uses", "updated", "id")
            for line in output.long_rows(columns, [_long(placement) for placement in placements], LS_DROP_ORDER):
                print(line)
        else:
            for id, _ in found:
                print(id if zero else output.shown(id), end="\0" if zero else "\n")


def _placements(store: Store, found: Iterator[tuple[str, str]]) -> Iterator[Placement]:
    """Yield where these modules are, with a round trip for each page."""
    while some := [id for id, _ in islice(found, PAGE)]:
        yield from filter(None, store.where_many(some).values())


def _long(p: Placement) -> tuple[str, ...]:
    tier = p.tier if p.clean else f"{p.tier}*"  # the mark that editors use for unsaved files
    return (
        tier, str(p.version), output.number(p.tokens), output.size(p.size_bytes), output.size(p.stored_bytes),
        f"{p.uses:g}", output.moment(p.updated_ms), output.shown(p.id),
    )  # fmt: skip


def where(context: typer.Context, ids: Ids, zero: Zero = False) -> None:
    """Show where modules are: tier, version, sizes and times. Does not count as a use."""
    session = session_of(context)
    with session.look() as store:

        def one(id: str) -> None:
            placement = store.where(id)
            if placement is None:
                session.missing(store, id)
            else:
                session.print_result(view(placement), _placement_text(placement))

        session.each(ids_from(ids, zero), one)
    session.end()


def _placement_text(p: Placement) -> str:
    when: Callable[[int | None], str] = output.moment
    stored = f"{output.size(p.stored_bytes)} ({p.ratio:.2f}x)" if p.ratio else ""
    archived = f"{p.archived_key} ({output.size(p.archived_bytes or 0)})" if p.clean and p.archived_key else ""
    return output.pairs([
        ("id", output.shown(p.id)),
        ("tier", p.tier),
        ("version", str(p.version)),
        ("content type", p.content_type),
        ("tokens", output.number(p.tokens)),
        ("size", f"{output.number(p.size_bytes)} bytes"),
        ("stored", stored),
        ("on nodes", ", ".join(p.nodes)),
        ("archived", archived or f"not yet (since {when(p.dirty_since_ms)})"),
        ("uses", f"{p.uses:g}"),
        ("last use", when(p.last_use_ms)),
        ("leaves warm", when(p.due_ms) if p.tier == "warm" else ""),
        ("pinned until", when(p.pinned_until_ms)),
        ("expires", when(p.expires_ms)),
        ("created", when(p.created_ms)),
        ("updated", when(p.updated_ms)),
        ("sha256", p.sha256),
    ])  # fmt: skip
