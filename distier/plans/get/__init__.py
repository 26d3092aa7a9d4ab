"""Reading modules: one, many, where one is, and scans of the ids."""

from __future__ import annotations
