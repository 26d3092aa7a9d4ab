"""The directory of an embedded server: its files, owner and socket."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from distier.errors import ConfigError

# A unix socket address has 108 bytes including its NUL on Linux, and 104 on macOS. One limit for both keeps homes portable.
MAX_SOCKET_PATH_BYTES = 103
SOCKET_NAME = "server.sock"


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one embedded server and its file names.

    `path` is resolved to an absolute path without links, so that all names of one directory give equal homes.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.realpath(Path(self.path).expanduser())))

    @property
    def socket(self) -> Path:
        """The socket that clients connect to. If its path is too long for a unix socket address, it goes through a short
        private link."""
        direct = self.path / SOCKET_NAME
        return direct if _fits(direct) else _short_link(self.path) / SOCKET_NAME

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def archive(self) -> Path:
        return self.path / "cold"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    @property
    def pidfile(self) -> Path:
        return self.path / "server.pid"

    @property
    def lockfile(self) -> Path:
        return self.path / "server.lock"

    @property
    def config(self) -> Path:
        return self.path / "server.conf"


def prepare(home: Home) -> None:
    """Create the directories with access for the owner only.

    Raises:
        ConfigError: The home belongs to another user or cannot be used.
    """
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if check_owner(home.path) & 0o077:
            _check_only_our_files(home.path)
            home.path.chmod(0o700)
        home.data.mkdir(mode=0o700, exist_ok=True)
        make_reachable(home)
    except OSError as e:
        raise ConfigError(f"cannot use {home.path} for the embedded server: {e}") from e


def check_owner(path: Path) -> int:
    """Return the mode of a directory that this user owns.

    Root is no exception, because the owner could not access the files that root creates.

    Raises:
        ConfigError: `path` is not a directory, or belongs to another user.
    """
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"{path} is not a directory")
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {info.st_uid}, but this process runs as user {os.geteuid()}: "
            "run it as the owner, or choose another directory"
        )
    return stat.S_IMODE(info.st_mode)


def _check_only_our_files(path: Path) -> None:
    """Raise `ConfigError` if the directory contains other files than a home's.

    A home is closed to other users. Closing a directory that has other uses would break them, so only a directory that
    is empty or contains just the files of a home is closed automatically.
    """
    ours = {"data", "cold", "warm"}
    for entry in path.iterdir():
        if entry.name not in ours and not entry.name.startswith("server."):
            raise ConfigError(
                f"{path} is accessible to other users and contains other files ({entry.name!r}): "
                "choose a new directory, or close it with `chmod 700`"
            )


def _fits(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES


def _short_link(path: Path) -> Path:
    """Return the path of a link to a home whose own path is too long.

    The socket itself stays in the home. The link may disappear at logout or be removed with old temporary files, and it
    may differ between processes. Each process creates its link again.
    """
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    uid = os.geteuid()
    bases = [Path(tempfile.gettempdir()) / f"distier-{uid}", Path("/tmp") / f"distier-{uid}"]  # noqa: S108  owner-checked
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == uid:  # `su` may keep another user's
        bases.insert(0, Path(runtime) / "distier")
    for base in bases:
        if _fits(base / name / SOCKET_NAME):
            return base / name
    raise ConfigError(f"{path} is too long for a unix socket, and no short temporary directory was found")


def make_reachable(home: Home) -> None:
    link = home.socket.parent
    if link == home.path:
        return
    link.parent.mkdir(mode=0o700, exist_ok=True)
    if check_owner(link.parent) & 0o077:
        link.parent.chmod(0o700)
    try:
        link.symlink_to(home.path)
    except FileExistsError:
        if link.readlink() != home.path:
            raise ConfigError(f"{link} should be a link to {home.path}, but is not: remove it") from None


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def has_socket(home: Home) -> bool:
    return os.path.lexists(home.path / SOCKET_NAME)


def lost_socket_message(home: Home, pid: int | None) -> str:
    process = f"process {pid} (`kill {pid}`)" if pid else "its process"
    return (
        f"its socket {home.path / SOCKET_NAME} is gone (removed as an old temporary file?): end {process}, which keeps its "
        "data, and the next call restarts it"
    )
