"""Replace a function wherever it is used: plans import each other's functions by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def replace_in(package: str, original: Any, fake: Any, set_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace `original` by `fake` in every loaded module of `package`. Fails if no module uses it."""
    found = [
        (module, name)
        for path, module in list(sys.modules.items())
        if path == package or path.startswith(f"{package}.")
        for name, value in list(vars(module).items())
        if value is original
    ]
    assert found, f"no module of {package} uses {original!r}"
    for module, name in found:
        set_(module, name, fake)
