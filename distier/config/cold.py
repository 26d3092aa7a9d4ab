"""Settings of the archive."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from distier.config.paths import LocalPath
from distier.config.s3 import S3Requests
from distier.config.units import DURATION_MS, MAX_INT, Count, Duration, from_to, one_of
from distier.config.urls import check_archive_url, check_http_url


class ColdConfig(S3Requests):
    """The archive: an S3 bucket (`url`) or a directory with the same layout."""

    url: Annotated[str, AfterValidator(check_archive_url)] | None = Field(
        default=None, description="`s3://bucket/prefix`; set this or `directory`"
    )
    directory: LocalPath | None = Field(
        default=None,
        description="directory that all processes of the namespace see; default with the embedded server: `home`/cold",
    )
    endpoint_url: Annotated[str, AfterValidator(check_http_url)] | None = Field(
        default=None, description="endpoint of an S3 server other than AWS"
    )
    region: str | None = Field(default=None, description="region of the bucket; default: as boto3 finds it")
    access_key: str | None = Field(default=None, description="set with `secret_key`; default: as boto3 finds them")
    secret_key: SecretStr | None = Field(default=None, description="always masked in output")
    session_token: SecretStr | None = Field(
        default=None,
        description="token of temporary credentials; set with `access_key` and `secret_key`; always masked in output",
    )
    addressing_style: Annotated[Literal["auto", "path", "virtual"], one_of("auto", "path", "virtual")] | None = Field(
        default=None,
        description="how requests name the bucket; default: as in `~/.aws/config`, otherwise `path` with `endpoint_url` "
        "and `auto` without",
    )
    compression: Annotated[Literal["lzma"], one_of("lzma")] = Field(
        default="lzma", description="compression of archived objects: plain `.xz`"
    )
    compression_level: Count = Field(default=9, ge=0, le=9, description="preset of xz")
    archive_after: Annotated[Duration, from_to("0s", "3650d", DURATION_MS)] = Field(
        default="60s", validate_default=True, description="age at which the worker archives a version"
    )
    timeout: Annotated[Duration, from_to("50ms", "120s", DURATION_MS)] = Field(
        default="5s",
        validate_default=True,
        description="approximate time after which a silent S3 server is reported as unavailable",
    )
    sidecar: Annotated[Literal["auto", "always", "never"], one_of("auto", "always", "never")] = Field(
        default="auto",
        description="when to write `.meta.json` next to each object; `auto`: if the store keeps no metadata, or it is too long",
    )
    keep_versions: Count = Field(
        default=1,
        ge=1,
        le=MAX_INT,
        description="versions of each module that the sweep keeps, with the current one; those of a deleted module go with its "
        "tombstone",
    )
    manifest: bool = Field(
        default=True,
        description="list what is archived in `<namespace>/manifest/`; without it every sweep and rescue reads each object",
    )
    index_page: bool = Field(
        default=True,
        description="write `<namespace>/index.html`, which shows the archive in a browser, after a sweep; needs `manifest`",
    )

    packs: bool = Field(
        default=True,
        description="pack versions that are small and old into `.tar.xz` objects, which take half as much; needs `manifest`",
    )
    pack_after: Annotated[Duration, from_to("1h", "3650d", DURATION_MS)] = Field(
        default="1d", validate_default=True, description="age from which a version may be packed"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ColdConfig:
        if self.url and self.directory:
            raise ValueError("url cannot be combined with directory")
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("access_key and secret_key must be set together")
        if self.session_token and not self.access_key:
            raise ValueError("session_token needs access_key and secret_key")
        return self

    @property
    def archive_after_ms(self) -> int:
        return self.archive_after

    @property
    def pack_after_ms(self) -> int:
        return self.pack_after

    @property
    def timeout_ms(self) -> int:
        return self.timeout

    @property
    def bucket(self) -> str | None:
        """The bucket of `url`."""
        return self.url.removeprefix("s3://").partition("/")[0] if self.url else None

    @property
    def prefix(self) -> str:
        """The key prefix in `url` without leading and trailing slashes; empty if there is none."""
        return self.url.removeprefix("s3://").partition("/")[2].strip("/") if self.url else ""
