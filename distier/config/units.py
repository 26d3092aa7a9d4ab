"""Durations, sizes and numbers as written in settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

DURATION_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
# Descending, so that the first unit that divides a number gives the shortest spelling.
SIZE_BYTES = {
    unit: base**power
    for power in (4, 3, 2, 1)
    for base, unit in ((1024, " KMGT"[power] + "iB"), (1000, " kMGT"[power] + "B"))
} | {"B": 1}
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
MAX_INT = 2**53  # larger numbers lose digits in Lua and JSON


def _quantity(value: object, units: Mapping[str, int], bare: int, example: str) -> int:
    """Parse a quantity: `"1.5h"` -> 5400000 with `DURATION_MS`. A number without a unit is multiplied by `bare`."""
    text = "" if isinstance(value, bool) else str(value)
    match = _QUANTITY.fullmatch(text) if isinstance(value, str | int | float) else None
    if not match:
        raise ValueError(f"not {example}")
    by_name = {name.lower(): factor for name, factor in units.items()}
    factor = by_name.get(match[2].lower()) if match[2] else bare
    if factor is None:
        raise ValueError(f"unknown unit {match[2]!r}: write {example}")
    number = int(Decimal(match[1]) * factor)
    if number > MAX_INT:
        raise ValueError("too large")
    return number


def _format(number: int, units: Mapping[str, int]) -> str:
    unit = next(u for u, factor in units.items() if number % factor == 0 and (number or factor == 1))
    return f"{number // units[unit]}{unit}"


def parse_duration_ms(value: object) -> int:
    """Parse `"24h"`, `"500ms"` or a number of seconds.

    Returns:
        The duration in milliseconds.

    Raises:
        ValueError: `value` is not a duration, or is larger than `MAX_INT`.
    """
    return _quantity(value, DURATION_MS, 1000, "a duration such as 500ms, 60s, 15m, 24h, 7d or seconds")


def format_duration(ms: int) -> str:
    """Return the shortest spelling that `parse_duration_ms` reads back exactly: 86400000 -> `"1d"`."""
    return _format(ms, DURATION_MS)


def parse_size_bytes(value: object) -> int:
    """Parse `"256MiB"` (powers of 1024), `"10MB"` (powers of 1000) or a number of bytes.

    Returns:
        The size in bytes.

    Raises:
        ValueError: `value` is not a size, or is larger than `MAX_INT`.
    """
    return _quantity(value, SIZE_BYTES, 1, "a size such as 256MiB, 1GiB, 10MB or bytes")


def format_size(size_bytes: int) -> str:
    """Return the shortest spelling that `parse_size_bytes` reads back exactly: 1048576 -> `"1MiB"`."""
    return _format(size_bytes, SIZE_BYTES)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # YAML's `yes` would become 1
        raise ValueError("must be a number")
    return value


Duration = Annotated[int, BeforeValidator(parse_duration_ms), PlainSerializer(format_duration, return_type=str)]
Size = Annotated[int, BeforeValidator(parse_size_bytes), PlainSerializer(format_size, return_type=str)]
Count = Annotated[int, BeforeValidator(_no_bool)]


def _finite(value: object) -> object:
    spelling = str(_no_bool(value)).strip().lower().lstrip("+-.")
    if spelling in ("nan", "inf", "infinity"):
        raise ValueError("must be a finite number; for no limit, omit the key")
    return value


Number = Annotated[float, BeforeValidator(_finite)]


def from_to(low: str, high: str, units: Mapping[str, int]) -> AfterValidator:
    """Return a validator whose message states the range in units (`50ms to 120s`); pydantic's `ge` would print `120000`."""
    least, most = _quantity(low, units, 1, low), _quantity(high, units, 1, high)

    def check(value: int) -> int:
        if not least <= value <= most:
            raise ValueError(f"must be {low} to {high}")
        return value

    check.range = f"{low} to {high}"  # type: ignore[attr-defined]  # for docs/CONFIG.md
    return AfterValidator(check)


def one_of(*choices: str) -> BeforeValidator:
    """Return a validator for a value that must be one of `choices`."""

    def check(value: object) -> object:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return value

    return BeforeValidator(check)
