"""What the global options mean: which configuration and store to use, and how to print results."""

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

from . import resume_gc
from .exits import code_of
from .output import emit, needs_quotes, report_error

if TYPE_CHECKING:
    from distier.client import Store
    from distier.config import Config


@dataclass
class Session:
    """One run of the command line. `code` is the exit code so far: that of the first failure, 0 without one."""

    config_file: Path | None = None
    url: str | None = None
    home: Path | None = None
    namespace: str | None = None
    deadline: str | None = None
    json: bool = False
    verbose: bool = False
    code: int = 0

    def config(self, **overrides: Any) -> Config:
        """Load the configuration that the options select.

        Raises:
            ConfigError: The configuration is invalid.
        """
        from distier.config import load_config

        if self.url and self.home:
            raise typer.BadParameter("--url cannot be combined with --home")
        return load_config(
            self.config_file, redis__url=self.url, home=self.home, namespace=self.namespace, deadline=self.deadline,
            **overrides,
        )  # fmt: skip

    def store_options(self) -> list[str]:
        """Return the global options that select the store, as typed. A URL with a password is replaced by `URL`."""
        url = "URL" if self.url and "@" in self.url else self.url
        given = {"--config": self.config_file, "--url": url, "--home": self.home, "--namespace": self.namespace,
                 "--deadline": self.deadline}  # fmt: skip
        return [arg for name, value in given.items() if value is not None for arg in (name, str(value))]

    @contextmanager
    def store(self, *, existing: bool = False, **overrides: Any) -> Iterator[Store]:
        """Open the store.

        Args:
            existing: Do not create the namespace: raise `NotFound` if it does not exist.
            overrides: Settings that take precedence over the configuration.
        """
        from distier.client import connect_existing, connect_once

        # No near cache: its thread and connection pay off only in a process that reads a module twice.
        config = self.config(near={"enabled": False}, **overrides)
        with connect_existing(config) if existing else connect_once(config) as store:
            resume_gc()
            yield store

    @contextmanager
    def look(self) -> Iterator[Store]:
        """Open the store for reading from Redis only: nothing is written, and no archive needs to be configured."""
        from distier.client import connect_existing

        config = needing_no_archive(partial(self.config, near={"enabled": False}))
        with connect_existing(config, reading=True) as store:
            resume_gc()
            yield store

    def failed(self, error: DistierError) -> None:
        """Report the failure of one of several items. The command continues with the others."""
        report_error(error, traceback=self.verbose)
        self.code = self.code or code_of(error)

    def missing(self, store: Store, id: str) -> None:
        self.failed(NotFound(f"there is no module {id!r} in namespace {store.space.namespace!r}"))

    def each(self, ids: Sequence[str], act: Callable[[str], None]) -> None:
        """Call `act` with each id. A failure is reported, and the other ids are still processed."""
        for id in ids:
            try:
                act(id)
            except DistierError as e:
                self.failed(e)

    def print_result(self, data: dict[str, Any], text: str) -> None:
        """Print a result: `data` with `--json`, otherwise `text`."""
        if self.json:
            emit(data)
        else:
            print(text)

    def end(self) -> None:
        """Exit with the code of the first failure, if there was one."""
        if self.code:
            raise typer.Exit(self.code)


def needing_no_archive(load: Callable[..., Config]) -> Config:
    """Return the configuration from `load`, even if it names no archive."""
    from distier.config import ARCHIVE_REQUIRED, NO_ARCHIVE

    try:
        return load()
    except ConfigError as e:
        if not str(e).startswith(ARCHIVE_REQUIRED):
            raise
        return load(storage_tiers__cold__directory=NO_ARCHIVE)


def session_of(context: typer.Context) -> Session:
    return cast(Session, context.obj)


def duration_ms(text: str) -> int:
    """Return a duration such as `10m` in milliseconds. Raises `typer.BadParameter`."""
    from distier.config import parse_duration_ms

    try:
        return parse_duration_ms(text)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r}: {e}") from None


def ids_from(args: Sequence[str], zero: bool = False) -> list[str]:
    """Return the given ids. `-` is replaced by the ids on stdin: one per line, or NUL-terminated (`-0`)."""
    found: list[str] = []
    for arg in args:
        found += _listed_ids(zero) if arg == "-" else [arg]
    return found


def read_stdin(max_bytes: int = -1) -> bytes:
    """Read stdin, up to `max_bytes` if that is not negative.

    Raises:
        typer.BadParameter: stdin cannot be read.
    """
    try:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.buffer.read(max_bytes)
    except OSError as e:
        raise typer.BadParameter(f"cannot read stdin: {e.strerror}") from None


def _listed_ids(zero: bool) -> list[str]:
    """Read ids from stdin.

    Lines may have Windows line endings, and the first may start with a byte order mark: some editors write both
    unasked. Bytes that are not UTF-8 are rejected later, together with the id.
    """
    text = read_stdin().decode("utf-8", "surrogateescape")
    if zero:
        return [id for id in text.split("\0") if id]
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    return [_unquoted(line) for line in lines if line.strip()]


def _unquoted(line: str) -> str:
    """Return the id on a line that `output.shown` wrote: ids that do not fit on one line are JSON strings."""
    if line[0] == line[-1] == '"':
        with suppress(ValueError):
            id = json.loads(line)
            if isinstance(id, str) and id and needs_quotes(id):
                return id
    return line


@dataclass
class Chosen:
    """The modules that a command works on: the named ones, all that `ls PREFIX` lists, or all that match a pattern."""

    args: Sequence[str] | None
    prefix: str | None
    glob: str | None
    zero: bool = False

    def __post_init__(self) -> None:
        if bool(self.args) + (self.prefix is not None) + (self.glob is not None) != 1:
            raise typer.BadParameter("give ids (- for stdin), --prefix PREFIX or --glob PATTERN")

    @property
    def named(self) -> list[str] | None:
        """The named ids, or None if a prefix or a pattern was given. Reads stdin."""
        return ids_from(self.args, self.zero) if self.args else None

    def ids(self, store: Store) -> list[str]:
        if self.glob is not None:
            return matching(store, self.glob)
        return sorted(store.list(self.prefix)) if self.prefix is not None else self.named or []


def matching(store: Store, glob: str) -> list[str]:
    """Return the ids that match a pattern: `*` matches anything including `/`, `?` one character, `[ab]` one of these."""
    import re
    from fnmatch import translate

    pattern = re.compile(translate(glob))  # not `fnmatch`: its case sensitivity depends on the operating system
    literal = re.split(r"[*?[]", glob, maxsplit=1)[0]
    return sorted(id for id in store.list(literal) if pattern.match(id))
