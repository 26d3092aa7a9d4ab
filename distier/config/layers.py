"""Sources of settings: a file, environment variables, which override it, and arguments, which override both."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distier.config.model import _REMAKE, Config, leaves_of, section_of
from distier.config.paths import expanded
from distier.config.secrets import shown_value
from distier.errors import ConfigError

if TYPE_CHECKING:
    import yaml

ENV_PREFIX = "DISTIER_"
CONFIG_FILE = "distier.yaml"
# Short names of the most common settings. All others are DISTIER_<KEY>__<KEY>.
ALIASES = {"redis_url": ("redis", "url")}
Key = tuple[str, ...]


class _Entry(NamedTuple):
    key: Key
    value: object
    where: str


def _is_path(model: type[BaseModel], name: str) -> bool:
    annotation = model.model_fields[name].annotation
    return annotation is Path or any(Path in (a, *get_args(a)) for a in get_args(annotation))


def _unknown(key: Key, model: type[BaseModel], where: str) -> ConfigError:
    near = difflib.get_close_matches(key[-1], model.model_fields, n=1)
    everywhere = [k for k in leaves_of(Config) if k.rpartition(".")[2] == key[-1]]
    known = ".".join((*key[:-1], near[0])) if near else (everywhere[0] if everywhere else "")
    hint = f"; did you mean {known}?" if known else f"; known here: {', '.join(model.model_fields)}"
    return ConfigError(f"{'.'.join(key)}: unknown key ({where}){hint}")


def _flatten(
    data: Mapping[Any, Any], where: Any, base: Path, model: type[BaseModel] = Config, above: Key = ()
) -> Iterator[_Entry]:
    """Yield the values in `data` by key.

    Args:
        data: Nested mappings, as in the file.
        where: A function that returns the source of a key, for messages.
        base: The directory that relative paths start from.
        model: The section that `data` describes.
        above: The key of that section.
    """
    for name, value in data.items():
        key = (*above, str(name))
        if name not in model.model_fields:
            raise _unknown(key, model, where(key))
        section = section_of(model, name)
        if section is None:
            if _is_path(model, name) and isinstance(value, str | Path):
                value = base / expanded(value)
            yield _Entry(key, value, where(key))
        elif isinstance(value, Mapping):
            yield from _flatten(value, where, base, section, key)
        elif isinstance(value, BaseModel):
            yield from _flatten(value.model_dump(exclude_unset=True), where, base, section, key)
        elif value is not None:  # `redis:` with nothing below it is an empty section
            shown = shown_value(".".join(key), value)
            raise ConfigError(
                f"{'.'.join(key)} = {shown}: must be a section with the keys {', '.join(section.model_fields)} "
                f"({where(key)})"
            )


def _nest(key: Key, value: object) -> dict[str, object]:
    for name in reversed(key):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _argument_entries(arguments: Mapping[str, Any]) -> Iterator[_Entry]:
    """Yield the arguments, named `a__b` or `a.b`. None means not given."""
    for name, value in arguments.items():
        if value is not None:
            key = ALIASES.get(name) or tuple(re.split(r"__|\.", name))
            yield from _flatten(_nest(key, value), lambda _: "argument", Path())


def _environment_entries(environ: Mapping[str, str]) -> Iterator[_Entry]:
    """Yield the settings in the environment. An empty variable counts as unset: compose files use `DISTIER_X=${X:-}`."""
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable == ENV_PREFIX + "CONFIG" or not text:
            continue
        where = f"environment {variable}"
        name = variable.removeprefix(ENV_PREFIX).lower()
        key = ALIASES.get(name) or tuple(name.split("__"))
        yield from _flatten(_nest(key, _environment_value(key, text, where)), lambda _, w=where: w, Path())


def _environment_value(key: Key, text: str, where: str) -> object:
    """Parse one variable. Mappings, lists and whole sections are YAML or JSON; all other values are plain text."""
    if key[-1] not in ("transforms", "outline") and not text.startswith("{"):
        return text
    import yaml  # imported here and below: most processes read no YAML

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{'.'.join(key)}: not valid YAML or JSON ({where})") from None


_MAX_FILE_BYTES = 1024 * 1024
_MAX_DEPTH = 8


def _lines(node: yaml.Node, where: str, above: Key = ()) -> Iterator[tuple[Key, int]]:
    """Yield the line number of every key. A duplicate key is an error; PyYAML would silently use the last one."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        key = (*above, name)
        if name in seen:
            raise ConfigError(f"{'.'.join(key)}: given twice ({where}:{line})")
        if len(key) > _MAX_DEPTH:  # this also stops a recursive alias
            raise ConfigError(f"{'.'.join(key)}: nested too deep ({where}:{line})")
        seen.add(name)
        yield key, line
        yield from _lines(value_node, where, key)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as f:
            content = f.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(f"configuration file {path} is larger than {_MAX_FILE_BYTES} bytes")
        return content.decode("utf-8-sig")
    except OSError as e:
        raise ConfigError(f"cannot read the configuration file {path}: {e.strerror}") from e
    except UnicodeDecodeError:
        raise ConfigError(f"configuration file {path} is not UTF-8") from None


def _file_entries(path: Path) -> Iterator[_Entry]:
    import yaml

    text, where = _read(path), f"file {path}"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = dict(_lines(node, where)) if node else {}
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: an impossible date
        if isinstance(e, ConfigError):
            raise
        mark = getattr(e, "problem_mark", None)
        source = f"{where}:{mark.line + 1}" if mark else where
        # The YAML error is not chained: it quotes the line, which may contain a password.
        raise ConfigError(f"not valid YAML: {getattr(e, 'problem', None) or 'unreadable'} ({source})") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"the configuration must be a mapping of keys, not {type(data).__name__} ({where})")

    def source_of(key: Key) -> str:
        return f"{where}:{lines[key]}" if key in lines else where

    yield from _flatten(data or {}, source_of, path.absolute().parent)


def _build(entries: list[_Entry]) -> Config:
    """Build the configuration from `entries`. If a key occurs twice, the later entry wins."""
    by_key = {e.key: e for e in entries}
    data: dict[str, Any] = {}
    for entry in by_key.values():
        section = data
        for name in entry.key[:-1]:
            section = section.setdefault(name, {})
        section[entry.key[-1]] = entry.value
    try:
        config = Config.model_validate(data)
    except ValidationError as e:
        problems = [_problem(p, by_key) for p in e.errors(include_url=False)]
        # Not chained: pydantic's message contains the values, and some are secrets.
        raise ConfigError("\n".join(problems)) from None
    config._sources.update({".".join(key): e.where for key, e in by_key.items()})
    return config


def _problem(error: ErrorDetails, by_key: Mapping[Key, _Entry]) -> str:
    """Return a line such as `storage_tiers.hot.max_size = 'x': must be a number (file distier.yaml:3)`."""
    loc = tuple(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    entry = next((by_key[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in by_key), None)
    if entry:
        key = ".".join(entry.key)
        return f"{key} = {shown_value(key, entry.value)}: {message} ({entry.where})"
    sources = sorted({e.where for e in by_key.values() if loc and e.key[: len(loc)] == loc})
    prefix = f"{'.'.join(loc)}: " if loc else ""
    return f"{prefix}{message}" + (f" ({', '.join(sources)})" if sources else "")


def _config_file(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(ENV_PREFIX + "CONFIG")
    if named:
        return expanded(named)
    here = Path(CONFIG_FILE)
    return here if here.is_file() else None


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a copy of `config` with some values replaced.

    Args:
        config: The configuration to copy, with the sources of its values.
        overrides: New values by name, as in `load_config`.

    Raises:
        ConfigError: A name is unknown or a value is invalid.
    """
    entries = _flatten(config.model_dump(exclude_unset=True), lambda _: "argument", Path())
    kept = [e._replace(where=config._sources.get(".".join(e.key), e.where)) for e in entries]
    return _build([*kept, *_argument_entries(overrides)])


_REMAKE.append(with_overrides)


def load_config(source: str | Path | Mapping[str, Any] | Config | None = None, **overrides: Any) -> Config:
    """Load the configuration from `source`, the environment and `overrides`; later ones take precedence.

    Args:
        source: The path of a YAML file; or a mapping of the same shape, which counts as arguments and so overrides the
            environment; or a `Config`, which is used without reading the environment. None selects the file that
            `DISTIER_CONFIG` names, or ./distier.yaml if it exists, or the defaults.
        overrides: Values by name. Nested values are mappings (`redis={"url": ...}`) or have joined names
            (`redis__url=...`). None means not given.

    Raises:
        ConfigError: The message names every wrong key, its value (secrets are masked) and its source.
    """
    if isinstance(source, Config):
        return source.with_overrides(**overrides) if overrides else source
    entries: list[_Entry] = []
    path = _config_file(os.environ) if source is None else source
    if isinstance(path, str | Path):
        entries += _file_entries(expanded(path))
    entries += _environment_entries(os.environ)
    if isinstance(source, Mapping):
        entries += _flatten(source, lambda _: "argument", Path())
    entries += _argument_entries(overrides)
    return _build(entries)
