"""Decisions as pure functions over values: which modules to evict, how to divide budgets and shards, how to transform."""
