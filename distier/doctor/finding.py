"""The result of one check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from distier.config import Config, format_size
from distier.plans.common.namespace import Namespace

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result: what was found, and what to do about it unless the status is `ok`."""

    check: str
    status: Status
    found: str
    advice: str = ""


Findings = Iterator[Finding]


def size_text(size_bytes: int) -> str:
    """Return a size rounded to a whole unit: 2148864123 -> `2049 MiB`."""
    unit = 1024 ** (2 if size_bytes >= 1024**2 else 1 if size_bytes >= 1024 else 0)
    return re.sub(r"(?<=\d)(?=[A-Za-z])", " ", format_size(round(size_bytes / unit) * unit))


def counted_text(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def bare_space(config: Config) -> Namespace:
    from distier.domain.tokens import token_counter

    return Namespace(config, token_counter("estimate"), sidecar=False)
