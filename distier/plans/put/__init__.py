"""Writing modules: one, many, durable writes, and deletes."""

from __future__ import annotations
