"""Configuration: a YAML file, `DISTIER_*` environment variables over it, arguments over both.

A configuration is a value: frozen, complete, and checked once, before anything is started. Every value knows
where it came from (`sources`), because "which of the four places set this?" is the first question when two
processes of one namespace disagree. Unknown keys are errors everywhere, the environment included: a misspelt
budget that is silently ignored is found only when the cache is full.

The layers are merged as flat `(key, value, where)` entries *before* pydantic sees them, so that each message
can name the line or the variable. pydantic-settings is not used for the environment: it skips variables
that match no field, and cannot say which variable gave a value.

Units: durations are written `500ms 60s 15m 24h 7d` or as a number of seconds, and held as int milliseconds
(the `..._ms` properties); sizes are written `256MiB 10MB` or as a number of bytes, and held as int bytes.
A relative path in a file is relative to that file, elsewhere to the working directory.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from .errors import ConfigError

if TYPE_CHECKING:
    import yaml

ENV_PREFIX = "DISTIER_"
CONFIG_FILE = "distier.yaml"
MASK = "***"
# Short names for what people set most; everything else is DISTIER_<KEY>__<KEY>.
ALIASES = {"redis_url": ("redis", "url")}

# --- units --------------------------------------------------------------------------------------------------

DURATION_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
# Descending, so that the first unit that divides a number gives its shortest spelling.
SIZE_BYTES = {
    unit: base**power
    for power in (4, 3, 2, 1)
    for base, unit in ((1024, " KMGT"[power] + "iB"), (1000, " kMGT"[power] + "B"))
} | {"B": 1}
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
_MAX_INT = 2**53  # Lua and JSON numbers lose digits past it


def _quantity(value: object, units: Mapping[str, int], bare: int, example: str) -> int:
    """`"1.5h"` -> 5400000 with `units`; a number without a unit counts `bare`."""
    text = "" if isinstance(value, bool) else str(value)
    match = _QUANTITY.fullmatch(text) if isinstance(value, str | int | float) else None
    if not match:
        raise ValueError(f"not {example}")
    by_name = {name.lower(): factor for name, factor in units.items()}
    factor = by_name.get(match[2].lower()) if match[2] else bare
    if factor is None:
        raise ValueError(f"unknown unit {match[2]!r}: write {example}")
    number = int(Decimal(match[1]) * factor)
    if number > _MAX_INT:
        raise ValueError("too large")
    return number


def _format(number: int, units: Mapping[str, int]) -> str:
    unit = next(u for u, factor in units.items() if number % factor == 0 and (number or factor == 1))
    return f"{number // units[unit]}{unit}"


def parse_duration_ms(value: object) -> int:
    """`"24h"`, `"500ms"`, or a number of seconds, as int milliseconds. Raises `ValueError`."""
    return _quantity(value, DURATION_MS, 1000, "a duration such as 500ms, 60s, 15m, 24h, 7d or seconds")


def format_duration(ms: int) -> str:
    """The shortest exact spelling that `parse_duration_ms` reads back: 86400000 -> `"1d"`."""
    return _format(ms, DURATION_MS)


def parse_size_bytes(value: object) -> int:
    """`"256MiB"` (1024s), `"10MB"` (1000s), or a number of bytes, as int bytes. Raises `ValueError`."""
    return _quantity(value, SIZE_BYTES, 1, "a size such as 256MiB, 1GiB, 10MB or bytes")


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling that `parse_size_bytes` reads back: 1048576 -> `"1MiB"`."""
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
        raise ValueError("must be a finite number; leave the key out for no limit")
    return value


Number = Annotated[float, BeforeValidator(_finite)]


def _from_to(low: str, high: str, units: Mapping[str, int]) -> AfterValidator:
    """Bounds that are said in the units that people write; pydantic's `ge` would say `120000`."""
    least, most = _quantity(low, units, 1, low), _quantity(high, units, 1, high)

    def check(value: int) -> int:
        if not least <= value <= most:
            raise ValueError(f"must be {low} to {high}")
        return value

    check.range = f"{low} to {high}"  # type: ignore[attr-defined]  # for docs/CONFIG.md
    return AfterValidator(check)


# --- secrets ------------------------------------------------------------------------------------------------

SECRET_KEYS = frozenset({"password", "secret_key"})
# Greedy to the last `@` of the word: a password with an unescaped `@` or `/` must not leak its tail.
_URL_PASSWORD = re.compile(r"(://[^:@/\s]*):\S*@")
_BARE_PASSWORD = re.compile(
    r"""((?:^|[\s'"(=])[^:/\s'"(=]*):(?!/)\S*@"""
)  # user:password@host, where somebody forgot the scheme
_QUERY_PASSWORD = re.compile(r"([?&][a-z_]*(?:password|secret|token)[a-z_]*=)[^&\s'\"]*", re.IGNORECASE)


def mask_url(text: str) -> str:
    """`text` with the passwords of all URLs in it replaced by `***`; for messages, logs and `repr`."""
    text = _BARE_PASSWORD.sub(rf"\1:{MASK}@", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))
    return _QUERY_PASSWORD.sub(rf"\1{MASK}", text)


def _shown(key: str, value: object) -> str:
    """`value` of `key` for people: secrets masked, long ones cut."""
    if SECRET_KEYS & set(key.split(".")) or isinstance(value, SecretStr):
        return MASK
    text = mask_url(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


# --- the schema ---------------------------------------------------------------------------------------------


def _one_of(*now: str) -> BeforeValidator:
    """The value is one of `now`."""

    def check(value: object) -> object:
        if value not in now:
            raise ValueError(f"must be {' or '.join(now)}")
        return value

    return BeforeValidator(check)


def _no_address(path: object) -> object:
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/", str(path)) or _ADDRESS.fullmatch(str(path)):
        raise ValueError("is the url or the address of a server; here goes a directory or a file (./name if it is one)")
    return path


def _absolute(path: Path) -> Path:
    # Not resolve(): a link such as `current -> v3` is the owner's choice and should stay visible.
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100


def expanded(path: str | Path) -> Path:
    """`~` in front made a directory. Raises `ConfigError` where nobody knows which."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no home directory for {str(path)!r}: write the whole path") from None


NO_HOME = Path("/nonexistent/distier")
NO_ARCHIVE = Path("/nonexistent/archive")
"""As `storage_tiers.cold.directory`: none is configured, and what is done with this configuration needs none."""
ARCHIVE_REQUIRED = "an archive is required with redis.url"


def default_home() -> Path:
    """Where the embedded server and its archive keep their data when nothing says otherwise. `NO_HOME` where this user has no
    home directory (HOME is not set, and nothing in the password file), which matters only to who needs one."""
    base = os.environ.get("XDG_DATA_HOME", "")
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "distier"
        return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "distier"  # noqa: PTH117
    except RuntimeError:
        return NO_HOME


LocalPath = Annotated[Path, BeforeValidator(_no_address), AfterValidator(_absolute)]


class Section(BaseModel):
    """A frozen part of the configuration; knows all its keys and shows no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_url(value) if isinstance(value, str) else value


# `host:port`, `host:port/db`, `user:password@host`: not what a path begins with.
_ADDRESS = re.compile(r"\s*[^./~\s]\S*:[0-9]+(/[0-9]*)?\s*|\s*[^./~@\s]?[^/@\s]*:[^@\s]*@\S+\s*")
_HOST_ALONE = re.compile(
    r"localhost|[0-9]+(\.[0-9]+){3}|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]?|[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+"
)


def is_url(text: str) -> bool:
    """Whether this is meant as a url, of whatever kind."""
    return re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:(//|/[^/])|\s*//|.*://", text) is not None


def check_directory(text: str) -> str:
    """A directory's name, which must not be what somebody means for a server. Raises `ConfigError`, which does not show it: it
    may have a password."""
    alone = _HOST_ALONE.fullmatch(text.strip()) is not None and not expanded(text).is_dir()
    if alone or _ADDRESS.fullmatch(text):
        raise ConfigError(
            "this looks like the address of a server: write redis://host:port/db; or ./name if it is the name of a directory, "
            "where an embedded server is to live"
        )
    if expanded(text).is_socket():
        raise ConfigError(f"{text} is a socket: write unix://{expanded(text).absolute()}")
    return text


SENTINEL_SCHEMES = ("sentinel://", "sentinels://")
CLUSTER_SCHEMES = ("cluster://", "clusters://")
# Other people's names for the same.
_SCHEMES = {
    "valkey": "redis", "valkeys": "rediss", "redis+tls": "rediss", "redis+ssl": "rediss", "valkey+tls": "rediss",
    "redis+unix": "unix", "valkey+unix": "unix", "redis+socket": "unix",
    "redis+sentinel": "sentinel", "rediss+sentinel": "sentinels",
    "valkey+sentinel": "sentinel", "valkeys+sentinel": "sentinels",
    "redis-sentinel": "sentinel", "rediss-sentinel": "sentinels",
    "redis+cluster": "cluster", "rediss+cluster": "clusters", "valkey+cluster": "cluster", "valkeys+cluster": "clusters",
}  # fmt: skip
URL_SCHEMES = ("redis://", "rediss://", "unix://", *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)
TLS_SCHEMES = ("rediss://", "sentinels://", "clusters://")
SENTINEL_PORT = 26379
CLUSTER_PORT = 6379
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_SENTINEL_MASTER = re.compile(r"([A-Za-z0-9._-]+)(?:/([0-9]{1,5}))?/?")
_SENTINEL_FORM = "sentinel://[user:password@]host1:port1,host2:port2/name-of-the-master[/db], or sentinels:// with TLS"
_CLUSTER_FORM = "cluster://[user:password@]host1:port1,host2:port2, or clusters:// with TLS"
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`sentinel://[user:password@]host1:port1,host2:port2/mymaster[/db]`. User and password are those of the servers, not
    of the sentinels. With `sentinels://`, sentinels and servers are spoken to over TLS."""

    sentinels: tuple[Address, ...]
    master: str
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """`cluster://[user:password@]host1:port1,host2:port2`: some nodes of a Redis Cluster; the others are learned from them.
    With `clusters://`, all nodes are spoken to over TLS."""

    nodes: tuple[Address, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False


def _parse_hosts(hosts: str, port: int) -> tuple[Address, ...] | None:
    """None where one of them is no host, or no port."""
    found = []
    for host in hosts.split(","):
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match[2] or port) < 65536:
            return None
        found.append((match[1].strip("[]"), int(match[2] or port)))
    return tuple(found)


def _parse_user(user: str) -> tuple[str | None, str | None]:
    name, _, password = user.partition(":")
    return unquote(name) or None, unquote(password) or None


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Raises `ValueError`, which shows nothing of the url."""
    scheme, _, rest = url.partition("://")
    user, _, where = rest.rpartition("@")
    hosts, _, name = where.partition("/")
    sentinels, master = _parse_hosts(hosts, SENTINEL_PORT), _SENTINEL_MASTER.fullmatch(name)
    if f"{scheme}://" not in SENTINEL_SCHEMES or master is None or sentinels is None:
        raise ValueError(f"must be {_SENTINEL_FORM}")
    return SentinelUrl(sentinels, master[1], int(master[2] or 0), *_parse_user(user), tls=scheme == "sentinels")


def parse_cluster_url(url: str) -> ClusterUrl:
    """Raises `ValueError`, which shows nothing of the url."""
    scheme, _, rest = url.partition("://")
    user, _, hosts = rest.rpartition("@")
    if f"{scheme}://" in CLUSTER_SCHEMES and re.fullmatch(r"[^/?#]*/[0-9]+", hosts):
        raise ValueError(f"a cluster has no numbered databases: must be {_CLUSTER_FORM}")
    nodes = _parse_hosts(hosts.removesuffix("/"), CLUSTER_PORT)
    if f"{scheme}://" not in CLUSTER_SCHEMES or nodes is None:
        raise ValueError(f"must be {_CLUSTER_FORM}")
    return ClusterUrl(nodes, *_parse_user(user), tls=scheme == "clusters")


_CERT_REQS = ("none", "optional", "required")
_URL_SETTINGS: dict[str, Callable[[str], object]] = {
    "db": str.isdecimal, "username": bool, "password": bool, "client_name": bool,
    "ssl_cert_reqs": _CERT_REQS.__contains__, "ssl_check_hostname": ("true", "false", "True", "False", "1", "0").__contains__,
    "ssl_ca_certs": bool, "ssl_certfile": bool, "ssl_keyfile": bool,
}  # fmt: skip


def _check_redis_url(given: str) -> str:
    """The url as the rest of distier knows it. Raises `ValueError`, which shows nothing of it."""
    scheme, separator, rest = given.strip().partition("://")
    scheme = _SCHEMES.get(scheme.lower(), scheme.lower())
    url = f"{scheme}{separator}{rest}"
    if re.search(r"\s", url):
        raise ValueError("has white space in it (in a password, write it as %20)")
    if url.startswith(SENTINEL_SCHEMES):
        parse_sentinel_url(url)
    elif url.startswith(CLUSTER_SCHEMES):
        parse_cluster_url(url)
    elif not url.startswith(URL_SCHEMES) or not rest:
        raise ValueError(
            "must be redis://host:port/db, rediss://host:port/db, unix:///path/to.sock, "
            "sentinel://host1:port1,host2:port2/name-of-the-master or cluster://host1:port1,host2:port2"
        )
    else:
        _check_server_url(url)
    return url


def _check_server_url(url: str) -> None:
    """The parts of a redis://, rediss:// or unix:// url, which redis-py would otherwise take for something else, or find fault
    with at the first connection."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("has no good host or port: the port is a number up to 65535, and / @ : # ? of a password are "
                         "written as %2F %40 %3A %23 %3F") from None  # fmt: skip
    if parts.port == 0 or parts.fragment:
        raise ValueError("has a port of 0, or a #: in a password write it as %23")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*/?", parts.path):
        raise ValueError("names a database that is no number: must be redis://host:port/db")
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise ValueError("has no path: must be unix:///path/to.sock")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        known = _URL_SETTINGS.get(name)
        if name == "protocol":
            raise ValueError("has protocol=: distier always speaks RESP3; leave it out")
        if known is None:
            raise ValueError(
                f"has an unknown setting {name!r}; known are {', '.join(_URL_SETTINGS)}; for timeouts set `deadline`"
            )
        if name.startswith("ssl_") and parts.scheme != "rediss":
            raise ValueError(f"has {name}, which needs rediss://")
        if not known(value):
            raise ValueError(f"has a bad value for {name}")


class RedisConfig(Section):
    """The Redis or Valkey server, the sentinels that name it, or nodes of a cluster. Without `url`, an embedded server is
    started in `home`."""

    url: Annotated[str, AfterValidator(_check_redis_url)] | None = Field(
        default=None,
        description="`redis://host:port/db`, `rediss://`, `unix:///path`, `sentinel[s]://`, `cluster[s]://`",
    )
    username: str | None = Field(default=None, description="of the ACL of Redis; one in the url stands over it")
    password: SecretStr | None = Field(
        default=None, description="of that user, masked wherever settings are shown; one in the url stands over it"
    )
    ca_file: LocalPath | None = Field(default=None, description="whose certificates are trusted; needs a url with TLS")
    cert_file: LocalPath | None = Field(
        default=None, description="this client's certificate, where the server wants one"
    )
    key_file: LocalPath | None = Field(default=None, description="its key")

    @model_validator(mode="after")
    def _tls_is_used(self) -> RedisConfig:
        if (self.ca_file or self.cert_file) and not (self.url or "").startswith(TLS_SCHEMES):
            raise ValueError(
                "ca_file and cert_file need a rediss:// url (or sentinels://, clusters://): redis:// would not be encrypted"
            )
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file go together")
        return self


class HotConfig(Section):
    """Uncompressed in Redis, within two budgets that are never exceeded."""

    max_size: Count = Field(
        default=50_000, ge=1, le=_MAX_INT, description="tokens of hot modules of the namespace, never exceeded"
    )
    max_bytes: Annotated[Size, _from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="256MiB", validate_default=True, description="bytes of hot modules of the namespace, never exceeded"
    )
    eviction_policy: Annotated[Literal["lru"], _one_of("lru")] = Field(
        default="lru", description="who leaves when there is no room: the least recently used"
    )


LOCAL_MAX_BYTES = 8 << 40
"""A node's copies are mapped into memory, with room to spare: three times this has to fit into 47 bits of addresses."""


class WarmConfig(Section):
    """Compressed in Redis (`redis`), clean versions on each node's own disk instead (`local`), or there too (`both`); clean
    copies leave after `ttl`. `max_modules` and `max_bytes` hold for the namespace in Redis, and for the disk of each node."""

    placement: Annotated[Literal["redis", "local", "both"], _one_of("redis", "local", "both")] = Field(
        default="redis", description="where clean warm copies are: in Redis, on each node's disk, or in both"
    )
    ttl: Annotated[Duration, _from_to("1s", "3650d", DURATION_MS)] = Field(
        default="24h", validate_default=True, description="after so long without a use a clean warm copy leaves"
    )
    max_modules: Count = Field(
        default=100,
        ge=1,
        le=_MAX_INT,
        description="warm modules of the namespace in Redis, and on the disk of each node",
    )
    max_bytes: Annotated[Size, _from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="1GiB", validate_default=True, description="their bytes as stored; on disks at most 8TiB"
    )
    directory: LocalPath | None = Field(
        default=None, description="of the node's copies, on a disk of this machine; `home`/warm if not given"
    )
    peer_timeout: Annotated[Duration, _from_to("0s", "10s", DURATION_MS)] = Field(
        default="200ms",
        validate_default=True,
        description="how long to wait for another node's copy before the archive is read; 0s asks nobody",
    )
    compression: Annotated[Literal["lz4", "none"], _one_of("lz4", "none")] = Field(
        default="lz4", description="of warm copies"
    )
    compression_level: Count = Field(
        default=9, ge=0, le=12, description="of lz4; from 3 on it is the slower, denser kind"
    )

    @model_validator(mode="after")
    def _fits_a_disk(self) -> WarmConfig:
        if self.is_local and self.max_bytes > LOCAL_MAX_BYTES:
            raise ValueError(f"with placement {self.placement}, max_bytes is at most {format_size(LOCAL_MAX_BYTES)}")
        return self

    @property
    def is_local(self) -> bool:
        """Whether this node keeps copies on its own disk."""
        return self.placement != "redis"

    @property
    def ttl_ms(self) -> int:
        return self.ttl

    @property
    def peer_timeout_ms(self) -> int:
        return self.peer_timeout


def _check_s3_url(url: str) -> str:
    if not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(?:/[^\s?#]*)?", url):
        raise ValueError("must be s3://bucket/prefix; for a path of this machine use `directory`")
    return url


def _check_http_url(url: str) -> str:
    if not re.fullmatch(r"https?://\S+", url):
        raise ValueError("must be http://... or https://...")
    return url


class ColdConfig(Section):
    """The archive: an S3 bucket (`url`) or a directory of the same layout."""

    url: Annotated[str, AfterValidator(_check_s3_url)] | None = Field(
        default=None, description="`s3://bucket/prefix`; this or `directory`"
    )
    directory: LocalPath | None = Field(
        default=None, description="that all processes of the namespace see; `home`/cold with the embedded server"
    )
    endpoint_url: Annotated[str, AfterValidator(_check_http_url)] | None = Field(
        default=None, description="of an S3 server that is not AWS"
    )
    region: str | None = Field(default=None, description="of the bucket; as boto3 finds it if not given")
    access_key: str | None = Field(default=None, description="with `secret_key`; as boto3 finds them if not given")
    secret_key: SecretStr | None = Field(default=None, description="masked wherever settings are shown")
    session_token: SecretStr | None = Field(
        default=None, description="of temporary credentials, with `access_key` and `secret_key`; masked as these"
    )
    addressing_style: Annotated[Literal["auto", "path", "virtual"], _one_of("auto", "path", "virtual")] | None = Field(
        default=None,
        description="how requests name the bucket; if not given as `~/.aws/config` says, else `path` with an `endpoint_url` "
        "and `auto` without",
    )
    compression: Annotated[Literal["lzma"], _one_of("lzma")] = Field(
        default="lzma", description="of archived objects: plain `.xz`"
    )
    compression_level: Count = Field(default=9, ge=0, le=9, description="the preset of xz")
    archive_after: Annotated[Duration, _from_to("0s", "3650d", DURATION_MS)] = Field(
        default="60s", validate_default=True, description="the worker archives a version when it is this old"
    )
    timeout: Annotated[Duration, _from_to("50ms", "120s", DURATION_MS)] = Field(
        default="5s",
        validate_default=True,
        description="an S3 server that does not answer is reported after about this time",
    )
    sidecar: Annotated[Literal["auto", "always", "never"], _one_of("auto", "always", "never")] = Field(
        default="auto",
        description="`.meta.json` beside each object; `auto`: where the store keeps no metadata, or it is too long",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ColdConfig:
        if self.url and self.directory:
            raise ValueError("give url or directory, not both")
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("access_key and secret_key go together")
        if self.session_token and not self.access_key:
            raise ValueError("session_token goes together with access_key and secret_key")
        return self

    @property
    def archive_after_ms(self) -> int:
        return self.archive_after

    @property
    def timeout_ms(self) -> int:
        return self.timeout

    @property
    def bucket(self) -> str | None:
        """The bucket of `url`."""
        return self.url.removeprefix("s3://").partition("/")[0] if self.url else None

    @property
    def prefix(self) -> str:
        """The key prefix of `url` without slashes at its ends; empty if there is none."""
        return self.url.removeprefix("s3://").partition("/")[2].strip("/") if self.url else ""


class TiersConfig(Section):
    """The three tiers, and when a module changes its tier by itself."""

    hot: HotConfig = HotConfig()
    warm: WarmConfig = WarmConfig()
    cold: ColdConfig = ColdConfig()
    promotion_threshold: Count = Field(default=5, ge=1, le=_MAX_INT, description="so many uses make a module hot")
    demotion_threshold: Annotated[Duration, _from_to("1s", "3650d", DURATION_MS)] = Field(
        default="1h", validate_default=True, description="after so long without a use a hot module becomes warm"
    )

    @property
    def demotion_threshold_ms(self) -> int:
        return self.demotion_threshold


def _check_listen(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host) or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:8080")
    return address


class WorkerConfig(Section):
    """The maintenance loop."""

    interval: Annotated[Duration, _from_to("10ms", "3650d", DURATION_MS)] = Field(
        default="1s", validate_default=True, description="between two rounds of a worker"
    )
    headroom: Number = Field(default=0.1, ge=0, le=0.9, description="fraction of hot kept free, so that puts find room")
    uses_half_life: Annotated[Duration, _from_to("1s", "3650d", DURATION_MS)] = Field(
        default="24h", validate_default=True, description="counts of uses are halved so often"
    )
    sweep_interval: Annotated[Duration, _from_to("1s", "3650d", DURATION_MS)] = Field(
        default="1h", validate_default=True, description="between two sweeps of the archive"
    )
    tombstone_grace: Annotated[Duration, _from_to("1s", "3650d", DURATION_MS)] = Field(
        default="7d", validate_default=True, description="how long the archive keeps the mark of a deleted module"
    )
    lease: Annotated[Duration, _from_to("500ms", "5m", DURATION_MS)] = Field(
        default="5s", validate_default=True, description="after so long without a sign of life others take over"
    )
    archive_requests_per_second: Number | None = Field(
        default=None, gt=0, description="of this worker's own work; no limit if not set"
    )
    cpu_share: Number | None = Field(
        default=None, gt=0, le=64, description="cores that compressing may take on average; no limit if not set"
    )
    health: Annotated[str, AfterValidator(_check_listen)] | None = Field(
        default=None, description="host:port of /healthz, /readyz and /metrics of `distier worker`; none if not set"
    )

    @property
    def lease_ms(self) -> int:
        return self.lease

    @property
    def interval_ms(self) -> int:
        return self.interval

    @property
    def uses_half_life_ms(self) -> int:
        return self.uses_half_life

    @property
    def sweep_interval_ms(self) -> int:
        return self.sweep_interval

    @property
    def tombstone_grace_ms(self) -> int:
        return self.tombstone_grace


class EventsConfig(Section):
    """The stream of tier changes."""

    max_length: Count = Field(default=10_000, ge=1, le=_MAX_INT, description="events kept in each shard, about")


class NearConfig(Section):
    """Modules kept in each process, within three budgets. A hit is at most `staleness` behind Redis, also when the
    network swallows everything; usually it is a millisecond."""

    enabled: bool = Field(default=True, description="whether this process keeps modules")
    max_tokens: Count = Field(
        default=16_000_000, ge=1, le=_MAX_INT, description="of this process; about what 64 MiB of text hold"
    )
    max_bytes: Annotated[Size, _from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="64MiB", validate_default=True, description="of this process"
    )
    max_entries: Count = Field(default=10_000, ge=1, le=_MAX_INT, description="modules, of this process")
    staleness: Annotated[Duration, _from_to("100ms", "60s", DURATION_MS)] = Field(
        default="2s", validate_default=True, description="how far a hit may be behind Redis at most"
    )

    @property
    def staleness_ms(self) -> int:
        return self.staleness


def _check_namespace(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9._-]{1,64}", name) or name in (".", ".."):
        raise ValueError("must be 1 to 64 of a-z 0-9 . _ -")
    return name


def _check_node(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _check_content_type(name: str) -> str:
    name = name.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*", name):
        raise ValueError(f"{name[:40]!r} is not a content type such as text/markdown")
    return name


ContentType = Annotated[str, AfterValidator(_check_content_type)]
# `policy.transform.TRANSFORMS` holds the functions; config stands below it and must not import it.
TransformName = Annotated[Literal["json-whitespace", "python-minify"], _one_of("json-whitespace", "python-minify")]


class Config(Section):
    """All settings of a store. Made by `load_config`; `Config()` alone is the embedded default."""

    redis: RedisConfig = RedisConfig()
    namespace: Annotated[str, AfterValidator(_check_namespace)] = Field(
        default="default", description="whose modules these are: 1 to 64 of `a-z 0-9 . _ -`"
    )
    shards: Count = Field(
        default=1,
        ge=1,
        le=16384,
        description="fixed when the namespace is created; about 16 a master on a Redis Cluster",
    )
    node: Annotated[str, AfterValidator(_check_node)] | None = Field(
        default=None, description="this node's name; made of the host's name and the warm directory if not given"
    )
    home: LocalPath = Field(
        default_factory=default_home, description="the embedded server's data, its archive, and copies of this node"
    )
    deadline: Annotated[Duration, _from_to("50ms", "120s", DURATION_MS)] = Field(
        default="5s", validate_default=True, description="how long a call may take, retries included"
    )
    max_module_bytes: Annotated[Size, _from_to("1B", "256MiB", SIZE_BYTES)] = Field(
        default="16MiB", validate_default=True, description="longer contents are refused"
    )
    counter: Annotated[Literal["auto", "o200k", "estimate"], _one_of("auto", "o200k", "estimate")] = Field(
        default="auto", description="who counts tokens; `auto`: `o200k` where `distier[tokens]` is installed"
    )
    durability: Annotated[Literal["redis", "replicated", "archived"], _one_of("redis", "replicated", "archived")] = (
        Field(default="redis", description="when a put or delete is acknowledged, see PROTOCOL.md")
    )
    storage_tiers: TiersConfig = TiersConfig()
    near: NearConfig = NearConfig()
    transforms: dict[ContentType, TransformName] = Field(
        default={}, description="by content type: how its contents are shortened at put, for good"
    )
    outline: list[ContentType] = Field(
        default=[], description="content types of whose modules an outline is kept in the record"
    )
    worker: WorkerConfig = WorkerConfig()
    events: EventsConfig = EventsConfig()

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _has_an_archive(self) -> Config:
        cold = self.storage_tiers.cold
        if self.node and not self.storage_tiers.warm.is_local:
            raise ValueError("node names a disk with copies: set storage_tiers.warm.placement to local or both")
        if self.home == NO_HOME and (
            self.redis.url is None or (self.storage_tiers.warm.is_local and not self.storage_tiers.warm.directory)
        ):
            raise ValueError(
                "there is no home directory to keep data in (HOME is not set, and this user has no entry in the password "
                "file): set home, or redis.url and an archive"
            )
        if self.redis.url and not (cold.url or cold.directory):
            raise ValueError(
                f"{ARCHIVE_REQUIRED}: set storage_tiers.cold.url (s3://bucket/prefix) "
                "or storage_tiers.cold.directory (a path that every process of the namespace sees)"
            )
        return self

    @property
    def embedded(self) -> bool:
        """Whether distier runs its own private server in `home`."""
        return self.redis.url is None

    @property
    def deadline_ms(self) -> int:
        return self.deadline

    @property
    def warm_directory(self) -> Path:
        """Where this node keeps its copies, if it does."""
        return self.storage_tiers.warm.directory or self.home / "warm"

    @property
    def archive_directory(self) -> Path | None:
        """The directory archive: as configured, or `home`/cold; None when the archive is in S3."""
        cold = self.storage_tiers.cold
        return None if cold.url else cold.directory or self.home / "cold"

    def sources(self) -> dict[str, str]:
        """Where each value came from, by dotted key: `default`, `file distier.yaml:3`,
        `environment DISTIER_X` or `argument`."""
        return {key: self._sources.get(key, "default") for key in _leaves(type(self))}

    def explicit(self, dotted: str) -> bool:
        """Whether somebody set `dotted` (or something below it), rather than taking the default."""
        return any(key == dotted or key.startswith(dotted + ".") for key in self._sources)

    def with_overrides(self, **overrides: Any) -> Config:
        """A copy with some values replaced; keys as in `load_config`. Raises `ConfigError`."""
        from distier.config.layers import with_overrides  # it makes configurations

        return with_overrides(self, overrides)

    def dump(self, *, secrets: bool = False) -> dict[str, Any]:
        """Plain data for YAML or JSON, which `load_config` reads back to equal values if `secrets` is true
        (otherwise passwords are `***`)."""
        plain = _plain(self.model_dump(), secrets)
        assert isinstance(plain, dict)
        return plain


def _plain(value: object, secrets: bool) -> object:
    match value:
        case dict():
            return {k: _plain(v, secrets) for k, v in value.items()}
        case list():
            return [_plain(v, secrets) for v in value]
        case SecretStr():
            return value.get_secret_value() if secrets else MASK
        case Path():
            return str(value)
        case str():
            return value if secrets else mask_url(value)
        case _:
            return value


# --- layers -------------------------------------------------------------------------------------------------

Key = tuple[str, ...]


class _Entry(NamedTuple):
    key: Key
    value: object
    where: str


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of field `name` if it is a section, else None (a value)."""
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        section = _section(model, name)
        if section:
            yield from _leaves(section, f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_path(model: type[BaseModel], name: str) -> bool:
    annotation = model.model_fields[name].annotation
    return annotation is Path or any(Path in (a, *get_args(a)) for a in get_args(annotation))


def _unknown(key: Key, model: type[BaseModel], where: str) -> ConfigError:
    near = difflib.get_close_matches(key[-1], model.model_fields, n=1)
    everywhere = [k for k in _leaves(Config) if k.rpartition(".")[2] == key[-1]]
    known = ".".join((*key[:-1], near[0])) if near else (everywhere[0] if everywhere else "")
    hint = f"; did you mean {known}?" if known else f"; known here: {', '.join(model.model_fields)}"
    return ConfigError(f"{'.'.join(key)}: unknown key ({where}){hint}")


def _flatten(
    data: Mapping[Any, Any], where: Any, base: Path, model: type[BaseModel] = Config, above: Key = ()
) -> Iterator[_Entry]:
    """The values in `data` by key; `where(key)` names a place; relative paths are taken from `base`."""
    for name, value in data.items():
        key = (*above, str(name))
        if name not in model.model_fields:
            raise _unknown(key, model, where(key))
        section = _section(model, name)
        if section is None:
            if _is_path(model, name) and isinstance(value, str | Path):
                value = base / expanded(value)
            yield _Entry(key, value, where(key))
        elif isinstance(value, Mapping):
            yield from _flatten(value, where, base, section, key)
        elif isinstance(value, BaseModel):
            yield from _flatten(value.model_dump(exclude_unset=True), where, base, section, key)
        elif value is not None:  # `redis:` with nothing below it is an empty section
            shown = _shown(".".join(key), value)
            raise ConfigError(
                f"{'.'.join(key)} = {shown}: a section with {', '.join(section.model_fields)} "
                f"is wanted here ({where(key)})"
            )


def _nest(key: Key, value: object) -> dict[str, object]:
    for name in reversed(key):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _argument_entries(arguments: Mapping[str, Any]) -> Iterator[_Entry]:
    """Arguments by name, `a__b` or `a.b`; None means not given."""
    for name, value in arguments.items():
        if value is not None:
            key = ALIASES.get(name) or tuple(re.split(r"__|\.", name))
            yield from _flatten(_nest(key, value), lambda _: "argument", Path())


def _environment_entries(environ: Mapping[str, str]) -> Iterator[_Entry]:
    """An empty variable counts as unset: compose files write `DISTIER_X=${X:-}`."""
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable == ENV_PREFIX + "CONFIG" or not text:
            continue
        where = f"environment {variable}"
        name = variable.removeprefix(ENV_PREFIX).lower()
        key = ALIASES.get(name) or tuple(name.split("__"))
        yield from _flatten(_nest(key, _environment_value(key, text, where)), lambda _, w=where: w, Path())


def _environment_value(key: Key, text: str, where: str) -> object:
    """Mappings, lists and whole sections are written as YAML or JSON; everything else is plain text."""
    if key[-1] not in ("transforms", "outline") and not text.startswith("{"):
        return text
    import yaml  # here and below: most processes read none

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{'.'.join(key)}: not valid YAML or JSON ({where})") from None


# --- the file -----------------------------------------------------------------------------------------------

_MAX_FILE_BYTES = 1024 * 1024
_MAX_DEPTH = 8


def _lines(node: yaml.Node, where: str, above: Key = ()) -> Iterator[tuple[Key, int]]:
    """The line of every key; a duplicate is an error, where PyYAML would take the last one."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        key = (*above, name)
        if name in seen:
            raise ConfigError(f"{'.'.join(key)}: given twice ({where}:{line})")
        if len(key) > _MAX_DEPTH:  # also ends a recursive alias
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
        place = f"{where}:{mark.line + 1}" if mark else where
        # The YAML error itself quotes the line, which may hold a password: it is not chained.
        raise ConfigError(f"not valid YAML: {getattr(e, 'problem', None) or 'unreadable'} ({place})") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"the configuration must be a mapping of keys, not {type(data).__name__} ({where})")

    def place_of(key: Key) -> str:
        return f"{where}:{lines[key]}" if key in lines else where

    yield from _flatten(data or {}, place_of, path.absolute().parent)


# --- putting it together ------------------------------------------------------------------------------------


def _build(entries: list[_Entry]) -> Config:
    """The configuration of `entries`; of two with one key the later wins."""
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
        # Not chained: pydantic's own message would hold the values, and some are secrets.
        raise ConfigError("\n".join(problems)) from None
    config._sources.update({".".join(key): e.where for key, e in by_key.items()})
    return config


def _problem(error: ErrorDetails, by_key: Mapping[Key, _Entry]) -> str:
    """`storage_tiers.hot.max_size = 'x': what is wrong (where)`."""
    loc = tuple(str(part) for part in error["loc"])
    said = error["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    entry = next((by_key[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in by_key), None)
    if entry:
        key = ".".join(entry.key)
        return f"{key} = {_shown(key, entry.value)}: {said} ({entry.where})"
    places = sorted({e.where for e in by_key.values() if loc and e.key[: len(loc)] == loc})
    prefix = f"{'.'.join(loc)}: " if loc else ""
    return f"{prefix}{said}" + (f" ({', '.join(places)})" if places else "")


def _config_file(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(ENV_PREFIX + "CONFIG")
    if named:
        return expanded(named)
    here = Path(CONFIG_FILE)
    return here if here.is_file() else None


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy of `config` with some values replaced. Raises `ConfigError`."""
    entries = _flatten(config.model_dump(exclude_unset=True), lambda _: "argument", Path())
    kept = [e._replace(where=config._sources.get(".".join(e.key), e.where)) for e in entries]
    return _build([*kept, *_argument_entries(overrides)])


def load_config(source: str | Path | Mapping[str, Any] | Config | None = None, **overrides: Any) -> Config:
    """The configuration from `source`, the environment over it, `overrides` over both.

    `source`: the path of a YAML file; a mapping of the same shape (counts as arguments, so it stands over
    the environment); a `Config` (taken as it is); None: the file that `DISTIER_CONFIG` names, else
    ./distier.yaml if it is there, else defaults. Overrides are named as in the file, nested ones as mappings
    or `redis__url=...`; None means not given. Raises `ConfigError`, which names every wrong key, its value
    (secrets masked) and where it came from.
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
