"""Which files of a directory tree `put DIR` takes: it skips files that git would ignore, and never reads outside the tree.

The first rule that matches a path decides. `.distierignore` files come first, then `.gitignore` files, then the defaults.
The files of each kind are read from the path's own directory upwards, to the root of the git repository that contains
the tree. Within a file the last matching line decides, as in git. An excluded directory is not entered.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

DEFAULTS = (
    ".git", ".hg", ".svn", ".jj", ".env", ".env.*", "!.env.example", "!.env.sample", "!.env.template", "node_modules/",
    "__pycache__/", "*.py[cod]", ".venv/", ".tox/", ".nox/", ".cache/", ".*_cache/", ".ipynb_checkpoints/", ".direnv/",
    ".DS_Store", "Thumbs.db", "*.sw[op]", "*~",
)  # fmt: skip
IGNORE_FILES = (".distierignore", ".gitignore")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """The patterns of one file, for paths below `base`."""

    base: Path
    name: str
    spec: GitIgnoreSpec

    def decide(self, path: Path, is_directory: bool) -> bool | None:
        """Return whether `path` is excluded, or None if no line matches it."""
        inside = path.relative_to(self.base).as_posix()
        return self.spec.check_file(f"{inside}/" if is_directory else inside).include


def rules_of(base: Path, name: str, lines: Iterable[str], say: Say) -> Rules:
    """Compile the lines of one file. Lines that are not valid patterns are reported and skipped."""
    import re

    from pathspec import GitIgnoreSpec

    good = []
    for line in lines:
        try:
            GitIgnoreSpec.from_lines([line])
        except (ValueError, re.error):
            say(f"distier: {base / name}: {line!r} is not a pattern; ignored")
        else:
            good.append(line)
    return Rules(base, name, GitIgnoreSpec.from_lines(good))


def _read_rules(base: Path, say: Say) -> Iterator[Rules]:
    for name in IGNORE_FILES:
        path = base / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                continue
            text = path.read_bytes().decode("utf-8", "surrogateescape")  # as file names, see os.fsdecode
        except FileNotFoundError:
            continue
        except OSError as e:
            say(f"distier: cannot read {path}: {e.strerror}")
            continue
        yield rules_of(base, name, text.removeprefix("\ufeff").splitlines(), say)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # reading it reports why


@dataclass
class Tree:
    """A walk over the files below `root`. `left_out` counts the excluded paths by the rule that excluded them."""

    root: Path
    exclude: list[str]
    say: Say
    ignore: bool = True
    left_out: Counter[str] = field(default_factory=Counter)

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Yield `(path in the tree, file to read)` for every file to put, sorted within each directory."""
        self._top = self.root.resolve()
        self._defaults = rules_of(self._top, "", DEFAULTS, self.say)
        self._rules_by_directory = {self._top.parent: self._above()}
        yield from self._below(Path(), self._top, (self._top,))

    def _above(self) -> tuple[Rules, ...]:
        """Return the rules of the directories above, if the tree is inside a git repository that does not ignore it."""
        above: list[Rules] = []
        for directory in self._top.parents if not (self._top / ".git").exists() else ():
            above += _read_rules(directory, self.say)
            if (directory / ".git").exists():
                return () if any(rule.decide(self._top, True) for rule in above) else tuple(above)
        return ()

    def _rules(self, directory: Path) -> tuple[Rules, ...]:
        """Return the rules for the entries of a directory, the nearest first."""
        if (known := self._rules_by_directory.get(directory)) is None:
            known = (*_read_rules(directory, self.say), *self._rules(directory.parent))
            self._rules_by_directory[directory] = known
        return known

    def _below(self, inside: Path, real: Path, chain: tuple[Path, ...]) -> Iterator[tuple[Path, Path]]:
        """Yield the files below one directory.

        Args:
            inside: The directory's path in the tree.
            real: The directory to read, after following symbolic links.
            chain: `real` and the real directories above it, to detect loops.
        """
        try:
            entries = sorted(os.scandir(real), key=lambda e: e.name)
        except OSError as e:
            self.say(f"distier: skipped {self.root / inside}: {e.strerror}")
            return
        directories: list[tuple[Path, Path]] = []
        for entry in entries:
            name = inside / entry.name
            if (
                self._is_excluded(name, real / entry.name, _is_directory(real / entry.name))
                or (target := self._target(entry, name, real)) is None
            ):
                continue
            if not _is_directory(target):
                if target.is_file():
                    yield name, target
                else:
                    self.say(f"distier: skipped {self.root / name}: not a regular file")
            elif target in chain:
                self.say(f"distier: skipped {self.root / name}: a symbolic link to a directory that contains it")
            else:
                directories.append((name, target))
        for name, target in directories:
            yield from self._below(name, target, (*chain, target))

    def _target(self, entry: os.DirEntry[str], name: Path, real: Path) -> Path | None:
        """Return the file or directory that an entry of `real` refers to, or None if it must not be read.

        A link to an excluded file does not include it again.
        """
        path = real / entry.name
        if not entry.is_symlink():
            return path
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            self.say(f"distier: skipped {self.root / name}: a broken symbolic link")
            return None
        if not target.is_relative_to(self._top):
            self.say(f"distier: refused {self.root / name}: a symbolic link to a path outside the tree")
            return None
        way = [target, *target.parents]
        if any(self._rule_of(p.relative_to(self._top), p, _is_directory(p)) for p in way[: way.index(self._top)]):
            self.say(f"distier: refused {self.root / name}: a symbolic link to an excluded path")
            return None
        return target

    def _is_excluded(self, name: Path, path: Path, is_directory: bool) -> bool:
        by = self._rule_of(name, path, is_directory)
        if by:
            self.left_out[by] += 1
        return bool(by)

    def _rule_of(self, name: Path, path: Path, is_directory: bool) -> str:
        """Return the option, file or default that excludes `path`; empty if it is included."""
        if any(fnmatchcase(name.as_posix(), g) or fnmatchcase(name.name, g.rstrip("/")) for g in self.exclude):
            return "--exclude"
        if not self.ignore:
            return ""
        rules = self._rules(path.parent)
        for kind in IGNORE_FILES:
            for rule in rules:
                if rule.name == kind and (out := rule.decide(path, is_directory)) is not None:
                    return kind if out else ""
        return path.name if self._defaults.decide(path, is_directory) else ""

    def summary(self) -> str:
        """Return a line with the excluded paths and how to include them; empty if there are none."""
        if not self.left_out:
            return ""
        named = ", ".join(f"{n} {by}" if n > 1 else by for by, n in sorted(self.left_out.items()))
        more = (
            ""
            if set(self.left_out) == {"--exclude"}
            else " (--no-ignore includes them; a .distierignore file can do so for some)"
        )
        return f"excluded: {named}{more}"
