"""The directory of a node's disk: where it may be, whose it is."""

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
    """The table of mounts of this process; empty where the system shows none there."""
    try:
        return Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def file_system(path: Path, table: str) -> str:
    """The type of the file system that `path` is on, by a table of mounts; empty if that does not tell."""
    real = str(path.resolve())
    best, found = -1, ""
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])
        inside = real == at or real.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= best:  # of two on one place the later one hides the other
            best, found = len(at), fields[2]
    return found


def boot_id() -> str:
    """Another text after each start of the machine; empty where the system has none: then writes are synced."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def prepare(directory: Path, *, table: str | None = None) -> Path:
    """The directory of the environment, made if need be, owner-only. Raises `ConfigError`."""
    key = "storage_tiers.warm.directory"
    inner = directory / SUBDIRECTORY
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = file_system(directory, mounts() if table is None else table)
        if kind in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"{key} = {directory} is on a network file system ({kind}): a memory-mapped file that several hosts write is "
                "damaged by them. Name a directory on a disk of this machine, or set storage_tiers.warm.placement to redis"
            )
        with suppress(FileExistsError):
            inner.mkdir(mode=0o700)
        found = inner.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(
                f"{inner} is not a directory of this user (uid {os.geteuid()}): others could write what is served. Remove it, "
                f"or name another {key}; processes of different users need a directory each"
            )
        if found.st_mode & 0o077:
            inner.chmod(0o700)
    except OSError as e:
        for path in (directory, *directory.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{key} = {directory}: {path} is a file, not a directory") from e
        raise ConfigError(
            f"{key} = {directory} cannot be used ({e.strerror}): name a directory that this user may write"
        ) from e
    return inner


def default_node(inner: Path) -> str:
    """The host's name and eight characters for the directory: two nodes on one host differ, processes of a node do not."""
    found = inner.stat()
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:48] or "node"
    return f"{host}-{hashlib.sha256(f'{found.st_dev}:{found.st_ino}:{inner.resolve()}'.encode()).hexdigest()[:8]}"
