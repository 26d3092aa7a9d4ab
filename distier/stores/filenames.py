"""What a file system does to names, and how a directory archive writes its keys on one that takes different names for one.

A key names one object, byte by byte. A file system may disagree: `README` and `readme` are one file on most disks of a Mac and
on every FAT, `é` has two forms that some take for one, a name may be shorter than anybody would think (143 bytes on eCryptfs),
and FAT and network shares know no `:`. Taken as they come, such names lose modules: a version of one is read as another's, and
swept as its older one. So a file system is tried before it is used.

Where letters of both cases are one, each part of a key is written in lower case, and those that have capitals end in `%~` and a
bitmap of them in hexadecimal (bit 0 is the first character): `README.md` is `readme.md%~3f`. A part with other characters than
ASCII (distier makes none) is `%~~` and its bytes in hexadecimal. A directory that is written so has a file `.names`, and is
read so wherever it is moved to.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from typing import NamedTuple

from distier.domain.archived import Limits

_MARK = "%~"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_NAME = 253
"""Of what is written here: a part of 201 characters, all of them capitals."""
_SIGNS = "!#$&()+,-.:;<=>@^_`|~%"
"""All that stands in names beside letters and digits."""
_DOTTED = "."
_TWO_FORMS = ("\u00e9", "e\u0301")
# Not the name is at fault, or nothing can be written here: it is not known what names may be, and so not doubted.
_CANNOT_TELL = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
}


class Names(NamedTuple):
    """How parts of keys are written. `case`: without capitals; `ascii`: without other characters than ASCII."""

    case: bool = False
    ascii: bool = False

    def stored(self, part: str) -> str:
        """The file's name for a part of a key; no two parts have the same, in any case and form."""
        if not (self.case or self.ascii):
            return part
        if not part.isascii() or (not self.case and part.startswith(f"{_MARK}~")):
            return f"{_MARK}~{part.encode(errors='surrogateescape').hex()}"
        if self.case and (part != part.lower() or _MARK in part):
            bits = sum(1 << i for i, c in enumerate(part) if c.isupper())
            return f"{part.lower()}{_MARK}{bits:x}"
        return part

    def part(self, name: str) -> str:
        """The part of a key that is stored as `name`; a name that was never written so stands for itself."""
        if not (self.case or self.ascii):
            return name
        base, mark, code = name.rpartition(_MARK)
        with suppress(ValueError):
            if mark and code.startswith("~") and not base:
                return bytes.fromhex(code[1:]).decode(errors="surrogateescape")
            if mark and self.case:
                bits = int(code, 16)
                return "".join(c.upper() if bits >> i & 1 else c for i, c in enumerate(base.lower()))
        return name.lower() if self.case else name

    def limits(self, limits: Limits) -> Limits:
        """What is left of `limits` for the parts of keys."""
        return limits._replace(name_bytes=(limits.name_bytes - len(_MARK)) * 4 // 5) if self.case else limits


class Found(NamedTuple):
    """What a file system does. `folds_case`, `folds_form`: names that differ in it are one file."""

    folds_case: bool
    folds_form: bool
    limits: Limits


def probe_names(directory: int, path_bytes: int) -> Found:
    """Try the file system of a directory, which is at a path of `path_bytes`, with names in it."""
    name_bytes = _ask(directory, "PC_NAME_MAX", 255)
    # Others open what is here by its whole path, which ends in a NUL.
    key_bytes = min(1024, _ask(directory, "PC_PATH_MAX", 4096) - path_bytes - 2)
    write_id = secrets.token_hex(6)  # 12 characters, which begin with a letter
    stem = f"P{write_id}"
    full = f"{stem}{_SIGNS}".ljust(min(name_bytes, _LONGEST_NAME) - 1, "x") + _DOTTED
    fault = _try(directory, full)
    if fault is None:
        folds_case, drops_dots = _other(directory, full, full.swapcase()), _other(directory, full, full[:-1])
        limits, written = Limits(key_bytes, name_bytes, "", drops_dots), full
    else:
        limits = Limits(key_bytes, name_bytes)
        if fault not in _CANNOT_TELL:
            limits = _search(directory, stem, limits)
        written = stem
        folds_case = _try(directory, stem) is None and _other(directory, stem, stem.swapcase())
    with suppress(OSError):
        os.unlink(written, dir_fd=directory)
    return Found(folds_case, _folds_form(directory, write_id), limits)


def _ask(directory: int, name: str, usual: int) -> int:
    try:
        found = os.fpathconf(directory, name)
    except (OSError, ValueError):
        return usual
    return found if found > 0 else usual


def _try(directory: int, name: str) -> int | None:
    """Make a file of this name; the error if that is not possible."""
    try:
        os.close(os.open(name, _CREATE, 0o600, dir_fd=directory))
    except FileExistsError:
        return None
    except OSError as e:
        return e.errno or errno.EIO
    except (UnicodeError, ValueError):
        return errno.EILSEQ
    return None


def _takes(directory: int, name: str) -> bool:
    if _try(directory, name) is not None:
        return False
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
    return True


def _other(directory: int, name: str, other: str) -> bool:
    """Whether the file `name` is found as `other` too. Both are of this call alone: no other file has such a name."""
    if name == other:
        return False
    try:
        os.stat(other, dir_fd=directory, follow_symlinks=False)
    except (OSError, UnicodeError, ValueError):
        return False
    return True


def _search(directory: int, stem: str, limits: Limits) -> Limits:
    """What exactly a name may be, where not all names may."""
    if not _takes(directory, stem):
        return limits  # not even a plain short one: something else is wrong, and a put will say what
    low, high = len(stem), min(limits.name_bytes, _LONGEST_NAME)
    if _takes(directory, stem.ljust(high, "x")):
        low = limits.name_bytes
    else:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _takes(directory, stem.ljust(middle, "x")) else (low, middle)
    refused = "".join(sign for sign in _SIGNS if not _takes(directory, f"{stem}{sign}x"))
    dotted = stem + _DOTTED
    drops_dots = "." in refused or _try(directory, dotted) is not None or _other(directory, dotted, stem)
    with suppress(OSError):
        os.unlink(dotted, dir_fd=directory)
    return limits._replace(name_bytes=low, refused=refused, drops_dots=drops_dots)


def _folds_form(directory: int, write_id: str) -> bool:
    one, other = (f"{form}{write_id}" for form in _TWO_FORMS)
    fault = _try(directory, one)
    if fault is not None:
        return fault not in _CANNOT_TELL  # a file system that takes no such names at all
    folds = _other(directory, one, other)
    with suppress(OSError):
        os.unlink(one, dir_fd=directory)
    return folds
