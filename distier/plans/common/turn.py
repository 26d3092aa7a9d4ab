"""Taking turns at one module with the durable writes that are under way."""

from __future__ import annotations

from distier.effects import Plan
from distier.errors import Unavailable
from distier.plans.common.backoff import Patience
from distier.plans.common.namespace import Namespace

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
                f"too many conditional or durable writes of module {self._id!r} at once; this call changed nothing, try again"
            )
        yield from self._patience.wait()
        return ""
