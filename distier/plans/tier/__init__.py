"""Moves between tiers: making room, writing back, promoting, demoting."""

from __future__ import annotations
