"""The directory of a node's copies: its file system, owner and permissions."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path

from distier.errors import ConfigError

SUBDIRECTORY = "copies"
NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "fuse.blobfuse", "fuse.ceph", "fuse.davfs",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    "fuse.vmhgfs-fuse",
})  # fmt: skip


def mounts() -> str:
    """Return the mount table of this process; empty if the system has none in /proc."""
    try:
        return Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def file_system(path: Path, table: str) -> str:
    """Return the type of the file system of `path`, by a mount table; empty if it is not in the table."""
    real = str(path.resolve())
    best, found = -1, ""
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])
        inside = real == at or real.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= best:  # a later mount at the same path hides an earlier one
            best, found = len(at), fields[2]
    return found


def boot_id() -> str:
    """Return a text that changes with each boot of the machine. If the system has none it is empty, and writes are synced."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def prepare(directory: Path, *, table: str | None = None) -> Path:
    """Create the directory of the environment if necessary, accessible to the owner only, and return it.

    Args:
        directory: The configured directory.
        table: The mount table; by default that of this process.

    Raises:
        ConfigError: It cannot be used, belongs to another user, or is on a network file system.
    """
    key = "storage_tiers.warm.directory"
    inner = directory / SUBDIRECTORY
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = file_system(directory, mounts() if table is None else table)
        if kind in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"{key} = {directory} is on a network file system ({kind}): a memory-mapped file gets damaged if several hosts "
                "write it. Choose a directory on a local disk, or set storage_tiers.warm.placement to redis"
            )
        with suppress(FileExistsError):
            inner.mkdir(mode=0o700)
        found = inner.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(
                f"{inner} is not a directory of this user (uid {os.geteuid()}), so its owner could change the copies. Remove "
                f"it, or set another {key}; processes of different users need separate directories"
            )
        if found.st_mode & 0o077:
            inner.chmod(0o700)
    except OSError as e:
        for path in (directory, *directory.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{key} = {directory}: {path} is a file, not a directory") from e
        raise ConfigError(
            f"{key} = {directory} cannot be used ({e.strerror}): choose a directory that this user can write to"
        ) from e
    return inner


def default_node(inner: Path) -> str:
    """Return the node's default name: the host name and eight characters of a hash of the directory.

    Two nodes on one host have different names; all processes of a node have the same.
    """
    found = inner.stat()
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:48] or "node"
    return f"{host}-{hashlib.sha256(f'{found.st_dev}:{found.st_ino}:{inner.resolve()}'.encode()).hexdigest()[:8]}"
