"""The errors of distier, grouped by what the caller should do about them.

    Unavailable   try again later: a server is down, slow, full or changing hands
    Conflict      read again: somebody else changed the module first
    Corrupt       a copy is damaged: read again to heal from another copy, or run `distier fsck`
    Invalid       fix the call: it can never succeed as it is

A miss is a value (`None`, `False`), never an error; a fault is an error, never a miss. Messages carry the
module id and what to do next, and never a password or content; causes are chained (`raise ... from`).
"""

from __future__ import annotations


class DistierError(Exception):
    """Base of every error that distier raises on purpose."""


class Unavailable(DistierError):
    """A part that is needed cannot answer now. Nothing was lost; the same call may succeed later."""


class RedisUnavailable(Unavailable):
    """Redis did not answer within the deadline, or refused the connection."""


class ArchiveUnavailable(Unavailable):
    """The archive (S3 or the directory) did not answer within the deadline, or refused."""


class DeadlineExceeded(Unavailable):
    """The call's one deadline passed before it was done. A write may or may not have been applied:
    repeat it with the same `write_id`, or read `where(id)`."""


class ArchiveTimeout(ArchiveUnavailable, DeadlineExceeded):
    """The call's deadline passed while it waited for the archive, which may be slow or silent."""


class Full(Unavailable):
    """No room: Redis is at `maxmemory`, or the budgets are full of versions that are not archived yet."""


class Recovering(Unavailable):
    """The shard lost its epoch (failover, restart or loss of Redis) and is being recovered."""


class Conflict(DistierError):
    """The module's version is not the one that the call expected. Read again, then decide."""


class Corrupt(DistierError):
    """Bytes do not match their checksum, length or format."""


class OutOfStep(Corrupt):
    """A reply, or a record, is that of another module. Nothing of it was believed. Something else may have written to a
    connection of this process, or taken from it: the connections were ended, and the same call succeeds at once. If it does
    not, the record is damaged: run `distier fsck`."""


class Invalid(DistierError, ValueError):
    """The call can never succeed as it is: a bad id, content, option or configuration."""


class NotFound(Invalid, KeyError):
    """The named module does not exist, and the call needs one (`get` and `where` answer `None` instead)."""

    def __str__(self) -> str:  # KeyError's own would print the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigError(Invalid):
    """A configuration value is unknown or impossible; the message names the key and where it came from."""
