"""The archive in S3, or in what speaks S3 (MinIO, Ceph, R2, `rclone serve s3`).

Only what every such server does the same is used: single PUT, GET, ListObjectsV2, DELETE, and DeleteObjects
where it works. No conditional writes, no versioning, no checksum headers unless the server demands them
(`when_required`: botocore's newer default is rejected by some servers, and the caller compares SHA-256).

An S3 error is a code, not an HTTP status: 404 is also "no such bucket", or a proxy that knows no S3. Only
the code `NoSuchKey` is a miss.

A success is not a status either. A login page of a proxy is also 200, and botocore reads every document without the elements
that it looks for as an empty one. So a success counts only if it shows that it comes from an S3 server, and a listing only if
it says which prefix it is of and whether it is whole (`_check_success`, `_check_page`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import unquote_plus, urlsplit

import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.handlers import add_expect_header

from distier.domain.archived import Limits
from distier.errors import ArchiveUnavailable, ConfigError, Corrupt, DistierError, Invalid
from distier.stores.archive import MAX_KEY_BYTES, Fetched, Listed, check_key, check_limit, probe
from distier.stores.s3.errors import (
    ADVICE,
    CHECKSUMS,
    EXPIRED_CODES,
    NO_BATCH_CODES,
    PASSING_CODES,
    PASSING_ERRORS,
    WANTS_CHECKSUM_CODES,
    Strange,
    check_success,
    checksum_of,
    headers_as_text,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


T = TypeVar("T")
_PAGE_KEYS = 1000  # the most that S3 lists or deletes in one request
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 2
_EMPTY_PAGES_MAX = 100
"""Truncated pages without a key, one after the other. S3 may give some where many objects were deleted."""


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
        session_token: str | None = None,
        addressing_style: str | None = None,
        timeout_s: float = 5.0,
        max_connections: int = 16,
    ) -> None:
        self._bucket, self._own = _parse(url)
        self.name = f"s3://{self._bucket}/{self._own}".rstrip("/")
        self.limits = Limits(MAX_KEY_BYTES - len(self._own.encode()))
        if bool(access_key) != bool(secret_key):
            raise ConfigError(f"{self.name}: access_key and secret_key go together")
        for name, value in (("access_key", access_key), ("secret_key", secret_key), ("session_token", session_token)):
            if value is not None and not re.fullmatch(r"[!-~]+", value):
                raise ConfigError(f"{self.name}: {name} has white space or other characters that no key has: {_WHITE}")
        if access_key is None:
            for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                if not re.fullmatch(r"[!-~]*", os.environ.get(variable, "")):
                    raise ConfigError(
                        f"{self.name}: {variable} has white space or other characters that no key has: {_WHITE}"
                    )
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=timeout_s / _ATTEMPTS,
            read_timeout=timeout_s / _ATTEMPTS,
            max_pool_connections=max_connections,
        )

        def connect() -> S3Client:  # a closure: the secret is no attribute that a repr or a debugger shows
            # A session of its own: the default one of boto3 is not thread-safe, and keeps the credentials that it once read.
            session = boto3.session.Session(
                aws_access_key_id=access_key, aws_secret_access_key=secret_key, aws_session_token=session_token
            )
            style = addressing_style or _style_of(session, endpoint_url)
            client: S3Client = session.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                config=config.merge(Config(s3=cast(Any, {"addressing_style": style}))),
            )
            # No `Expect: 100-continue`: botocore waits a second for a server that does not answer to that,
            # and it only pays for large bodies.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            client.meta.events.register("before-send.s3", headers_as_text)
            client.meta.events.register("before-parse.s3", self._check_answer)
            return client

        self._connect = connect
        self._own_credentials = access_key is not None
        try:
            self._connected = (os.getpid(), connect())
        except (boto_errors.BotoCoreError, ValueError) as e:
            raise ConfigError(f"{self.name}: {e}") from e
        self._batch_deletes = True
        self._checksum = 0

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
        request: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._full(key),
            "Body": data,
            "ContentType": content_type,
            "Metadata": dict(metadata),
        }
        with self._faults(f"put {key}"):
            self._renewed(lambda: self._put_with_checksum(request, data))

    def _put_with_checksum(self, request: Mapping[str, Any], data: bytes) -> None:
        """With the least that this server takes; which that is, is remembered."""
        refused: boto_errors.ClientError | None = None
        for checksum in range(self._checksum, len(CHECKSUMS)):
            try:
                self._client.put_object(**request, **checksum_of(data, CHECKSUMS[checksum]))
            except boto_errors.ClientError as e:
                if e.response["Error"].get("Code") not in WANTS_CHECKSUM_CODES:
                    raise refused or e from None
                refused = refused or e
            else:
                self._checksum = checksum
                return
        assert refused is not None
        raise refused

    def _renewed(self, call: Callable[[], T]) -> T:
        """`call`, and once more with new credentials where the old ones are over. Those that are given in the configuration
        stay as they are until somebody changes it."""
        try:
            return call()
        except boto_errors.ClientError as e:
            if self._own_credentials or e.response["Error"].get("Code") not in EXPIRED_CODES:
                raise
        # Two threads may both connect: the last one stays. The old client is not closed, because others may be using it.
        self._connected = (os.getpid(), self._connect())
        return call()

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """See `Archive.get`."""
        with self._faults(f"get {key}"):
            try:
                full = self._full(key)
                reply = self._renewed(lambda: self._client.get_object(Bucket=self._bucket, Key=full))
            except boto_errors.ClientError as e:
                if e.response["Error"].get("Code") == "NoSuchKey":
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
        found: list[Listed] = []
        for one in self._listed(prefix, start_after, check_limit(limit)):
            # A server that replaces an object may show its key twice: both mean the one object that is there now.
            if found and one.key == found[-1].key:
                found[-1] = max(found[-1], one, key=lambda listed: listed.modified_ms)
                continue
            if found and one.key.encode() < found[-1].key.encode():
                raise ConfigError(f"{self.name} does not list in byte order (a directory bucket?); distier needs that")
            if len(found) == limit:
                break
            found.append(one)
        return found

    def _listed(self, prefix: str, start_after: str, limit: int) -> Iterator[Listed]:
        full = self._own + prefix
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": full}
        if start_after.encode() > prefix.encode():  # else it excludes nothing, and servers differ on it
            request["StartAfter"] = self._own + start_after
        for page in self._pages(request, f"list {prefix or 'all'}", min(limit, _PAGE_KEYS)):
            for one in page:
                if one.key.encode() > start_after.encode():
                    yield one

    def _pages(self, request: dict[str, Any], step: str, size: int) -> Iterator[Sequence[Listed]]:
        """The pages of a listing, each of which goes on after the one before, else this is an error: a server that repeats
        itself would be asked for ever."""
        last, empty, tokens = b"", 0, set[str]()
        while True:
            with self._faults(step):
                reply = self._renewed(lambda: self._client.list_objects_v2(**request, MaxKeys=size))
                page = self._page(reply, request["Prefix"])
            yield page
            if not reply["IsTruncated"]:
                return
            end = page[-1].key.encode() if page else b""
            token = reply.get("NextContinuationToken")
            empty = 0 if page else empty + 1
            if (page and end <= last) or empty > _EMPTY_PAGES_MAX or token in tokens or not (page or token):
                raise ConfigError(
                    f"{self.name}: can not {step}: the server says that there is more, and does not go on "
                    f"after {end.decode()!r}"
                )
            last = max(last, end)
            if token:
                tokens.add(token)
                request["ContinuationToken"] = token
            else:  # as some gateways do
                request.pop("ContinuationToken", None)
                request["StartAfter"] = self._own + end.decode()

    def _page(self, reply: Mapping[str, Any], prefix: str) -> Sequence[Listed]:
        """What one page lists. Raises `ArchiveUnavailable` where it is none, or not of `prefix`."""
        items = reply.get("Contents", ())
        shown = reply.get("Prefix", "")
        # Servers differ in whether they encode the prefix.
        if prefix not in (shown, unquote_plus(shown)) and unquote_plus(prefix) != shown:
            raise Strange(f"a listing of {shown!r}")
        if "IsTruncated" not in reply or (reply.get("KeyCount") and not items):
            raise Strange("a listing that is not whole")
        if any(not item.get("Key", "").startswith(prefix) for item in items):
            raise Strange(f"a listing with keys that do not begin with {prefix!r}")
        return [
            Listed(item["Key"].removeprefix(self._own), item["Size"], int(item["LastModified"].timestamp() * 1000))
            for item in items
        ]

    def delete(self, keys: Sequence[str]) -> None:
        """See `Archive.delete`. One request for 1000 keys, or one each where the server knows no batches."""
        full = [self._full(key) for key in keys]
        refused: ConfigError | None = None
        for start in range(0, len(full), _PAGE_KEYS):
            page = full[start : start + _PAGE_KEYS]
            try:
                with self._faults(f"delete {len(page)} objects"):
                    if not (self._batch_deletes and self._renewed(partial(self._delete_batch, page))):
                        self._delete_each(page)
            except ConfigError as e:  # by a lock, say: the others go all the same
                refused = refused or e
        if refused is not None:
            raise refused

    def _delete_each(self, full: Sequence[str]) -> None:
        """One after the other; where some are refused, the others go all the same."""
        refused: boto_errors.ClientError | None = None
        for key in full:
            try:
                self._renewed(partial(self._client.delete_object, Bucket=self._bucket, Key=key))
            except boto_errors.ClientError as e:
                refused = refused or e
        if refused is not None:
            raise refused

    def _delete_batch(self, full: Sequence[str]) -> bool:
        """False if the server has no DeleteObjects as botocore asks for it; remembered."""
        try:
            reply = self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in full], "Quiet": True}
            )
        except (boto_errors.ClientError, Strange) as e:
            if isinstance(e, boto_errors.ClientError) and e.response["Error"].get("Code") not in NO_BATCH_CODES:
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

    def _check_answer(self, response_dict: dict[str, Any], **_: object) -> None:
        """Each answer before botocore reads it (an event of botocore). Raises `ConfigError`, `ArchiveUnavailable`."""
        status, headers = response_dict["status_code"], response_dict["headers"]
        operation = response_dict["context"]["operation_name"]
        if status < 300:
            check_success(operation, status, headers, response_dict["body"])
        # Where S3 says in which region the bucket is, botocore goes there, once. Where nobody says so, it asks by HEAD; if
        # that is redirected as well, it asks again, without end.
        elif status < 400 and "x-amz-bucket-region" not in headers and b"<Region>" not in response_dict["body"]:
            location = urlsplit(str(headers.get("location", "")))
            to = f"{location.scheme}://{location.netloc}{location.path}" if location.netloc else location.path
            raise ConfigError(
                f"the server redirects to {to or 'nowhere'} ({status}): is endpoint_url the S3 server, is the region of the "
                "bucket right, does a proxy want a login?"
            )

    @contextmanager
    def _faults(self, step: str) -> Iterator[None]:
        """Turn what botocore raises into what the caller should do: whatever a server answers, one of our errors."""
        try:
            yield
        except boto_errors.ClientError as e:
            error, meta = e.response["Error"], e.response["ResponseMetadata"]
            raise self._explain(step, error.get("Code", ""), meta.get("HTTPStatusCode", 0), str(e)) from e
        except PASSING_ERRORS as e:
            if "CERTIFICATE_VERIFY_FAILED" in str(e):
                raise ConfigError(f"{self.name}: can not {step}: {e}") from e
            raise ArchiveUnavailable(f"{self.name}: can not {step} now: {e}") from e
        except boto_errors.BotoCoreError as e:
            raise ConfigError(f"{self.name}: can not {step}: {e}") from e
        except ConfigError as e:
            raise ConfigError(f"{self.name}: can not {step}: {e}") from e
        except Strange as e:
            raise ArchiveUnavailable(f"{self.name}: can not {step} now: {e}") from e
        except DistierError:
            raise
        except Exception as e:  # botocore takes for granted that answers have the shape of S3's
            raise ArchiveUnavailable(
                f"{self.name}: can not {step} now: no answer of an S3 server ({type(e).__name__}: {e})"
            ) from e

    def _explain(self, step: str, code: str, status: int, text: str) -> DistierError:
        passing = code in PASSING_CODES or status in (408, 409, 429) or (status >= 500 and status != 501)
        if passing:
            return ArchiveUnavailable(f"{self.name}: can not {step} now: {text}")
        if code in ("MetadataTooLarge", "KeyTooLongError", "EntityTooLarge"):
            return Invalid(f"{self.name}: can not {step}: {text}")
        advice = f"; {ADVICE[code]}" if code in ADVICE else ""
        return ConfigError(f"{self.name}: can not {step}: {text.removesuffix('.')}{advice}")


_WHITE = "was it copied with the end of its line?"


def _style_of(session: Any, endpoint_url: str | None) -> str:
    """How the bucket is named in requests: as `~/.aws/config` says, else in the path where the server has an endpoint of its
    own. Such servers seldom have a DNS name for each bucket."""
    scoped = session._session.get_scoped_config()
    section = scoped.get("s3")
    if isinstance(section, dict) and section.get("addressing_style"):
        return str(section["addressing_style"])
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    own = endpoint_url or scoped.get("endpoint_url") or scoped.get("services") or any(map(os.environ.get, variables))
    return "path" if own else "auto"


def _parse(url: str) -> tuple[str, str]:
    """Bucket, and prefix with a `/` behind it (or empty), of `s3://bucket/prefix`."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if scheme != "s3" or not bucket or "@" in bucket:
        raise ConfigError("an S3 archive is s3://bucket or s3://bucket/prefix; credentials are separate options")
    return bucket, f"{check_key(prefix)}/" if prefix else ""
