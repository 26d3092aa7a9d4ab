"""What S3 servers say, and what to do about it."""

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

# The root element of a success with a body. Other operations answer with headers alone.
_ROOTS = {"ListObjectsV2": "ListBucketResult", "DeleteObjects": "DeleteResult"}
# Operations whose success is told by an ETag, or at least by a header that only S3 servers send.
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
# Codes with which servers say that they do not have DeleteObjects, or want Content-MD5 with it.
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
# Codes with which servers say that a PUT needs Content-MD5 or a checksum (a bucket with object lock), and what is then sent, in
# this order. Not from the start: some servers reject each of them.
WANTS_CHECKSUM_CODES = frozenset(
    ["InvalidRequest", "MissingContentMD5", "MissingDigest", "MissingSecurityHeader", "InvalidDigest", "BadDigest"]
)
CHECKSUMS = ("", "md5", "sha256")
# Codes with which servers say that the credentials are over. Those that come from files or from STS may have been renewed.
EXPIRED_CODES = frozenset(
    ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"]
)
ADVICE = {
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
    """An answer that no S3 server gives."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the answer is {what}: is endpoint_url an S3 server, or does a proxy want a login?")


def check_success(operation: str, status: int, headers: Mapping[str, str], body: Any) -> None:
    """Raises `ArchiveUnavailable` for a success that no S3 server sends. Taken for one, an empty answer to LIST would mean that
    every module was deleted, and one to PUT that a version is archived."""
    if operation in _TAGGED or (operation == "DeleteObject" and status != 204):
        if status != 200 or not any(name.lower() == "etag" or name.lower().startswith("x-amz-") for name in headers):
            if operation == "GetObject":
                body.close()  # a stream: nobody else will read it, or give its connection back
            raise Strange(f"none of S3 to {operation} ({status} without an ETag)")
    elif (wanted := _ROOTS.get(operation)) is not None:
        found = _root_of(body)
        if found != wanted:
            raise Strange(f"no {wanted} but {'<' + found + '>' if found else 'empty, or no XML'}")


def _root_of(body: bytes) -> str:
    """The name of the root element, empty if this is no XML. Reads little more of it than that."""
    try:
        # botocore parses the whole of it in the same way, just after.
        for _, element in ElementTree.iterparse(io.BytesIO(body), events=("start",)):  # noqa: S314 - see above
            return str(element.tag).rpartition("}")[2]
    except ElementTree.ParseError:
        pass
    return ""


def headers_as_text(request: Any, **_: object) -> None:
    """urllib3 fails on values that are bytes where the server answers 303, and its answer is lost."""
    for name, value in list(request.headers.items()):
        if isinstance(value, bytes):
            request.headers[name] = value.decode("latin-1")
