"""`docs/CONFIG.md`: every setting, from the models of `distier.config`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distier.config import ALIASES, ENV_PREFIX, Config

UNBOUNDED = 2**53
HOME = "`~/.local/share/distier`"

_ALIASES = ", ".join(f"`{ENV_PREFIX}{alias.upper()}` is `{'.'.join(key)}`" for alias, key in ALIASES.items())
_HEAD = f"""\
# Settings

Written by `make docs` from the code; a test compares it.

A YAML file (`--config`, else `$DISTIER_CONFIG`, else `./distier.yaml`), `{ENV_PREFIX}*` variables over it, arguments over both.
A key `a.b` is `a: {{b: ...}}` in the file, `{ENV_PREFIX}A__B` in the environment, `a__b=...` as an argument of `connect`
({_ALIASES}). Unknown keys are errors. `distier config show` says where each value came from, `distier config check`
whether they fit together.

Durations are written `500ms 60s 15m 24h 7d` or as a number of seconds, sizes `256MiB 10MB` or as a number of bytes. Budgets
of the tiers are the namespace's and kept in Redis: see [OPERATIONS.md](OPERATIONS.md), *Sizes*.
"""


def render() -> str:
    """The page, as Markdown."""
    return _HEAD + "".join(_sections(Config, ""))


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    rows, inner = [], []
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            inner.append((section, f"{prefix}{name}."))
        else:
            cells = (f"`{prefix}{name}`", _default(name, info), _range(info), info.description or "")
            rows.append(f"| {' | '.join(cells)} |\n")
    title = f"`{prefix[:-1]}`" if prefix else "The whole"
    said = " ".join((model.__doc__ or "").split())
    if rows:
        yield f"\n## {title}\n\n{said}\n\n| key | default | values | what |\n|---|---|---|---|\n{''.join(rows)}"
    for section, above in inner:
        yield from _sections(section, above)


def _default(name: str, info: FieldInfo) -> str:
    if info.default_factory is not None:
        return HOME
    value = info.default
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _range(info: FieldInfo) -> str:
    choices = [name for part in _parts(info.annotation) if get_origin(part) is Literal for name in get_args(part)]
    if choices:
        return ", ".join(f"`{name}`" for name in choices)
    least, most = "", ""
    for part in [*info.metadata, *_parts(info.annotation)]:
        if said := getattr(getattr(part, "func", None), "range", None):
            return str(said)
        if (bound := getattr(part, "ge", None)) is not None:
            least = f"{bound:g}"
        if (bound := getattr(part, "gt", None)) is not None:
            least = f"more than {bound:g}"
        if (bound := getattr(part, "le", None)) is not None and bound < UNBOUNDED:
            most = f"{bound:g}" if bound < 10_000 else str(bound)
    if least and most:
        return f"{least}, at most {most}" if least.startswith("more") else f"{least} to {most}"
    return f"{least} or more" if least and not least.startswith("more") else least


def _parts(annotation: Any) -> list[Any]:
    """The annotation, and all that it is made of."""
    return [annotation, *(inner for part in get_args(annotation) for inner in _parts(part))]
