"""What all plans share: commands and their replies, contents and their copies, leases, what a process knows."""

from __future__ import annotations
