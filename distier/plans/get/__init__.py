"""Reading: one module, many, where a module is, and walks through the ids."""

from __future__ import annotations
