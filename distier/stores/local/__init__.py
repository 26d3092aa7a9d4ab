"""Warm copies on a node's own disk."""

from __future__ import annotations

from distier.stores.local.directory import default_node, file_system, prepare
from distier.stores.local.store import LocalStore

__all__ = [
    "LocalStore",
    "default_node",
    "file_system",
    "prepare",
]
