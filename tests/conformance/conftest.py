"""The fixtures of `archives.py`, for all tests in this folder."""

from .archives import archive, backend

__all__ = ["archive", "backend"]
