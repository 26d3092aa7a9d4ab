"""The archive in S3 or on a compatible server (MinIO, Ceph, R2, `rclone serve s3`).

It uses only operations that all such servers implement alike: single PUT, GET, ListObjectsV2, DELETE, and DeleteObjects
where it works. It uses no conditional writes, no versioning, and no checksum headers unless the server requires them. (Some
servers reject botocore's newer default, so the setting is `when_required`; the caller compares the SHA-256.)

An S3 error is a code, not an HTTP status: 404 may also mean "no such bucket", or come from a proxy that is no S3 server. Only
the code `NoSuchKey` is a miss.

A status does not prove success either. A proxy's login page has status 200, and botocore treats any document without the
expected elements as an empty reply. So a success counts only with proof that it comes from an S3 server, and a listing only if
it names its prefix and whether it is complete (`check_success`, `_page`).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote, unquote_plus, urlsplit

import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.handlers import add_expect_header

from distier.domain.archived import Limits, download_name
from distier.domain.objects import Fetched, Listed
from distier.errors import ArchiveUnavailable, ConfigError, Corrupt, DistierError, Invalid, NeedsRestore
from distier.stores.archive import MAX_KEY_BYTES, check_key, check_limit, probe
from distier.stores.s3 import direct, options
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
"""Maximum number of consecutive truncated pages without a key. S3 may return some after many objects were deleted."""


class S3Archive:
    """Objects below `url`.

    Credentials and region come from the AWS chain (environment, files, instance role) unless they are given.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.
        endpoint_url: The URL of a server other than AWS.
        region: The region of the bucket.
        access_key: The access key; requires `secret_key`.
        secret_key: The secret key.
        session_token: The token of temporary credentials.
        addressing_style: `auto`, `path` or `virtual`; see `_style_of` for the default.
        timeout_s: Approximate time after which a silent server is reported, in seconds. Each of two attempts waits half
            of it for a connection and for every next byte. The first GET after others succeeded has three attempts.
        max_connections: Maximum number of connections.
        requests: What is added to requests; see `options.adder`.

    Raises:
        ConfigError: The URL or an option is invalid.
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
        **requests: Any,
    ) -> None:
        self._bucket, self._own = _parse(url)
        self.name = f"s3://{self._bucket}/{self._own}".rstrip("/")
        self.limits = Limits(MAX_KEY_BYTES - len(self._own.encode()))
        if bool(access_key) != bool(secret_key):
            raise ConfigError(f"{self.name}: access_key and secret_key must be set together")
        for name, value in (("access_key", access_key), ("secret_key", secret_key), ("session_token", session_token)):
            if value is not None and not re.fullmatch(r"[!-~]+", value):
                raise ConfigError(
                    f"{self.name}: {name} contains white space or other invalid characters ({_INVALID_HINT})"
                )
        if access_key is None:
            for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                if not re.fullmatch(r"[!-~]*", os.environ.get(variable, "")):
                    raise ConfigError(
                        f"{self.name}: {variable} contains white space or other invalid characters ({_INVALID_HINT})"
                    )
        add = options.adder(self.name, **requests)
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=timeout_s / _ATTEMPTS,
            read_timeout=timeout_s / _ATTEMPTS,
            max_pool_connections=max_connections,
        )

        def connect() -> tuple[S3Client, Any]:  # a closure: no attribute shows the secret in a repr or a debugger
            # A separate session: boto3's default one is not thread-safe, and never reads its credentials again.
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
            # No `Expect: 100-continue`: botocore waits a second for a server that does not respond to it, and it pays off
            # only for large bodies.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            client.meta.events.register("before-parameter-build.s3", add)
            client.meta.events.register("before-send.s3", headers_as_text)
            client.meta.events.register("before-parse.s3", self._check_response)
            client.meta.events.register("before-send.s3.GetObject", self._note_request)
            return client, session.get_credentials()

        self._connect = connect
        self._own_credentials = access_key is not None
        try:
            self._connected = (os.getpid(), *connect())
        except (boto_errors.BotoCoreError, ValueError) as e:
            raise ConfigError(f"{self.name}: {e}") from e
        self._batch_deletes = True
        self._checksum = 0
        self._template: direct.Template | None = None
        self._sent = threading.local()

    def __repr__(self) -> str:
        return f"S3Archive({self.name!r})"

    @property
    def _client(self) -> S3Client:
        """This process's client. After a fork, both processes would read responses from the same sockets.

        There is no lock, because a lock that another thread holds during a fork is never released in the child. Two
        threads may both connect after a fork; the last client stays, the other one is used once.
        """
        pid, client, _ = self._connected
        if pid != os.getpid():
            self._connected = (os.getpid(), *self._connect())
            client = self._connected[1]
        return client

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Archive.put`. If a key is put with two contents, the last one stays."""
        request: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._full(key),
            "Body": data,
            "ContentType": content_type,
            "Metadata": dict(metadata),
        }
        if name := download_name(key, metadata):
            request["ContentDisposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        with self._faults(f"put {key}"):
            self._renewed(lambda: self._put_with_checksum(request, data))

    def _put_with_checksum(self, request: Mapping[str, Any], data: bytes) -> None:
        """Put with the weakest checksum that this server accepts, and remember it."""
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
        """Run `call`, and if the credentials have expired, once more with new ones.

        Credentials in the configuration cannot be renewed.
        """
        try:
            return call()
        except boto_errors.ClientError as e:
            if self._own_credentials or e.response["Error"].get("Code") not in EXPIRED_CODES:
                raise
        # Two threads may both connect: the last client stays. The old one is not closed, because other threads may use it.
        self._connected = (os.getpid(), *self._connect())
        return call()

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """See `Archive.get`."""
        with self._faults(f"get {key}"):
            full = self._full(key)
            found = self._get_directly(full) or self._get_by_botocore(full)
            if found is None:
                return None
            with closing(found.body):
                return Fetched(self._read(key, found.body, max_bytes), found.metadata, found.content_type)

    def _get_directly(self, full: str) -> direct.Found | None:
        """Get an object in the way that last succeeded. After any failure, botocore has to succeed first."""
        template = self._template
        if template is None or template.client is not self._client:
            return None
        try:
            found = direct.get(template, full)
        except Exception:  # botocore will meet the same failure, and knows what to do
            found = None
        if found is None:
            self._template = None
        return found

    def _get_by_botocore(self, full: str) -> direct.Found | None:
        try:
            reply = self._renewed(lambda: self._client.get_object(Bucket=self._bucket, Key=full))
        except boto_errors.ClientError as e:
            if e.response["Error"].get("Code") == "NoSuchKey":
                return None
            raise
        request, (pid, client, credentials) = getattr(self._sent, "request", None), self._connected
        if request is not None and pid == os.getpid():
            self._template = direct.template_of(client, credentials, request, full)
        # S3 returns names in lower case, rclone returns `Like-This`.
        metadata = {name.lower(): value for name, value in reply.get("Metadata", {}).items()}
        return direct.Found(reply["Body"], metadata, reply.get("ContentType"))

    def _note_request(self, request: Any, **_: object) -> None:
        """Keep this thread's last GET (an event of botocore)."""
        self._sent.request = request

    def _read(self, key: str, body: Any, max_bytes: int) -> bytes:
        """Read the whole body. Closing it early drops the connection, so an oversized object costs one chunk."""
        chunks: list[bytes] = []
        size_bytes = 0
        while chunk := body.read(min(_CHUNK_BYTES, max_bytes - size_bytes + 1)):
            chunks.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise Corrupt(f"{key} in {self.name} has more than {max_bytes} bytes")
        return b"".join(chunks)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """See `Archive.list`. Also raises `ConfigError` if the server does not list in byte order."""
        found: list[Listed] = []
        for one in self._listed(prefix, start_after, check_limit(limit)):
            # A server may list a key twice while it replaces the object: both entries mean the current object.
            if found and one.key == found[-1].key:
                found[-1] = max(found[-1], one, key=lambda listed: listed.modified_ms)
                continue
            if found and one.key.encode() < found[-1].key.encode():
                raise ConfigError(
                    f"{self.name} does not list in byte order, which distier needs (is it a directory bucket?)"
                )
            if len(found) == limit:
                break
            found.append(one)
        return found

    def _listed(self, prefix: str, start_after: str, limit: int) -> Iterator[Listed]:
        full = self._own + prefix
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": full}
        if start_after.encode() > prefix.encode():  # otherwise it excludes nothing, and servers differ in its handling
            request["StartAfter"] = self._own + start_after
        for page in self._pages(request, f"list {prefix or 'all'}", min(limit, _PAGE_KEYS)):
            for one in page:
                if one.key.encode() > start_after.encode():
                    yield one

    def _pages(self, request: dict[str, Any], step: str, size: int) -> Iterator[Sequence[Listed]]:
        """Yield the pages of a listing.

        Raises:
            ConfigError: A page does not continue after the previous one. Such a server would be asked forever.
        """
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
                    f"{self.name}: cannot {step}: the server reports more objects, but does not continue after "
                    f"{end.decode()!r}"
                )
            last = max(last, end)
            if token:
                tokens.add(token)
                request["ContinuationToken"] = token
            else:  # as some gateways do
                request.pop("ContinuationToken", None)
                request["StartAfter"] = self._own + end.decode()

    def _page(self, reply: Mapping[str, Any], prefix: str) -> Sequence[Listed]:
        """Return the objects of one page.

        Raises:
            ArchiveUnavailable: It is not a listing of `prefix`.
        """
        items = reply.get("Contents", ())
        shown = reply.get("Prefix", "")
        # Some servers encode the prefix.
        if prefix not in (shown, unquote_plus(shown)) and unquote_plus(prefix) != shown:
            raise Strange(f"a listing of {shown!r}")
        if "IsTruncated" not in reply or (reply.get("KeyCount") and not items):
            raise Strange("an incomplete listing")
        if any(not item.get("Key", "").startswith(prefix) for item in items):
            raise Strange(f"a listing with keys that do not start with {prefix!r}")
        return [
            Listed(item["Key"].removeprefix(self._own), item["Size"], int(item["LastModified"].timestamp() * 1000))
            for item in items
        ]

    def delete(self, keys: Sequence[str]) -> None:
        """See `Archive.delete`. Sends one request per 1000 keys, or one per key if the server does not support batches."""
        full = [self._full(key) for key in keys]
        refused: ConfigError | None = None
        for start in range(0, len(full), _PAGE_KEYS):
            page = full[start : start + _PAGE_KEYS]
            try:
                with self._faults(f"delete {len(page)} objects"):
                    if not (self._batch_deletes and self._renewed(partial(self._delete_batch, page))):
                        self._delete_each(page)
            except ConfigError as e:  # for example an object lock: still delete the others
                refused = refused or e
        if refused is not None:
            raise refused

    def _delete_each(self, full: Sequence[str]) -> None:
        """Delete the keys one by one. If some are refused, the others are still deleted."""
        refused: boto_errors.ClientError | None = None
        for key in full:
            try:
                self._renewed(partial(self._client.delete_object, Bucket=self._bucket, Key=key))
            except boto_errors.ClientError as e:
                refused = refused or e
        if refused is not None:
            raise refused

    def _delete_batch(self, full: Sequence[str]) -> bool:
        """Delete the keys in one request. Returns False if the server does not support that, and remembers it."""
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

    def restore(self, key: str, *, days: int, tier: Any) -> bool:
        """See `distier.stores.archive.restore`. S3 returns 202 when it begins, 409 while it works and 200 when it is done."""
        request: Any = {"Days": days, "GlacierJobParameters": {"Tier": tier}} if days else {}
        with self._faults(f"restore {key}"):
            ask = partial(self._client.restore_object, Bucket=self._bucket, Key=self._full(key), RestoreRequest=request)
            try:
                return self._renewed(ask)["ResponseMetadata"]["HTTPStatusCode"] == 200
            except boto_errors.ClientError as e:
                code = e.response["Error"].get("Code", "")
                if code == "NoSuchKey":
                    raise Corrupt(f"{self.name} has no object {key!r}; run `distier fsck`") from e
                if code == "RestoreAlreadyInProgress" or code in options.IN_ACTIVE_TIER:
                    return code != "RestoreAlreadyInProgress"
                raise

    def check(self) -> None:
        """See `Archive.check`."""
        probe(self)

    def close(self) -> None:
        """Close the connections of this process."""
        pid, client, _ = self._connected
        if pid == os.getpid():
            client.close()

    def _full(self, key: str) -> str:
        full = self._own + check_key(key)
        return check_key(full)  # the limit applies to the whole key

    def _check_response(self, response_dict: dict[str, Any], **_: object) -> None:
        """Check each response before botocore parses it (an event of botocore).

        Raises:
            ConfigError: The server redirects without naming a region.
            ArchiveUnavailable: It is not a response of an S3 server.
        """
        status, headers = response_dict["status_code"], response_dict["headers"]
        operation = response_dict["context"]["operation_name"]
        if status < 300:
            check_success(operation, status, headers, response_dict["body"])
        # If S3 names the bucket's region, botocore follows once. If not, it sends a HEAD request; if that is redirected as
        # well, botocore repeats it endlessly.
        elif status < 400 and "x-amz-bucket-region" not in headers and b"<Region>" not in response_dict["body"]:
            location = urlsplit(str(headers.get("location", "")))
            to = f"{location.scheme}://{location.netloc}{location.path}" if location.netloc else location.path
            raise ConfigError(
                f"the server redirects to {to or 'an unknown location'} ({status}): check endpoint_url and the region of the "
                "bucket; or does a proxy require a login?"
            )

    @contextmanager
    def _faults(self, step: str) -> Iterator[None]:
        """Translate the exceptions of botocore into distier's errors, for any response of a server."""
        try:
            yield
        except boto_errors.ClientError as e:
            error, meta = e.response["Error"], e.response["ResponseMetadata"]
            raise self._explain(step, error.get("Code", ""), meta.get("HTTPStatusCode", 0), str(e)) from e
        except PASSING_ERRORS as e:
            if "CERTIFICATE_VERIFY_FAILED" in str(e):
                raise ConfigError(f"{self.name}: cannot {step}: {e}") from e
            raise ArchiveUnavailable(f"{self.name}: cannot {step} now: {e}") from e
        except boto_errors.BotoCoreError as e:
            raise ConfigError(f"{self.name}: cannot {step}: {e}") from e
        except ConfigError as e:
            raise ConfigError(f"{self.name}: cannot {step}: {e}") from e
        except Strange as e:
            raise ArchiveUnavailable(f"{self.name}: cannot {step} now: {e}") from e
        except DistierError:
            raise
        except Exception as e:  # botocore assumes that responses have the shape of S3's
            raise ArchiveUnavailable(
                f"{self.name}: cannot {step} now: not a response of an S3 server ({type(e).__name__}: {e})"
            ) from e

    def _explain(self, step: str, code: str, status: int, text: str) -> DistierError:
        passing = code in PASSING_CODES or status in (408, 409, 429) or (status >= 500 and status != 501)
        if passing:
            return ArchiveUnavailable(f"{self.name}: cannot {step} now: {text}")
        if code in ("MetadataTooLarge", "KeyTooLongError", "EntityTooLarge"):
            return Invalid(f"{self.name}: cannot {step}: {text}")
        if code == "InvalidObjectState":
            return NeedsRestore(f"{self.name}: cannot {step} before `distier restore ID --wait`: {text}")
        advice = f"; {ADVICE[code]}" if code in ADVICE else ""
        return ConfigError(f"{self.name}: cannot {step}: {text.removesuffix('.')}{advice}")


_INVALID_HINT = "was it copied with a line break?"


def _style_of(session: Any, endpoint_url: str | None) -> str:
    """Return how requests name the bucket: as in `~/.aws/config`, or otherwise in the path if there is an endpoint URL.

    Servers with their own endpoint seldom have a DNS name for each bucket.
    """
    scoped = session._session.get_scoped_config()
    section = scoped.get("s3")
    if isinstance(section, dict) and section.get("addressing_style"):
        return str(section["addressing_style"])
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    own = endpoint_url or scoped.get("endpoint_url") or scoped.get("services") or any(map(os.environ.get, variables))
    return "path" if own else "auto"


def _parse(url: str) -> tuple[str, str]:
    """Split `s3://bucket/prefix` into the bucket and the prefix, which ends with `/` or is empty."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if scheme != "s3" or not bucket or "@" in bucket:
        raise ConfigError("the URL must be s3://bucket or s3://bucket/prefix; credentials are separate options")
    return bucket, f"{check_key(prefix)}/" if prefix else ""
