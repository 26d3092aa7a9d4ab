"""Errors of S3 servers, and how to react to them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from botocore import exceptions as boto_errors
from botocore.parsers import ResponseParserError

from distier.errors import ArchiveUnavailable

# The root element of a successful response with a body. Other operations return only headers.
_ROOTS = {"ListObjectsV2": "ListBucketResult", "DeleteObjects": "DeleteResult"}
# Operations whose success is proved by an ETag, or at least by a header that only S3 servers send.
_TAGGED = frozenset(["PutObject", "GetObject"])
PASSING_CODES = frozenset(
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
# Error codes of servers that do not support DeleteObjects, or require Content-MD5 with it.
NO_BATCH_CODES = frozenset(
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
# Error codes of servers that require Content-MD5 or a checksum for PUT (a bucket with object lock). `CHECKSUMS` are then tried
# in this order, but not from the start, because some servers reject each of them.
WANTS_CHECKSUM_CODES = frozenset(
    ["InvalidRequest", "MissingContentMD5", "MissingDigest", "MissingSecurityHeader", "InvalidDigest", "BadDigest"]
)
CHECKSUMS = ("", "md5", "sha256")
# Error codes for expired credentials. Credentials from files or from STS may have been renewed.
EXPIRED_CODES = frozenset(
    ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"]
)
ADVICE = {
    "NoSuchBucket": "create the bucket or correct the URL",
    "AccessDenied": "grant s3:ListBucket on the bucket and s3:GetObject, s3:PutObject, s3:DeleteObject in it",
    "InvalidAccessKeyId": "correct the access key",
    "SignatureDoesNotMatch": "correct the secret key (or the region)",
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set this host's clock",
    "PermanentRedirect": "set the region of the bucket",
    "AuthorizationHeaderMalformed": "set the region of the bucket",
    "404": "is endpoint_url an S3 server? It replied 404 without an S3 error",
}
# Errors of botocore that are caused by the server or the network; all others are caused by the configuration.
PASSING_ERRORS = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    boto_errors.MetadataRetrievalError,
    boto_errors.CredentialRetrievalError,
    ResponseParserError,
)


def checksum_of(data: bytes, kind: str) -> dict[str, Any]:
    if kind == "md5":
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {"ContentMD5": base64.b64encode(digest).decode()}
    if kind == "sha256":
        return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
    return {}


class Strange(ArchiveUnavailable):
    """A response that no S3 server sends."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the response is {what}: is endpoint_url an S3 server, or does a proxy require a login?")


def check_success(operation: str, status: int, headers: Mapping[str, str], body: Any) -> None:
    """Check that a successful response comes from an S3 server.

    Otherwise an empty response to LIST would mean that every module was deleted, and a response to PUT would mean that a
    version is archived.

    Raises:
        ArchiveUnavailable: No S3 server sends such a response.
    """
    if operation in _TAGGED or (operation == "DeleteObject" and status != 204):
        if status != 200 or not any(name.lower() == "etag" or name.lower().startswith("x-amz-") for name in headers):
            if operation == "GetObject":
                body.close()  # a stream: no other code reads it or returns its connection to the pool
            raise Strange(f"not one of S3 to {operation} ({status} without an ETag)")
    elif operation == "RestoreObject":
        if status not in (200, 202) or body:
            raise Strange(f"not one of S3 to {operation} ({status} with a body of {len(body)} bytes)")
    elif (wanted := _ROOTS.get(operation)) is not None:
        found = _root_of(body)
        if found != wanted:
            raise Strange(f"{'<' + found + '>' if found else 'empty or not XML'} instead of {wanted}")


def _root_of(body: bytes) -> str:
    """Return the name of the root element; empty if this is not XML. Reads little more than that element."""
    try:
        # botocore parses the whole body in the same way afterwards.
        for _, element in ElementTree.iterparse(io.BytesIO(body), events=("start",)):  # noqa: S314 - see above
            return str(element.tag).rpartition("}")[2]
    except ElementTree.ParseError:
        pass
    return ""


def headers_as_text(request: Any, **_: object) -> None:
    """Convert header values to text. With bytes, urllib3 fails on a 303 response, and the response is lost."""
    for name, value in list(request.headers.items()):
        if isinstance(value, bytes):
            request.headers[name] = value.decode("latin-1")
