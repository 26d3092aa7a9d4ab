"""The settings with their ranges and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, SecretStr, model_validator

from distier.config.cold import ColdConfig
from distier.config.paths import NO_HOME, LocalPath, default_home
from distier.config.prediction import PredictionConfig
from distier.config.secrets import MASK, mask_url
from distier.config.section import Section
from distier.config.units import (
    DURATION_MS,
    MAX_INT,
    SIZE_BYTES,
    Count,
    Duration,
    Number,
    Size,
    format_size,
    from_to,
    one_of,
)
from distier.config.urls import TLS_SCHEMES, check_listen, check_redis_url


class RedisConfig(Section):
    """Redis or Valkey, its sentinels, or nodes of a cluster. Without `url`, distier starts an embedded server in `home`."""

    url: Annotated[str, AfterValidator(check_redis_url)] | None = Field(
        default=None,
        description="`redis://host:port/db`, `rediss://`, `unix:///path`, `sentinel[s]://`, `cluster[s]://`",
    )
    username: str | None = Field(default=None, description="user of the server's ACL; a user in `url` takes precedence")
    password: SecretStr | None = Field(
        default=None, description="password of that user, always masked in output; a password in `url` takes precedence"
    )
    ca_file: LocalPath | None = Field(
        default=None, description="file with the trusted CA certificates; needs a URL with TLS"
    )
    cert_file: LocalPath | None = Field(
        default=None, description="certificate of this client, if the server requires one"
    )
    key_file: LocalPath | None = Field(default=None, description="private key of `cert_file`")

    @model_validator(mode="after")
    def _tls_is_used(self) -> RedisConfig:
        if (self.ca_file or self.cert_file) and not (self.url or "").startswith(TLS_SCHEMES):
            raise ValueError(
                "ca_file and cert_file need a rediss:// URL (or sentinels://, clusters://): redis:// is not encrypted"
            )
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file must be set together")
        return self


class HotConfig(Section):
    """Hot modules are uncompressed in Redis. Their two budgets are never exceeded."""

    max_size: Count = Field(
        default=50_000, ge=1, le=MAX_INT, description="maximum tokens of all hot modules of the namespace"
    )
    max_bytes: Annotated[Size, from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="256MiB", validate_default=True, description="maximum bytes of all hot modules of the namespace"
    )
    eviction_policy: Annotated[
        Literal["lru", "lfu", "fifo", "s3fifo", "gdsf"], one_of("lru", "lfu", "fifo", "s3fifo", "gdsf")
    ] = Field(
        default="lru",
        description="which modules leave hot and warm first when there is no room: `lru` the least recently used, `gdsf` those "
        "with the fewest uses for their size; see docs/POLICIES.md",
    )


LOCAL_MAX_BYTES = 8 << 40
"""Upper limit for copies on a node's disk. They are mapped into memory with spare room: three times this limit must fit
into an address space of 47 bits."""


class WarmConfig(Section):
    """Warm modules are compressed. `placement` selects where the copies of clean versions are: in Redis, on each node's own
    disk (`local`), or in both. Clean copies expire after `ttl`. `max_modules` and `max_bytes` apply to the namespace in Redis
    and to the disk of each node."""

    placement: Annotated[Literal["redis", "local", "both"], one_of("redis", "local", "both")] = Field(
        default="redis", description="location of clean warm copies: Redis, each node's disk, or both"
    )
    ttl: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="24h", validate_default=True, description="time without a use after which a clean warm copy expires"
    )
    max_modules: Count = Field(
        default=100,
        ge=1,
        le=MAX_INT,
        description="maximum number of warm modules of the namespace in Redis, and on the disk of each node",
    )
    max_bytes: Annotated[Size, from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="1GiB",
        validate_default=True,
        description="maximum stored bytes of these modules; at most 8TiB with copies on disk",
    )
    directory: LocalPath | None = Field(
        default=None, description="directory of the node's copies, on a local disk; default: `home`/warm"
    )
    peer_timeout: Annotated[Duration, from_to("0s", "10s", DURATION_MS)] = Field(
        default="200ms",
        validate_default=True,
        description="how long to wait for another node's copy before reading the archive; 0s never asks a node",
    )
    compression: Annotated[Literal["lz4", "none"], one_of("lz4", "none")] = Field(
        default="lz4", description="compression of warm copies"
    )
    compression_level: Count = Field(
        default=9, ge=0, le=12, description="lz4 level; from 3 on it compresses better and slower"
    )

    dictionary: bool = Field(
        default=True,
        description="learn a dictionary from the modules, with which warm copies of archived versions become smaller; switch "
        "it off while clients of older versions are in use",
    )

    @model_validator(mode="after")
    def _fits_a_disk(self) -> WarmConfig:
        if self.is_local and self.max_bytes > LOCAL_MAX_BYTES:
            raise ValueError(
                f"with placement {self.placement}, max_bytes must be at most {format_size(LOCAL_MAX_BYTES)}"
            )
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


class TiersConfig(Section):
    """The three tiers, and when a module changes its tier automatically."""

    hot: HotConfig = HotConfig()
    warm: WarmConfig = WarmConfig()
    cold: ColdConfig = ColdConfig()
    promotion_threshold: Count = Field(
        default=5, ge=1, le=MAX_INT, description="uses before a module is promoted to hot"
    )
    demotion_threshold: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="1h", validate_default=True, description="time without a use after which a hot module becomes warm"
    )

    @property
    def demotion_threshold_ms(self) -> int:
        return self.demotion_threshold


class WorkerConfig(Section):
    """The maintenance loop of a worker."""

    interval: Annotated[Duration, from_to("10ms", "3650d", DURATION_MS)] = Field(
        default="1s", validate_default=True, description="time between two rounds of a worker"
    )
    headroom: Number = Field(
        default=0.1, ge=0, le=0.9, description="fraction of the hot budget that workers keep free for puts"
    )
    uses_half_life: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="24h", validate_default=True, description="time after which a count of uses is halved"
    )
    sweep_interval: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="1h", validate_default=True, description="time between two sweeps of the archive"
    )
    tombstone_grace: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="7d", validate_default=True, description="how long the archive keeps the tombstone of a deleted module"
    )
    lease: Annotated[Duration, from_to("500ms", "5m", DURATION_MS)] = Field(
        default="5s", validate_default=True, description="time without a heartbeat after which other workers take over"
    )
    archive_requests_per_second: Number | None = Field(
        default=None, gt=0, description="limit for this worker's own requests; default: no limit"
    )
    cpu_share: Number | None = Field(
        default=None, gt=0, le=64, description="CPU cores that compression may use on average; default: no limit"
    )
    health: Annotated[str, AfterValidator(check_listen)] | None = Field(
        default=None,
        description="host:port where `distier worker` serves /healthz, /readyz and /metrics; default: not served",
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

    max_length: Count = Field(
        default=10_000, ge=1, le=MAX_INT, description="approximate number of events kept in each shard"
    )


class NearConfig(Section):
    """The near cache keeps modules in each process, within three budgets. A hit is at most `staleness` behind Redis, even if
    the network drops all packets. It is usually a millisecond behind."""

    enabled: bool = Field(default=True, description="whether this process has a near cache")
    max_tokens: Count = Field(
        default=16_000_000,
        ge=1,
        le=MAX_INT,
        description="maximum tokens in this process; 64 MiB of text has about as many",
    )
    max_bytes: Annotated[Size, from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="64MiB", validate_default=True, description="maximum bytes in this process"
    )
    max_entries: Count = Field(
        default=10_000, ge=1, le=MAX_INT, description="maximum number of modules in this process"
    )
    staleness: Annotated[Duration, from_to("100ms", "60s", DURATION_MS)] = Field(
        default="2s", validate_default=True, description="maximum time that a hit may be behind Redis"
    )

    @property
    def staleness_ms(self) -> int:
        return self.staleness


def _check_namespace(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9._-]{1,64}", name) or name in (".", ".."):
        raise ValueError("must be 1 to 64 characters of a-z 0-9 . _ -")
    return name


def _check_node(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ValueError("must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return name


def _check_content_type(name: str) -> str:
    name = name.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*", name):
        raise ValueError(f"{name[:40]!r} is not a content type such as text/markdown")
    return name


ContentType = Annotated[str, AfterValidator(_check_content_type)]
# `policy.transform.TRANSFORMS` has the functions. It is in a higher layer, so it must not be imported here.
TransformName = Annotated[Literal["json-whitespace", "python-minify"], one_of("json-whitespace", "python-minify")]
ARCHIVE_REQUIRED = "an archive is required with redis.url"


_REMAKE: list[Callable[[Config, Mapping[str, Any]], Config]] = []
"""How a configuration is made from another one. `layers.py` adds it, which is above this module."""


class Config(Section):
    """All settings of a store, as `load_config` returns them. `Config()` has the defaults, with the embedded server."""

    redis: RedisConfig = RedisConfig()
    namespace: Annotated[str, AfterValidator(_check_namespace)] = Field(
        default="default", description="name of the set of modules to use: 1 to 64 characters of `a-z 0-9 . _ -`"
    )
    shards: Count = Field(
        default=1,
        ge=1,
        le=16384,
        description="number of shards, fixed when the namespace is created; use about 16 per master on a Redis Cluster",
    )
    node: Annotated[str, AfterValidator(_check_node)] | None = Field(
        default=None, description="name of this node; default: made from the host name and the warm directory"
    )
    home: LocalPath = Field(
        default_factory=default_home,
        description="directory of the embedded server's data and archive, and of this node's copies",
    )
    deadline: Annotated[Duration, from_to("50ms", "120s", DURATION_MS)] = Field(
        default="5s",
        validate_default=True,
        description="time limit of a call, with its retries; the default is longer for puts of large contents",
    )
    max_module_bytes: Annotated[Size, from_to("1B", "256MiB", SIZE_BYTES)] = Field(
        default="16MiB", validate_default=True, description="maximum size of a module; larger ones are rejected"
    )
    counter: Annotated[Literal["auto", "o200k", "estimate"], one_of("auto", "o200k", "estimate")] = Field(
        default="auto",
        description="how tokens are counted; `auto`: `o200k` if `distier[tokens]` is installed, otherwise `estimate`",
    )
    durability: Annotated[Literal["redis", "replicated", "archived"], one_of("redis", "replicated", "archived")] = (
        Field(default="redis", description="when a put or delete is acknowledged; see PROTOCOL.md")
    )
    storage_tiers: TiersConfig = TiersConfig()
    near: NearConfig = NearConfig()
    prediction: PredictionConfig = PredictionConfig()
    transforms: dict[ContentType, TransformName] = Field(
        default={}, description="transform for each content type, which shortens contents irreversibly at put"
    )
    outline: list[ContentType] = Field(default=[], description="content types whose records contain an outline")
    worker: WorkerConfig = WorkerConfig()
    events: EventsConfig = EventsConfig()

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _has_an_archive(self) -> Config:
        cold = self.storage_tiers.cold
        if self.node and not self.storage_tiers.warm.is_local:
            raise ValueError("node applies only to copies on disk: set storage_tiers.warm.placement to local or both")
        if self.home == NO_HOME and (
            self.redis.url is None or (self.storage_tiers.warm.is_local and not self.storage_tiers.warm.directory)
        ):
            raise ValueError(
                "there is no home directory for the data (HOME is not set, and this user has no entry in the password "
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
        """The directory for this node's copies. It is used only if `warm.is_local`."""
        return self.storage_tiers.warm.directory or self.home / "warm"

    @property
    def archive_directory(self) -> Path | None:
        """The directory of the archive: as configured, or `home`/cold. None if the archive is in S3."""
        cold = self.storage_tiers.cold
        return None if cold.url else cold.directory or self.home / "cold"

    def sources(self) -> dict[str, str]:
        """Return the source of each value by dotted key: `default`, `file distier.yaml:3`, `environment DISTIER_X` or
        `argument`."""
        return {key: self._sources.get(key, "default") for key in leaves_of(type(self))}

    def explicit(self, dotted: str) -> bool:
        """Return whether `dotted` or a key below it was set, rather than left at its default."""
        return any(key == dotted or key.startswith(dotted + ".") for key in self._sources)

    def with_overrides(self, **overrides: Any) -> Config:
        """Return a copy with some values replaced, named as in `load_config`.

        Raises:
            ConfigError: A name is unknown or a value is invalid.
        """
        return _REMAKE[0](self, overrides)

    def dump(self, *, secrets: bool = False) -> dict[str, Any]:
        """Return plain data for YAML or JSON.

        Args:
            secrets: Include passwords, so that `load_config` reads equal values back. Otherwise they are `***`.
        """
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


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of field `name` if it is a section, or None if it is a value."""
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def leaves_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        section = section_of(model, name)
        if section:
            yield from leaves_of(section, f"{prefix}{name}.")
        else:
            yield prefix + name
