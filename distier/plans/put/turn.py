"""Taking turns at one module with the durable writes that are under way."""

from __future__ import annotations

from distier.effects import Plan
from distier.errors import Conflict, Unavailable
from distier.plans.common.backoff import Patience
from distier.plans.common.namespace import Namespace

FENCED_MAX = 4
BUSY_MAX = 256
TURN_MAX_S = 0.05
PATIENCE_SHARE = 0.5
PATIENCE_MAX_S = 2.0
"""How long to wait for one holder of a position: at most half of the call's deadline, so that as much is left for its own
steps."""


class Turn:
    """Waiting for those who hold a position in front of a module: durable writes that are under way.

    A holder that does not end within the patience of this call may be dead, so it is passed. It loses its position by that, and
    can no longer tell what became of its write.
    """

    def __init__(self, space: Namespace, id: str) -> None:
        self._space, self._id = space, id
        self._patience: Patience | None = None  # made when it is needed: most writes meet nobody

    def wait(self, holder: str) -> Plan[str]:
        """Wait for a moment. Returns the holder that is to be passed, empty for none. Raises `Unavailable`."""
        if self._patience is None:
            limit_s = min(self._space.config.deadline_ms / 1000 * PATIENCE_SHARE, PATIENCE_MAX_S)
            self._patience = Patience(limit_s, TURN_MAX_S)
        if self._patience.is_over(holder):
            return holder
        if self._patience.waits >= BUSY_MAX:
            raise Unavailable(
                f"too many conditional or durable writes of module {self._id!r} at once; this one was not tried"
            )
        yield from self._patience.wait()
        return ""


def conflict(id: str, version: str, expected: str) -> Conflict:
    """Return the error of a write that expected another version. `version` is the present one, empty for none."""
    now = f"is at version {version}" if version else "does not exist"
    return Conflict(f"module {id!r} {now}, the call expected {expected if expected != '-' else 'none'}")


def unsure(id: str) -> str:
    """Return the message of a write whose object may have been adopted."""
    return f"module {id!r} was changed by others during the write, which may or may not have been applied for a while; read it"


def unknown(id: str, version: str) -> str:
    """Return the message of a write that may have been applied before."""
    return (
        f"the connection was lost during a write of module {id!r}, and it is not known whether it was applied before version "
        f"{version}, which is there now: read the module, then decide"
    )


def unsettled(id: str) -> str:
    """Return the message of a write that found no room when it was sent again, after a reply to it was lost."""
    return (
        f"the connection was lost during a write of module {id!r}, and there was no room when it was sent again: it is not "
        "known whether it was applied before. Read the module, then decide"
    )
