"""Paths, and what is taken for one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from distier.errors import ConfigError

# `host:port`, `host:port/db`, `user:password@host`: not what a path begins with.
_ADDRESS = re.compile(r"\s*[^./~\s]\S*:[0-9]+(/[0-9]*)?\s*|\s*[^./~@\s]?[^/@\s]*:[^@\s]*@\S+\s*")
_HOST_ALONE = re.compile(
    r"localhost|[0-9]+(\.[0-9]+){3}|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]?|[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+"
)


def _no_address(path: object) -> object:
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/", str(path)) or _ADDRESS.fullmatch(str(path)):
        raise ValueError("is the url or the address of a server; here goes a directory or a file (./name if it is one)")
    return path


def _absolute(path: Path) -> Path:
    # Not resolve(): a link such as `current -> v3` is the owner's choice and should stay visible.
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100


def expanded(path: str | Path) -> Path:
    """`~` in front made a directory. Raises `ConfigError` where nobody knows which."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no home directory for {str(path)!r}: write the whole path") from None


NO_HOME = Path("/nonexistent/distier")
NO_ARCHIVE = Path("/nonexistent/archive")
"""As `storage_tiers.cold.directory`: none is configured, and what is done with this configuration needs none."""


def default_home() -> Path:
    """Where the embedded server and its archive keep their data when nothing says otherwise. `NO_HOME` where this user has no
    home directory (HOME is not set, and nothing in the password file), which matters only to who needs one."""
    base = os.environ.get("XDG_DATA_HOME", "")
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "distier"
        return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "distier"  # noqa: PTH117
    except RuntimeError:
        return NO_HOME


LocalPath = Annotated[Path, BeforeValidator(_no_address), AfterValidator(_absolute)]


def is_url(text: str) -> bool:
    """Whether this is meant as a url, of whatever kind."""
    return re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:(//|/[^/])|\s*//|.*://", text) is not None


def check_directory(text: str) -> str:
    """A directory's name, which must not be what somebody means for a server. Raises `ConfigError`, which does not show it: it
    may have a password."""
    alone = _HOST_ALONE.fullmatch(text.strip()) is not None and not expanded(text).is_dir()
    if alone or _ADDRESS.fullmatch(text):
        raise ConfigError(
            "this looks like the address of a server: write redis://host:port/db; or ./name if it is the name of a directory, "
            "where an embedded server is to live"
        )
    if expanded(text).is_socket():
        raise ConfigError(f"{text} is a socket: write unix://{expanded(text).absolute()}")
    return text
