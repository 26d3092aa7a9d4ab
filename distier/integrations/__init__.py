"""Adapters that let other projects' programs store in distier. Each is a module of its own, and needs its extra of distier.

Nothing in distier imports them, and they import their host project only when they are imported themselves.
"""
