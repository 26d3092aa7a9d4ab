"""The near cache, which keeps modules in the process itself."""

from __future__ import annotations

from distier.near.cache import ENTRY_BYTES, NearCache, Ticket
from distier.near.facade import Near, Reading
from distier.near.tracker import Tracker

__all__ = [
    "ENTRY_BYTES",
    "Near",
    "NearCache",
    "Reading",
    "Ticket",
    "Tracker",
]
