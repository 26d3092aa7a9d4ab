"""The directory of an embedded server: its files, its owner, its socket."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from distier.errors import ConfigError

# A unix address has 108 bytes with its NUL on Linux, 104 on macOS; one limit for both keeps homes portable.
MAX_SOCKET_PATH_BYTES = 103
SOCKET_NAME = "server.sock"


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one embedded server, and the names in it. `path` is made absolute and real, so that
    all the names of one directory give equal homes."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.realpath(Path(self.path).expanduser())))

    @property
    def socket(self) -> Path:
        """What clients connect to: `server.sock`, through a short private link where the path of the home
        is too long for a unix address."""
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
    """Make the directories, owner-only. Raises `ConfigError` if the home is not ours to use."""
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if check_ours(home.path) & 0o077:
            _refuse_foreign(home.path)
            home.path.chmod(0o700)
        home.data.mkdir(mode=0o700, exist_ok=True)
        make_reachable(home)
    except OSError as e:
        raise ConfigError(f"cannot use {home.path} for the embedded server: {e}") from e


def check_ours(path: Path) -> int:
    """The mode of a directory of ours. Root is not excepted: its files would lock the owner out."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"{path} is not a directory")
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {info.st_uid}, and this process is user {os.geteuid()}: "
            "run as its owner, or name another directory"
        )
    return stat.S_IMODE(info.st_mode)


def _refuse_foreign(path: Path) -> None:
    """A home is closed to others. Closing a directory that has other uses would break them, so only an empty
    one, or one with nothing but our names in it, is closed without asking."""
    ours = {"data", "cold", "warm"}
    for entry in path.iterdir():
        if entry.name not in ours and not entry.name.startswith("server."):
            raise ConfigError(
                f"{path} is open to other users and holds other things ({entry.name!r}): "
                "name a new directory, or close it with `chmod 700`"
            )


def _fits(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES


def _short_link(path: Path) -> Path:
    """Where a link to a home with a long path goes. The socket itself stays in the home: the link may vanish
    at logout or by a cleaner of temporary files, and differ between processes; each makes its own again."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    uid = os.geteuid()
    bases = [Path(tempfile.gettempdir()) / f"distier-{uid}", Path("/tmp") / f"distier-{uid}"]  # noqa: S108  owner-checked
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == uid:  # `su` keeps another's
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
    if check_ours(link.parent) & 0o077:
        link.parent.chmod(0o700)
    try:
        link.symlink_to(home.path)
    except FileExistsError:
        if link.readlink() != home.path:
            raise ConfigError(f"{link} should be a link to {home.path}: remove it") from None


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def has_socket(home: Home) -> bool:
    return os.path.lexists(home.path / SOCKET_NAME)


def no_socket(home: Home, pid: int | None) -> str:
    whom = f"process {pid} (`kill {pid}`)" if pid else "its process"
    return (
        f"its socket {home.path / SOCKET_NAME} is gone (removed by a cleaner of temporary files?): end {whom}, which keeps its "
        "data, and the next call starts it again"
    )
