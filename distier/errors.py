"""The errors of distier, grouped by what the caller should do about them.

    Unavailable   try again later: a server is down, slow, full or failing over
    Conflict      read again: another writer changed the module first
    Corrupt       a copy is damaged: read again to heal from another copy, or run `distier fsck`
    Invalid       fix the call: it can never succeed unchanged

A miss is a value (`None`, `False`), never an error; a fault is an error, never a miss. Messages contain the module id and
what to do next, and never a password or content. Causes are chained (`raise ... from`).
"""

from __future__ import annotations


class DistierError(Exception):
    """Base class of the errors that distier raises."""


class Unavailable(DistierError):
    """A required service is unavailable now. Nothing was lost, and the same call may succeed later."""


class RedisUnavailable(Unavailable):
    """Redis did not reply within the deadline, or refused the connection."""


class ArchiveUnavailable(Unavailable):
    """The archive (S3 or the directory) did not reply within the deadline, or refused the request."""


class NeedsRestore(ArchiveUnavailable):
    """The archive has the module in a storage class (Glacier) that it cannot read at once. Nothing was lost.

    A repeated read fails in the same way until `distier restore ID --wait` (or `Store.restore`) has made a readable copy.
    """


class DeadlineExceeded(Unavailable):
    """The call's deadline passed before it finished.

    A write may or may not have been applied: repeat it with the same `write_id`, or check `where(id)`.
    """


class ArchiveTimeout(ArchiveUnavailable, DeadlineExceeded):
    """The call's deadline passed while it waited for the archive, which may be slow or silent."""


class Full(Unavailable):
    """There is no room: Redis is at `maxmemory`, or the budgets are full of dirty versions."""


class Recovering(Unavailable):
    """The shard lost its epoch (failover, restart or loss of Redis) and is being recovered."""


class Conflict(DistierError):
    """The module's version is not the expected one. Read the module again before retrying."""


class Corrupt(DistierError):
    """Bytes do not match their checksum, length or format."""


class OutOfStep(Corrupt):
    """A reply or a record belongs to another module, and was discarded.

    Other code may have written to a connection of this process, or read from it. The connections were closed, so the
    same call should succeed at once. If it does not, the record is damaged: run `distier fsck`.
    """


class Invalid(DistierError, ValueError):
    """The call can never succeed unchanged: an id, a content, an option or the configuration is invalid."""


class NotFound(Invalid, KeyError):
    """The module does not exist, and the call needs it. (`get` and `where` return `None` instead.)"""

    def __str__(self) -> str:  # KeyError.__str__ returns the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigError(Invalid):
    """A setting is unknown or invalid. The message names the key and its source."""
