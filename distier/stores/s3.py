"""The archive in S3, or in what speaks S3 (MinIO, Ceph, R2, `rclone serve s3`).

Only what every such server does the same is used: single PUT, GET, ListObjectsV2, DELETE, and DeleteObjects
where it works. No conditional writes, no versioning, no checksum headers unless the server demands them
(`when_required`: botocore's newer default is rejected by some servers, and the caller compares SHA-256).

An S3 error is a code, not an HTTP status: 404 is also "no such bucket", or a proxy that knows no S3. Only
the code `NoSuchKey` is a miss.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError

from distier.errors import ArchiveUnavailable, ConfigError, Corrupt, DistierError, Invalid

from .archive import Fetched, Listed, check_key, check_limit, probe

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PAGE_KEYS = 1000  # the most that S3 lists or deletes in one request
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 2

_PASSING_CODES = frozenset(
    [
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",
        "XMinioServerNotInitialized",
    ]
)
# Codes with which servers say that they do not have DeleteObjects, or want Content-MD5 with it.
_NO_BATCH_CODES = frozenset(
    [
        "NotImplemented",
        "MethodNotAllowed",
        "MissingContentMD5",
        "InvalidDigest",
        "BadDigest",
        "InvalidRequest",
        "InvalidArgument",
        "MissingSecurityHeader",
        "MalformedXML",
        "405",
        "501",
    ]
)
_ADVICE = {
    "NoSuchBucket": "create the bucket or correct the url",
    "AccessDenied": "grant s3:ListBucket on the bucket and s3:GetObject, s3:PutObject, s3:DeleteObject in it",
    "InvalidAccessKeyId": "correct the access key",
    "SignatureDoesNotMatch": "correct the secret key (or the region)",
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set this host's clock",
    "PermanentRedirect": "set the region of the bucket",
    "AuthorizationHeaderMalformed": "set the region of the bucket",
    "404": "is endpoint_url an S3 server? It answered 404 without an S3 error",
}
# What botocore raises when the server or the way to it is at fault; its other errors are about
# configuration.
_PASSING_ERRORS = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    boto_errors.MetadataRetrievalError,
    boto_errors.CredentialRetrievalError,
    ResponseParserError,
)


class S3Archive:
    """Objects below `url` (`s3://bucket` or `s3://bucket/prefix`).

    Credentials and region come from the AWS chain (environment, files, instance role) unless given. A
    server that does not answer is reported after about `timeout_s`: two attempts, each waits half of it for
    a connection and for every next byte. Raises `ConfigError` for an impossible url or option.
    """

    keeps_metadata = True

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        timeout_s: float = 5.0,
        max_connections: int = 16,
    ) -> None:
        self._bucket, self._own = _parse(url)
        self.name = f"s3://{self._bucket}/{self._own}".rstrip("/")
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=timeout_s / _ATTEMPTS,
            read_timeout=timeout_s / _ATTEMPTS,
            max_pool_connections=max_connections,
            # Servers at an endpoint of their own seldom have a DNS name for each bucket.
            s3={"addressing_style": "path" if endpoint_url else "auto"},
        )

        def connect() -> S3Client:  # a closure: the secret is no attribute that a repr or a debugger shows
            # A session of its own: the default one of boto3 is not thread-safe.
            client: S3Client = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=config,
            )
            # No `Expect: 100-continue`: botocore waits a second for a server that does not answer to that,
            # and it only pays for large bodies.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            return client

        self._connect = connect
        try:
            self._connected = (os.getpid(), connect())
        except (boto_errors.BotoCoreError, ValueError) as e:
            raise ConfigError(f"{self.name}: {e}") from e
        self._batch_deletes = True

    def __repr__(self) -> str:
        return f"S3Archive({self.name!r})"

    @property
    def _client(self) -> S3Client:
        """This process's client: after a fork both processes would read answers from the same sockets.

        No lock: one that another thread holds while the process forks is never released in the child. Two
        threads may both connect after a fork; the last one stays, the other is used once.
        """
        pid, client = self._connected
        if pid != os.getpid():
            client = self._connect()
            self._connected = (os.getpid(), client)
        return client

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Archive.put`. Of two contents for one key the last one stays."""
        with self._faults(f"put {key}"):
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Body=data,
                ContentType=content_type,
                Metadata=dict(metadata),
            )

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """See `Archive.get`."""
        with self._faults(f"get {key}"):
            try:
                reply = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
            except boto_errors.ClientError as e:
                if e.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise
            with closing(reply["Body"]) as body:
                # S3 keeps names in lower case, rclone answers `Like-This`.
                metadata = {name.lower(): value for name, value in reply.get("Metadata", {}).items()}
                return Fetched(self._read(key, body, max_bytes), metadata, reply.get("ContentType"))

    def _read(self, key: str, body: Any, max_bytes: int) -> bytes:
        """All of `body`. Closing it half-read drops the connection: an oversized object costs a chunk."""
        chunks: list[bytes] = []
        size_bytes = 0
        while chunk := body.read(min(_CHUNK_BYTES, max_bytes - size_bytes + 1)):
            chunks.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise Corrupt(f"{key} in {self.name} has more than {max_bytes} bytes")
        return b"".join(chunks)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """See `Archive.list`. Raises `ConfigError` if the server does not list in the order of bytes."""
        found = list(itertools.islice(self._listed(prefix, start_after, check_limit(limit)), limit))
        keys = [one.key.encode() for one in found]
        if any(a >= b for a, b in itertools.pairwise(keys)):
            raise ConfigError(f"{self.name} does not list in byte order (a directory bucket?); distier needs that")
        return found

    def _listed(self, prefix: str, start_after: str, limit: int) -> Iterator[Listed]:
        own = self._own
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": own + prefix}
        if start_after.encode() > prefix.encode():  # else it excludes nothing, and servers differ on it
            request["StartAfter"] = own + start_after
        after = start_after.encode()
        while True:
            with self._faults(f"list {prefix or 'all'}"):
                page = self._client.list_objects_v2(**request, MaxKeys=min(limit, _PAGE_KEYS))
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(own)
                if key.encode() > after:
                    yield Listed(key, item["Size"], int(item["LastModified"].timestamp() * 1000))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Sequence[str]) -> None:
        """See `Archive.delete`. One request for 1000 keys, or one each where the server knows no batches."""
        full = [self._full(key) for key in keys]
        for start in range(0, len(full), _PAGE_KEYS):
            page = full[start : start + _PAGE_KEYS]
            with self._faults(f"delete {len(page)} objects"):
                if not (self._batch_deletes and self._delete_batch(page)):
                    for key in page:
                        self._client.delete_object(Bucket=self._bucket, Key=key)

    def _delete_batch(self, full: Sequence[str]) -> bool:
        """False if the server has no DeleteObjects as botocore asks for it; remembered."""
        try:
            reply = self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in full], "Quiet": True}
            )
        except boto_errors.ClientError as e:
            if e.response["Error"]["Code"] not in _NO_BATCH_CODES:
                raise
            self._batch_deletes = False
            return False
        failed = [e for e in reply.get("Errors", ()) if e.get("Code") != "NoSuchKey"]
        if failed:
            raise self._explain(f"delete {len(failed)} objects", failed[0].get("Code", ""), 0, str(failed[0]))
        return True

    def check(self) -> None:
        """See `Archive.check`."""
        probe(self)

    def close(self) -> None:
        """Close the connections of this process."""
        pid, client = self._connected
        if pid == os.getpid():
            client.close()

    def _full(self, key: str) -> str:
        full = self._own + check_key(key)
        return check_key(full)  # the limit is one of the whole key

    @contextmanager
    def _faults(self, step: str) -> Iterator[None]:
        """Turn what botocore raises into what the caller should do."""
        try:
            yield
        except boto_errors.ClientError as e:
            error, meta = e.response["Error"], e.response["ResponseMetadata"]
            raise self._explain(step, error["Code"], meta.get("HTTPStatusCode", 0), str(e)) from e
        except _PASSING_ERRORS as e:
            if "CERTIFICATE_VERIFY_FAILED" in str(e):
                raise ConfigError(f"{self.name}: can not {step}: {e}") from e
            raise ArchiveUnavailable(f"{self.name}: can not {step} now: {e}") from e
        except boto_errors.BotoCoreError as e:
            raise ConfigError(f"{self.name}: can not {step}: {e}") from e

    def _explain(self, step: str, code: str, status: int, text: str) -> DistierError:
        passing = code in _PASSING_CODES or status in (408, 409, 429) or (status >= 500 and status != 501)
        if passing:
            return ArchiveUnavailable(f"{self.name}: can not {step} now: {text}")
        if code in ("MetadataTooLarge", "KeyTooLongError", "EntityTooLarge"):
            return Invalid(f"{self.name}: can not {step}: {text}")
        advice = f"; {_ADVICE[code]}" if code in _ADVICE else ""
        return ConfigError(f"{self.name}: can not {step}: {text.removesuffix('.')}{advice}")


def _parse(url: str) -> tuple[str, str]:
    """Bucket, and prefix with a `/` behind it (or empty), of `s3://bucket/prefix`."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if scheme != "s3" or not bucket or "@" in bucket:
        raise ConfigError("an S3 archive is s3://bucket or s3://bucket/prefix; credentials are separate options")
    return bucket, f"{check_key(prefix)}/" if prefix else ""
