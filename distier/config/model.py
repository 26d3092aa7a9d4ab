"""The settings, with their ranges and defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from distier.config.paths import NO_HOME, LocalPath, default_home
from distier.config.secrets import MASK, mask_url
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
from distier.config.urls import TLS_SCHEMES, check_archive_url, check_http_url, check_listen, check_redis_url


class Section(BaseModel):
    """A frozen part of the configuration; knows all its keys and shows no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_url(value) if isinstance(value, str) else value


class RedisConfig(Section):
    """The Redis or Valkey server, the sentinels that name it, or nodes of a cluster. Without `url`, an embedded server is
    started in `home`."""

    url: Annotated[str, AfterValidator(check_redis_url)] | None = Field(
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
        default=50_000, ge=1, le=MAX_INT, description="tokens of hot modules of the namespace, never exceeded"
    )
    max_bytes: Annotated[Size, from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="256MiB", validate_default=True, description="bytes of hot modules of the namespace, never exceeded"
    )
    eviction_policy: Annotated[Literal["lru"], one_of("lru")] = Field(
        default="lru", description="who leaves when there is no room: the least recently used"
    )


LOCAL_MAX_BYTES = 8 << 40
"""A node's copies are mapped into memory, with room to spare: three times this has to fit into 47 bits of addresses."""


class WarmConfig(Section):
    """Compressed in Redis (`redis`), clean versions on each node's own disk instead (`local`), or there too (`both`); clean
    copies leave after `ttl`. `max_modules` and `max_bytes` hold for the namespace in Redis, and for the disk of each node."""

    placement: Annotated[Literal["redis", "local", "both"], one_of("redis", "local", "both")] = Field(
        default="redis", description="where clean warm copies are: in Redis, on each node's disk, or in both"
    )
    ttl: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="24h", validate_default=True, description="after so long without a use a clean warm copy leaves"
    )
    max_modules: Count = Field(
        default=100,
        ge=1,
        le=MAX_INT,
        description="warm modules of the namespace in Redis, and on the disk of each node",
    )
    max_bytes: Annotated[Size, from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="1GiB", validate_default=True, description="their bytes as stored; on disks at most 8TiB"
    )
    directory: LocalPath | None = Field(
        default=None, description="of the node's copies, on a disk of this machine; `home`/warm if not given"
    )
    peer_timeout: Annotated[Duration, from_to("0s", "10s", DURATION_MS)] = Field(
        default="200ms",
        validate_default=True,
        description="how long to wait for another node's copy before the archive is read; 0s asks nobody",
    )
    compression: Annotated[Literal["lz4", "none"], one_of("lz4", "none")] = Field(
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


class ColdConfig(Section):
    """The archive: an S3 bucket (`url`) or a directory of the same layout."""

    url: Annotated[str, AfterValidator(check_archive_url)] | None = Field(
        default=None, description="`s3://bucket/prefix`; this or `directory`"
    )
    directory: LocalPath | None = Field(
        default=None, description="that all processes of the namespace see; `home`/cold with the embedded server"
    )
    endpoint_url: Annotated[str, AfterValidator(check_http_url)] | None = Field(
        default=None, description="of an S3 server that is not AWS"
    )
    region: str | None = Field(default=None, description="of the bucket; as boto3 finds it if not given")
    access_key: str | None = Field(default=None, description="with `secret_key`; as boto3 finds them if not given")
    secret_key: SecretStr | None = Field(default=None, description="masked wherever settings are shown")
    session_token: SecretStr | None = Field(
        default=None, description="of temporary credentials, with `access_key` and `secret_key`; masked as these"
    )
    addressing_style: Annotated[Literal["auto", "path", "virtual"], one_of("auto", "path", "virtual")] | None = Field(
        default=None,
        description="how requests name the bucket; if not given as `~/.aws/config` says, else `path` with an `endpoint_url` "
        "and `auto` without",
    )
    compression: Annotated[Literal["lzma"], one_of("lzma")] = Field(
        default="lzma", description="of archived objects: plain `.xz`"
    )
    compression_level: Count = Field(default=9, ge=0, le=9, description="the preset of xz")
    archive_after: Annotated[Duration, from_to("0s", "3650d", DURATION_MS)] = Field(
        default="60s", validate_default=True, description="the worker archives a version when it is this old"
    )
    timeout: Annotated[Duration, from_to("50ms", "120s", DURATION_MS)] = Field(
        default="5s",
        validate_default=True,
        description="an S3 server that does not answer is reported after about this time",
    )
    sidecar: Annotated[Literal["auto", "always", "never"], one_of("auto", "always", "never")] = Field(
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
    promotion_threshold: Count = Field(default=5, ge=1, le=MAX_INT, description="so many uses make a module hot")
    demotion_threshold: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="1h", validate_default=True, description="after so long without a use a hot module becomes warm"
    )

    @property
    def demotion_threshold_ms(self) -> int:
        return self.demotion_threshold


class WorkerConfig(Section):
    """The maintenance loop."""

    interval: Annotated[Duration, from_to("10ms", "3650d", DURATION_MS)] = Field(
        default="1s", validate_default=True, description="between two rounds of a worker"
    )
    headroom: Number = Field(default=0.1, ge=0, le=0.9, description="fraction of hot kept free, so that puts find room")
    uses_half_life: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="24h", validate_default=True, description="counts of uses are halved so often"
    )
    sweep_interval: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="1h", validate_default=True, description="between two sweeps of the archive"
    )
    tombstone_grace: Annotated[Duration, from_to("1s", "3650d", DURATION_MS)] = Field(
        default="7d", validate_default=True, description="how long the archive keeps the mark of a deleted module"
    )
    lease: Annotated[Duration, from_to("500ms", "5m", DURATION_MS)] = Field(
        default="5s", validate_default=True, description="after so long without a sign of life others take over"
    )
    archive_requests_per_second: Number | None = Field(
        default=None, gt=0, description="of this worker's own work; no limit if not set"
    )
    cpu_share: Number | None = Field(
        default=None, gt=0, le=64, description="cores that compressing may take on average; no limit if not set"
    )
    health: Annotated[str, AfterValidator(check_listen)] | None = Field(
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

    max_length: Count = Field(default=10_000, ge=1, le=MAX_INT, description="events kept in each shard, about")


class NearConfig(Section):
    """Modules kept in each process, within three budgets. A hit is at most `staleness` behind Redis, also when the
    network swallows everything; usually it is a millisecond."""

    enabled: bool = Field(default=True, description="whether this process keeps modules")
    max_tokens: Count = Field(
        default=16_000_000, ge=1, le=MAX_INT, description="of this process; about what 64 MiB of text hold"
    )
    max_bytes: Annotated[Size, from_to("1B", "1024TiB", SIZE_BYTES)] = Field(
        default="64MiB", validate_default=True, description="of this process"
    )
    max_entries: Count = Field(default=10_000, ge=1, le=MAX_INT, description="modules, of this process")
    staleness: Annotated[Duration, from_to("100ms", "60s", DURATION_MS)] = Field(
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
TransformName = Annotated[Literal["json-whitespace", "python-minify"], one_of("json-whitespace", "python-minify")]
ARCHIVE_REQUIRED = "an archive is required with redis.url"


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
    deadline: Annotated[Duration, from_to("50ms", "120s", DURATION_MS)] = Field(
        default="5s", validate_default=True, description="how long a call may take, retries included"
    )
    max_module_bytes: Annotated[Size, from_to("1B", "256MiB", SIZE_BYTES)] = Field(
        default="16MiB", validate_default=True, description="longer contents are refused"
    )
    counter: Annotated[Literal["auto", "o200k", "estimate"], one_of("auto", "o200k", "estimate")] = Field(
        default="auto", description="who counts tokens; `auto`: `o200k` where `distier[tokens]` is installed"
    )
    durability: Annotated[Literal["redis", "replicated", "archived"], one_of("redis", "replicated", "archived")] = (
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
        return {key: self._sources.get(key, "default") for key in leaves_of(type(self))}

    def explicit(self, dotted: str) -> bool:
        """Whether somebody set `dotted` (or something below it), rather than taking the default."""
        return any(key == dotted or key.startswith(dotted + ".") for key in self._sources)

    def with_overrides(self, **overrides: Any) -> Config:
        """A copy with some values replaced; keys as in `load_config`. Raises `ConfigError`."""
        from distier.config.layers import with_overrides  # layers make configurations, so they import this module

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


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of field `name` if it is a section, else None (a value)."""
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def leaves_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        section = section_of(model, name)
        if section:
            yield from leaves_of(section, f"{prefix}{name}.")
        else:
            yield prefix + name
