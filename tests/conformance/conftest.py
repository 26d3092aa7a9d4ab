"""The fixtures of `archives.py` for every test here."""

from .archives import archive, backend

__all__ = ["archive", "backend"]
