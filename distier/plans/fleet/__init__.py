"""What runs without a caller: leases of shards, quotas, nodes, maintenance, sweeps, statistics."""

from __future__ import annotations
