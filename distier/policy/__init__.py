"""Decisions as pure functions over values: what to evict, admit, predict and transform, never how."""
