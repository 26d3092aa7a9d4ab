"""The generated pages of the documentation: `python -m docs.generate` writes them, tests compare them with the code.

A page is a function that returns its text. It reads the code that it describes and nothing else, so that the same code always
gives the same page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import cli, config, errors, keyspace

DOCS = Path(__file__).parent.parent

PAGES: dict[str, Callable[[], str]] = {
    "CONFIG.md": config.render,
    "ERRORS.md": errors.render,
    "KEYSPACE.md": keyspace.render,
    "reference/cli.md": cli.render,
}
"""By their path below `docs/`."""
