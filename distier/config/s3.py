"""The settings of what is sent to S3 with each request and each new object."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from distier.config.section import Section
from distier.config.units import one_of

StorageClass = Literal[
    "STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
]  # fmt: skip


class S3Requests(Section):
    """Settings that only S3 has."""

    storage_class: Annotated[StorageClass, one_of(*get_args(StorageClass))] | None = Field(
        default=None,
        description="storage class of new contents; sidecars, tombstones and epochs stay in the bucket's default class. "
        "Contents in `GLACIER` and `DEEP_ARCHIVE` need `distier restore` before a read",
    )  # fmt: skip
    kms_key_id: str | None = Field(
        default=None,
        min_length=1,
        description="KMS key that encrypts new objects (SSE-KMS); default: as the bucket does",
    )
    bucket_key: bool = Field(
        default=False, description="use an S3 bucket key with `kms_key_id`, which needs fewer requests to KMS"
    )
    requester_pays: bool = Field(default=False, description="accept the costs of requests to a requester-pays bucket")
    expected_bucket_owner: str | None = Field(
        default=None, pattern=r"^\d{12}$", description="account that must own the bucket; all requests fail otherwise"
    )

    @model_validator(mode="after")
    def _can_be_sent(self) -> S3Requests:
        if self.requests and not getattr(self, "url", None):  # a field of the section that has these settings
            raise ValueError(f"{', '.join(self.requests)} can only be set with url")
        if self.bucket_key and not self.kms_key_id:
            raise ValueError("bucket_key needs kms_key_id")
        return self

    @property
    def requests(self) -> dict[str, Any]:
        """The keyword arguments of `S3Archive` for those of these settings that are set."""
        return {name: value for name in S3Requests.model_fields if (value := getattr(self, name))}
