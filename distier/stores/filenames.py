"""How file systems treat names, and how a directory archive stores its keys on one that treats different names as equal.

A key names one object, byte by byte. File systems differ from that. `README` and `readme` are one file on most disks of a
Mac and on every FAT. `é` has two Unicode forms, which some file systems treat as equal. A name may have fewer bytes than
expected (143 on eCryptfs). FAT and network shares do not allow `:`. If such names were used directly, modules would be
lost: a version of one module would be read as another's, and swept as its older version. So a file system is probed
before it is used.

On a case-insensitive file system each part of a key is stored in lower case. A part with capitals ends in `%~` and a bitmap
of the capitals in hexadecimal (bit 0 is the first character): `README.md` is stored as `readme.md%~3f`. A part with
characters other than ASCII (distier makes none) is stored as `%~~` and its bytes in hexadecimal. A directory with such
names contains a file `.names`, and is read accordingly on any file system.
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
"""Length of the longest name that is stored: that of a part of 201 characters, all capitals."""
_SIGNS = "!#$&()+,-.:;<=>@^_`|~%"
"""All characters of stored names other than letters and digits."""
_DOTTED = "."
_TWO_FORMS = ("\u00e9", "e\u0301")
# The cause is not the name, or the directory is not writable. The limits are then unknown, and the usual ones are assumed.
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
    """How parts of keys are stored: without capitals (`case`), and in ASCII only (`ascii`)."""

    case: bool = False
    ascii: bool = False

    def stored(self, part: str) -> str:
        """Return the file name for a part of a key. The names of two parts differ in more than case and Unicode form."""
        if not (self.case or self.ascii):
            return part
        if not part.isascii() or (not self.case and part.startswith(f"{_MARK}~")):
            return f"{_MARK}~{part.encode(errors='surrogateescape').hex()}"
        if self.case and (part != part.lower() or _MARK in part):
            bits = sum(1 << i for i, c in enumerate(part) if c.isupper())
            return f"{part.lower()}{_MARK}{bits:x}"
        return part

    def part(self, name: str) -> str:
        """Return the part of a key that is stored as `name`. A name in no stored form is returned unchanged."""
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
        """Return the limits for parts of keys, given the limits for file names."""
        return limits._replace(name_bytes=(limits.name_bytes - len(_MARK)) * 4 // 5) if self.case else limits


class Found(NamedTuple):
    """The properties of a file system: whether it ignores case and Unicode form, and its limits for names."""

    folds_case: bool
    folds_form: bool
    limits: Limits


def probe_names(directory: int, path_bytes: int) -> Found:
    """Probe the file system of a directory by creating files in it.

    Args:
        directory: A descriptor of the directory.
        path_bytes: The length of its path in bytes.
    """
    name_bytes = _limit(directory, "PC_NAME_MAX", 255)
    # Other programs open the files by their whole path, which ends in a NUL.
    key_bytes = min(1024, _limit(directory, "PC_PATH_MAX", 4096) - path_bytes - 2)
    nonce = secrets.token_hex(6)
    stem = f"P{nonce}"
    full = f"{stem}{_SIGNS}".ljust(min(name_bytes, _LONGEST_NAME) - 1, "x") + _DOTTED
    fault = _try(directory, full)
    if fault is None:
        folds_case, drops_dots = _is_same(directory, full, full.swapcase()), _is_same(directory, full, full[:-1])
        limits, written = Limits(key_bytes, name_bytes, "", drops_dots), full
    else:
        limits = Limits(key_bytes, name_bytes)
        if fault not in _CANNOT_TELL:
            limits = _find_limits(directory, stem, limits)
        written = stem
        folds_case = _try(directory, stem) is None and _is_same(directory, stem, stem.swapcase())
    with suppress(OSError):
        os.unlink(written, dir_fd=directory)
    return Found(folds_case, _folds_form(directory, nonce), limits)


def _limit(directory: int, name: str, usual: int) -> int:
    try:
        found = os.fpathconf(directory, name)
    except (OSError, ValueError):
        return usual
    return found if found > 0 else usual


def _try(directory: int, name: str) -> int | None:
    """Create a file of this name. Returns the error number if that is not possible."""
    try:
        os.close(os.open(name, _CREATE, 0o600, dir_fd=directory))
    except FileExistsError:
        return None
    except OSError as e:
        return e.errno or errno.EIO
    except (UnicodeError, ValueError):
        return errno.EILSEQ
    return None


def _accepts(directory: int, name: str) -> bool:
    if _try(directory, name) is not None:
        return False
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
    return True


def _is_same(directory: int, name: str, other: str) -> bool:
    """Return whether the file `name` is also found as `other`. No other file has either name, because they are random."""
    if name == other:
        return False
    try:
        os.stat(other, dir_fd=directory, follow_symlinks=False)
    except (OSError, UnicodeError, ValueError):
        return False
    return True


def _find_limits(directory: int, stem: str, limits: Limits) -> Limits:
    """Return the exact limits for names on a file system that rejects some names."""
    if not _accepts(directory, stem):
        return limits  # even a plain short name fails, so something else is wrong, which a put reports
    low, high = len(stem), min(limits.name_bytes, _LONGEST_NAME)
    if _accepts(directory, stem.ljust(high, "x")):
        low = limits.name_bytes
    else:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _accepts(directory, stem.ljust(middle, "x")) else (low, middle)
    refused = "".join(sign for sign in _SIGNS if not _accepts(directory, f"{stem}{sign}x"))
    dotted = stem + _DOTTED
    drops_dots = "." in refused or _try(directory, dotted) is not None or _is_same(directory, dotted, stem)
    with suppress(OSError):
        os.unlink(dotted, dir_fd=directory)
    return limits._replace(name_bytes=low, refused=refused, drops_dots=drops_dots)


def _folds_form(directory: int, nonce: str) -> bool:
    one, other = (f"{form}{nonce}" for form in _TWO_FORMS)
    fault = _try(directory, one)
    if fault is not None:
        return fault not in _CANNOT_TELL  # True for a file system that rejects such names entirely
    folds = _is_same(directory, one, other)
    with suppress(OSError):
        os.unlink(one, dir_fd=directory)
    return folds
