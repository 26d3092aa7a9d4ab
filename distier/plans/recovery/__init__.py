"""After a restart, a failover or a loss of Redis: epochs, adoption, rescue, and the checks of `fsck`."""

from __future__ import annotations
