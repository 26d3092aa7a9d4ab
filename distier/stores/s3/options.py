"""What the configuration adds to requests: storage class, encryption, payer and expected owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distier.domain.archived import parse_key
from distier.domain.packs import parse_content
from distier.errors import ConfigError

IN_ACTIVE_TIER = frozenset(["InvalidObjectState", "ObjectAlreadyInActiveTierError"])
"""Error codes of RestoreObject for an object that needs no restore."""


def adder(
    name: str, *, storage_class: str | None = None, kms_key_id: str | None = None, bucket_key: bool = False,
    requester_pays: bool = False, expected_bucket_owner: str | None = None,
) -> Callable[..., None]:  # fmt: skip
    """Return a handler of botocore's event `before-parameter-build`, which adds parameters to every request that has them.

    An event cannot forget a request, unlike an argument at each call: with a wrong owner or without a payer, S3 refuses.

    Raises:
        ConfigError: The options of the archive `name` do not fit together.
    """
    if bucket_key and not kms_key_id:
        raise ConfigError(f"{name}: bucket_key needs kms_key_id")
    every: dict[str, Any] = {}
    if requester_pays:
        every["RequestPayer"] = "requester"
    if expected_bucket_owner:
        every["ExpectedBucketOwner"] = expected_bucket_owner
    new: dict[str, Any] = {}
    if kms_key_id:
        new |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key_id}
    if bucket_key:
        new["BucketKeyEnabled"] = True

    def add(params: dict[str, Any], model: Any, **_: object) -> None:
        members = model.input_shape.members
        params.update({key: value for key, value in every.items() if key in members})
        if model.name == "PutObject":
            params.update(new)
            # What recovery lists and reads at once must not need a restore: only contents get the class.
            found = parse_key(params["Key"])
            is_content = (found is not None and found.kind == "content") or parse_content("", params["Key"])
            if storage_class and is_content:
                params["StorageClass"] = storage_class

    return add
