"""Eviction: which modules a full tier evicts, among the candidates that Redis returns."""
