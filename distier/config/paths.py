"""Local paths in settings, and addresses of servers that are given as a path by mistake."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from distier.errors import ConfigError

# `host:port`, `host:port/db`, `user:password@host`: no path starts like this.
_ADDRESS = re.compile(r"\s*[^./~\s]\S*:[0-9]+(/[0-9]*)?\s*|\s*[^./~@\s]?[^/@\s]*:[^@\s]*@\S+\s*")
_HOST_ALONE = re.compile(
    r"localhost|[0-9]+(\.[0-9]+){3}|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]?|[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+"
)


def _no_address(path: object) -> object:
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/", str(path)) or _ADDRESS.fullmatch(str(path)):
        raise ValueError("is the URL or address of a server, but must be a path (write ./name if it is one)")
    return path


def _absolute(path: Path) -> Path:
    # Not resolve(): a link such as `current -> v3` is deliberate and stays visible.
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100


def expanded(path: str | Path) -> Path:
    """Return `path` with a leading `~` or `~user` expanded.

    Raises:
        ConfigError: That home directory is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no home directory for {str(path)!r}: write an absolute path") from None


NO_HOME = Path("/nonexistent/distier")
NO_ARCHIVE = Path("/nonexistent/archive")
"""Value of `storage_tiers.cold.directory` if no archive is configured and the operation needs none."""


def default_home() -> Path:
    """Return the default directory of the embedded server and its archive.

    Returns `NO_HOME` if the user has no home directory (HOME is not set, and the password file has no entry). That is an
    error only in a configuration that needs a home.
    """
    base = os.environ.get("XDG_DATA_HOME", "")
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "distier"
        return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "distier"  # noqa: PTH117
    except RuntimeError:
        return NO_HOME


LocalPath = Annotated[Path, BeforeValidator(_no_address), AfterValidator(_absolute)]


def is_url(text: str) -> bool:
    """Return whether `text` looks like a URL of any kind."""
    return re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:(//|/[^/])|\s*//|.*://", text) is not None


def check_directory(text: str) -> str:
    """Return `text` if it is the name of a directory.

    Raises:
        ConfigError: It looks like a server. The message omits an address, which may contain a password.
    """
    alone = _HOST_ALONE.fullmatch(text.strip()) is not None and not expanded(text).is_dir()
    if alone or _ADDRESS.fullmatch(text):
        raise ConfigError(
            "this looks like the address of a server: write redis://host:port/db, or ./name if it is the directory of an "
            "embedded server"
        )
    if expanded(text).is_socket():
        raise ConfigError(f"{text} is a socket: write unix://{expanded(text).absolute()}")
    return text
