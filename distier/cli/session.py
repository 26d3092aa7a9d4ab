"""What the global options mean: which configuration, which store, and how the results are told."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from distier.errors import ConfigError, DistierError, NotFound

from . import all_is_loaded
from .exits import code_of
from .output import complain, emit, needs_quotes

if TYPE_CHECKING:
    from distier.client import Store
    from distier.config import Config


@dataclass
class Session:
    """One run of the command line. `code` is the exit code so far: the first failure's, if several things are done."""

    config_file: Path | None = None
    url: str | None = None
    home: Path | None = None
    namespace: str | None = None
    deadline: str | None = None
    json: bool = False
    verbose: bool = False
    code: int = 0

    def config(self, **overrides: Any) -> Config:
        """The configuration that the options ask for. Raises `ConfigError`."""
        from distier.config import load_config

        if self.url and self.home:
            raise typer.BadParameter("--url and --home exclude each other: one server, please")
        return load_config(
            self.config_file, redis__url=self.url, home=self.home, namespace=self.namespace, deadline=self.deadline,
            **overrides,
        )  # fmt: skip

    def words(self) -> list[str]:
        """The global options that say which store is meant, as they are typed. A URL with a password is not repeated."""
        url = "URL" if self.url and "@" in self.url else self.url
        given = {"--config": self.config_file, "--url": url, "--home": self.home, "--namespace": self.namespace,
                 "--deadline": self.deadline}  # fmt: skip
        return [word for name, value in given.items() if value is not None for word in (name, str(value))]

    @contextmanager
    def store(self, *, existing: bool = False, **overrides: Any) -> Iterator[Store]:
        """The store; with `existing`, a namespace is not made where there is none: `NotFound`."""
        from distier.client import connect, connect_existing

        # No near cache: its thread and connection pay only in a process that reads a module twice.
        config = self.config(near={"enabled": False}, **overrides)
        with connect_existing(config) if existing else connect(config) as store:
            all_is_loaded()
            yield store

    @contextmanager
    def look(self) -> Iterator[Store]:
        """The store, to read what Redis knows: nothing is written, and no archive needs to be configured."""
        from distier.client import connect_existing

        config = needing_no_archive(partial(self.config, near={"enabled": False}))
        with connect_existing(config, reading=True) as store:
            all_is_loaded()
            yield store

    def failed(self, error: DistierError) -> None:
        """Tell a failure of one of several things; the others go on."""
        complain(error, traceback=self.verbose)
        self.code = self.code or code_of(error)

    def missing(self, store: Store, id: str) -> None:
        self.failed(NotFound(f"there is no module {id!r} in namespace {store.space.namespace!r}"))

    def each(self, ids: Sequence[str], act: Callable[[str], None]) -> None:
        """Do something with each id; a failure is told, and the others go on."""
        for id in ids:
            try:
                act(id)
            except DistierError as e:
                self.failed(e)

    def tell(self, data: dict[str, Any], words: str) -> None:
        """A result: as JSON if asked for, else in words."""
        if self.json:
            emit(data)
        else:
            print(words)

    def end(self) -> None:
        """Leave with the first failure's code, if there was one."""
        if self.code:
            raise typer.Exit(self.code)


def needing_no_archive(load: Callable[..., Config]) -> Config:
    """The configuration that `load` gives, also where it names no archive."""
    from distier.config import ARCHIVE_REQUIRED, NO_ARCHIVE

    try:
        return load()
    except ConfigError as e:
        if not str(e).startswith(ARCHIVE_REQUIRED):
            raise
        return load(storage_tiers__cold__directory=NO_ARCHIVE)


def session_of(context: typer.Context) -> Session:
    return cast(Session, context.obj)


def ids_from(words: Sequence[str], zero: bool = False) -> list[str]:
    """The ids that are meant; `-` stands for those on stdin: one a line, or each ended by a NUL byte (`-0`)."""
    found: list[str] = []
    for word in words:
        found += _listed_ids(zero) if word == "-" else [word]
    return found


def read_stdin(max_bytes: int = -1) -> bytes:
    """What comes on stdin. Raises `typer.BadParameter` where it cannot be read."""
    try:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.buffer.read(max_bytes)
    except OSError as e:
        raise typer.BadParameter(f"cannot read stdin: {e.strerror}") from None


def _listed_ids(zero: bool) -> list[str]:
    """Lines may end as on Windows, and the first may begin with a byte order mark: editors write both unasked. Bytes that
    are no UTF-8 are refused with the id, not here."""
    text = read_stdin().decode("utf-8", "surrogateescape")
    if zero:
        return [id for id in text.split("\0") if id]
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    return [_unquoted(line) for line in lines if line.strip()]


def _unquoted(line: str) -> str:
    """An id as `output.shown` writes it: one that would not stay one line stands in JSON's quotes."""
    if line[0] == line[-1] == '"':
        with suppress(ValueError):
            id = json.loads(line)
            if isinstance(id, str) and id and needs_quotes(id):
                return id
    return line


@dataclass
class Chosen:
    """The modules that a command is about: those that are named, all that `ls PREFIX` lists, or all that match a pattern."""

    words: Sequence[str] | None
    prefix: str | None
    glob: str | None
    zero: bool = False

    def __post_init__(self) -> None:
        if bool(self.words) + (self.prefix is not None) + (self.glob is not None) != 1:
            raise typer.BadParameter("name ids (- for stdin), or all by --prefix PREFIX or --glob PATTERN")

    @property
    def named(self) -> list[str] | None:
        """Those that are named, if that is how they are chosen. Reads stdin."""
        return ids_from(self.words, self.zero) if self.words else None

    def ids(self, store: Store) -> list[str]:
        if self.glob is not None:
            return matching(store, self.glob)
        return sorted(store.list(self.prefix)) if self.prefix is not None else self.named or []


def matching(store: Store, glob: str) -> list[str]:
    """The ids that a pattern matches as a whole: `*` is anything, `/` too, `?` one character, `[ab]` one of these."""
    import re
    from fnmatch import translate

    pattern = re.compile(translate(glob))  # not `fnmatch`, whose case is that of the operating system's files
    literal = re.split(r"[*?[]", glob, maxsplit=1)[0]
    return sorted(id for id in store.list(literal) if pattern.match(id))
