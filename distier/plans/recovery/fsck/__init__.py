"""`distier fsck`: compare records, sets, accounts, copies and the archive, and repair what can be repaired."""

from __future__ import annotations
