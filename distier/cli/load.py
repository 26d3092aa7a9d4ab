"""`distier put DIR`: write every file of a tree as a module.

A file is written only if its module would change. After an interruption or a failure, the same command therefore writes
the missing modules. The calls have a longer deadline than others, because a tree is written at the speed of Redis and
the archive; a progress bar shows how far the load is.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distier.client import Store
from distier.domain.content_types import base_type, check_content_type, guess_content_type
from distier.domain.frontmatter import EXTENSIONS, described
from distier.domain.ids import check_id
from distier.domain.module import Landed, Record, pack_keywords, pack_meta
from distier.domain.skill import checked, is_skill_file
from distier.effects import Command, Pipeline, Plan, T, collect
from distier.errors import DistierError, Invalid
from distier.plans.put.many import put_many
from distier.plans.put.prepare import Item
from distier.plans.recovery.adopt import newest_records
from distier.policy.transform import apply_transform, outline
from distier.views import view

from . import output
from .session import Session
from .tree import Tree

BATCH = 50
BATCH_MAX_BYTES = 4 * 1024 * 1024
BATCH_DEADLINE_S = 120.0
RETRY_MAX = 20
"""Maximum number of failed files that the suggested command names. Without names, the command finds them itself."""


@dataclass
class Load:
    """One `put DIR` and its progress."""

    session: Session
    store: Store
    tree: Tree
    prefix: str
    described: dict[str, Any]
    only: Sequence[str] = ()
    landed: dict[str, Landed] = field(default_factory=dict)
    unchanged: int = 0
    size_bytes: int = 0
    failures: list[tuple[str, str, DistierError]] = field(default_factory=list)
    invalid_skills: list[tuple[str, str]] = field(default_factory=list)
    in_progress: list[Item] = field(default_factory=list)

    def run(self) -> None:
        """Put every file of the tree. The failure of a file is reported, and the others are still put."""
        files = list(self.tree.files())
        if self.only:
            files = self._chosen(files)
        try:
            with _bar(len(files)) as advance:
                for some in batches(self._items(files)):
                    self.in_progress = [item for _, item in some]
                    self._put(some)
                    self.in_progress = []
                    advance(self.done)
        except KeyboardInterrupt:
            self._interrupted(len(files))
            raise
        self._end()

    @property
    def done(self) -> int:
        return len(self.landed) + self.unchanged + len(self.failures)

    def _chosen(self, files: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
        known = {path.as_posix() for path, _ in files}
        for name in dict.fromkeys(self.only):
            if name not in known:
                self._fail(name, name, Invalid(f"there is no file {name!r} in {self.tree.root}, or it is excluded"))
        return [(path, real) for path, real in files if path.as_posix() in self.only]

    def _fail(self, path: str, id: str, error: DistierError) -> None:
        self.failures.append((path, id, error))
        self.session.failed(error)

    def _items(self, files: Sequence[tuple[Path, Path]]) -> Iterator[tuple[str, Item]]:
        for path, real in files:
            try:
                item = self._item(path, real)
            except DistierError as e:
                name = os.fsencode(path).decode(errors="replace")
                self._fail(name, self.prefix + name, e)
            else:
                yield path.as_posix(), item

    def _item(self, path: Path, real: Path) -> Item:
        id = check_id(self.prefix + name_of(path))
        try:
            content = read_bounded(real, self.store.space.config.max_module_bytes, f"module {id!r}")
        except OSError as e:
            raise Invalid(f"module {id!r}: cannot read {path.as_posix()!r}: {e.strerror}") from None
        if is_skill_file(id) and isinstance(why := checked(id, content), str):
            self.invalid_skills.append((id, why))
        return item_of(id, content, self.described)

    def _put(self, some: Sequence[tuple[str, Item]]) -> None:
        changed = []
        for (path, item), record in zip(some, self._records([item for _, item in some]), strict=True):
            if record is not None and self._is_same(item, record):
                self.unchanged += 1
                if self.session.json:
                    output.emit({"id": item.id, "tier": record.tier, "version": str(record.order), "unchanged": True})
            else:
                changed.append((path, item))
        results = put_batch(self.session, self.store, [item for _, item in changed])
        for (path, item), result in zip(changed, results, strict=True):
            if isinstance(result, DistierError):
                self._fail(path, item.id, result)
                continue
            self.landed[item.id] = result
            self.size_bytes += len(item.content)
            if self.session.json:
                output.emit(view(result))

    def _call(self, plan: Plan[Any]) -> Any:
        return _call(self.session, self.store, plan)

    def _records(self, items: Sequence[Item]) -> Sequence[Record | None]:
        try:
            found: list[Record | None] = self._call(newest_records(self.store.space, [item.id for item in items]))
            return found
        except DistierError:
            return [None] * len(items)  # all are written again, and each write reports its own error

    def _is_same(self, item: Item, record: Record) -> bool:
        """Return whether a put of this item would leave everything readable unchanged."""
        config = self.store.space.config
        content = bytes(item.content)  # type: ignore[arg-type]
        content_type = check_content_type(item.content_type or guess_content_type(item.id, content))
        kind = base_type(content_type)
        name = config.transforms.get(kind)
        made = apply_transform(name, content) if name else None
        kept = made.content if made else content
        return (
            record.size_bytes == len(kept)
            and record.sha256 == hashlib.sha256(kept).hexdigest()
            and record.content_type == content_type
            and record.transform == (name if made else None)
            and record.keywords == pack_keywords(item.keywords)
            and record.meta == pack_meta(item.meta)
            and record.ttl_ms is None
            and item.ttl is None  # a put begins the time again
            and (record.clean or (item.durability or config.durability) != "archived")
            and (record.outline or None) == ((outline(content, kind) if kind in config.outline else None) or None)
        )

    # -- the summary at the end ------------------------------------------------------------------------------------

    def _end(self) -> None:
        tokens = sum(landed.tokens for landed in self.landed.values())
        modules = output.counted(len(self.landed), "module")
        text = f"{modules}, {output.counted(tokens, 'token')}, {output.size(self.size_bytes)}: "
        text += self._tiers() if self.landed else "nothing was put"
        output.say(text + (f"; {output.number(self.unchanged)} unchanged" if self.unchanged else ""))
        if excluded := self.tree.summary():
            output.say(excluded)
        if self.invalid_skills:
            self._print_invalid_skills()
        if self.failures:
            self._print_failures()

    def _tiers(self) -> str:
        """Return where the modules are now: later modules of the tree may have evicted earlier ones."""
        try:
            found: Counter[str] = Counter(self._call(tiers_of(self.store, list(self.landed))))
        except DistierError:
            return "written (their tiers are unknown)"
        return ", ".join(f"{n} {tier}" for tier, n in sorted(found.items()))

    def _print_invalid_skills(self) -> None:
        """Report the skills that clients of skills refuse. They are stored, because `put` copies a tree as it is."""
        output.say(f"{output.counted(len(self.invalid_skills), 'invalid skill')}, put like other files:")
        for id, why in self.invalid_skills:
            output.say(f"  {output.shown(id)}: {why}")

    def _print_failures(self) -> None:
        output.say(f"{output.counted(len(self.failures), 'file')} failed:")
        for _, id, error in self.failures:
            output.say(f"  {output.shown(id)}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        output.say(f"to retry only these: {self._retry_command()}")

    def _retry_command(self) -> str:
        args = ["distier", *self.session.store_options(), "put", str(self.tree.root), "--prefix", self.prefix]
        args += [arg for glob in self.tree.exclude for arg in ("--exclude", glob)] + self._described_options()
        args += [] if self.tree.ignore else ["--no-ignore"]
        if len(self.failures) <= RETRY_MAX:
            args += [arg for path, _, _ in self.failures for arg in ("--only", path)]
        return " ".join(shlex.quote(arg) for arg in args)

    def _described_options(self) -> list[str]:
        given = self.described
        args = [arg for k in given["keywords"] for arg in ("--keyword", k)]
        args += [arg for k, v in given["meta"].items() for arg in ("--meta", f"{k}={v}")]
        args += ["--type", given["content_type"]] if given["content_type"] else []
        args += ["--ttl", f"{given['ttl']:g}s"] if given["ttl"] is not None else []
        return args + (["--durability", given["durability"]] if given["durability"] else [])

    def _interrupted(self, total: int) -> None:
        """Report how many files are stored, including those of the interrupted batch."""
        unsure = 0
        for item, record in zip(self.in_progress, self._records(self.in_progress), strict=True):
            if item.id in self.landed:
                continue
            if record is not None and self._is_same(item, record):
                self.unchanged += 1
            else:
                unsure += 1
        there = output.number(len(self.landed) + self.unchanged)
        output.say(
            f"distier: interrupted: {there} of {output.counted(total, 'file')} are stored"
            + (f", {output.number(unsure)} may still arrive" if unsure else "")
            + "; run the same command again to put the rest"
        )


def batches(items: Iterable[tuple[T, Item]]) -> Iterator[list[tuple[T, Item]]]:
    """Divide modules, each with what belongs to it, into batches of at most `BATCH` modules and about `BATCH_MAX_BYTES`."""
    some: list[tuple[T, Item]] = []
    size_bytes = 0
    for of, item in items:
        length = len(item.content)
        if some and (len(some) >= BATCH or size_bytes + length > BATCH_MAX_BYTES):
            yield some
            some, size_bytes = [], 0
        some.append((of, item))
        size_bytes += length
    if some:
        yield some


def put_batch(session: Session, store: Store, items: Sequence[Item]) -> list[Landed | DistierError]:
    """Put modules at the speed of Redis and the archive, unless `--deadline` says otherwise."""
    if not items:
        return []
    store.space.counter.count(b"x")  # loads the counter's tables before the deadline starts
    results: list[Landed | DistierError] = _call(session, store, put_many(store.space, items))
    return results


def _call(session: Session, store: Store, plan: Plan[Any]) -> Any:
    deadline_s = store.space.config.deadline_ms / 1000
    return store.run(plan, deadline_s=deadline_s if session.deadline else max(deadline_s, BATCH_DEADLINE_S))


def tiers_of(store: Store, ids: Sequence[str]) -> Plan[list[str]]:
    """Return the tiers in the records of modules, without those of deleted modules."""
    space = store.space
    found: list[str] = []
    for at in range(0, len(ids), 1000):
        calls: list[Command[bytes | None]] = [
            Command((s := space.shard(id)), ("HGET", s.module(id), "tier"), lambda reply: reply)
            for id in ids[at : at + 1000]
        ]
        tiers = [collect(reply) for reply in (yield from Pipeline(calls))]
        found += [tier.decode() for tier in tiers if tier and tier != b"deleted"]
    return found


def item_of(id: str, content: bytes, given: dict[str, Any], **more: Any) -> Item:
    """Return a module to put, with the keywords and metadata of its front matter.

    Args:
        id: The module's id.
        content: Its content.
        given: Options of the command line, which take precedence over the front matter.
        more: Further fields of `Item`.
    """
    keywords, meta = list(given["keywords"]), dict(given["meta"])
    if content.startswith((b"---", b"\xef\xbb\xbf---")) and id.rpartition(".")[2].lower() in EXTENSIONS:
        listed, fields = described(content.decode(errors="replace"))
        joined = list(dict.fromkeys([*keywords, *listed]))
        keywords = joined if _is_packed(joined) else keywords
        meta = fields | meta if _is_packed(keywords, fields | meta) else meta
    options = {name: given[name] for name in ("content_type", "durability", "ttl")} | more
    return Item(id, content, keywords=tuple(keywords), meta=meta, **options)


def _is_packed(keywords: Sequence[str], meta: dict[str, Any] | None = None) -> bool:
    try:
        pack_keywords(keywords)
        pack_meta(meta)
    except Invalid:
        return False
    return True


def read_bounded(path: Path, max_bytes: int, what: str) -> bytes:
    """Read a file of at most `max_bytes`; never read beyond the limit.

    Args:
        path: The file.
        max_bytes: The limit in bytes.
        what: The subject of the error message.

    Raises:
        Invalid: The file is larger.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes <= max_bytes:
            content = file.read(max_bytes + 1)
            size_bytes = len(content)
            if size_bytes <= max_bytes:
                return content
    raise too_large(what, f"{size_bytes}", max_bytes)


def too_large(what: str, size: str, max_bytes: int) -> Invalid:
    return Invalid(f"{what} has {size} bytes; max_module_bytes is {max_bytes}")


def name_of(path: Path) -> str:
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise Invalid(f"the file name {os.fsencode(path)!r} is not UTF-8, as an id must be: rename the file") from None
    return path.as_posix()


@contextmanager
def _bar(count: int) -> Iterator[Any]:
    """Show a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty() or count <= BATCH:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("putting", total=count)
        yield lambda done: progress.update(task, completed=done)
