"""Writing: one module, many, durable writes, and deletes."""

from __future__ import annotations
