"""A GET without most of botocore. The models, events and parsers of botocore take four times as long as the request itself.

Only what botocore has just done successfully is repeated: a successful `get_object` shows the URL of a key, the headers and
the signature that this server accepts (`template_of`). The next GETs differ from it in the key and in the signature, which
botocore's signer makes, and use the same connections. Whatever is not a plain success (an error, a redirect, no reply) is no
result: the caller then asks with `get_object`, which knows all the cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.response import StreamingBody

from distier.stores.s3.errors import Strange, check_success

_SIGNATURE = "AWS4-HMAC-SHA256 Credential="
_OWN_HEADERS = frozenset(
    ["authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "amz-sdk-invocation-id",
     "amz-sdk-request"]
)  # fmt: skip
"""Headers that differ between requests. The signer makes those that a server needs."""
_META = "x-amz-meta-"


class Template(NamedTuple):
    """What all GETs of a client have in common. `url` is the URL without the key."""

    client: Any
    credentials: Any
    send: Callable[[Any], Any]
    url: str
    region: str
    headers: dict[str, str]


class Found(NamedTuple):
    """A successful reply, as `get_object` returns it. The caller must read the body or close it."""

    body: Any
    metadata: dict[str, str]
    content_type: str | None


def template_of(client: Any, credentials: Any, request: Any, key: str) -> Template | None:
    """Return the template of a `get_object` that succeeded; None if its request is not one that `get` can repeat."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    signature, path = str(request.headers.get("Authorization", "")), quote(key, safe="/~")
    scope = signature.removeprefix(_SIGNATURE).partition(",")[0].split("/")
    signed = signature.startswith(_SIGNATURE) and len(scope) >= 5 and scope[-2:] == ["s3", "aws4_request"]
    if session is None or credentials is None or not signed or "?" in request.url or not request.url.endswith(path):
        return None
    headers = {name: str(value) for name, value in request.headers.items() if name.lower() not in _OWN_HEADERS}
    return Template(client, credentials, session.send, request.url.removesuffix(path), scope[-3], headers)


def get(template: Template, key: str) -> Found | None:
    """Return the object; None if the reply is anything but a success. Raises what botocore's connections raise."""
    request: Any = AWSRequest("GET", template.url + quote(key, safe="/~"), headers=template.headers, stream_output=True)
    S3SigV4Auth(template.credentials.get_frozen_credentials(), "s3", template.region).add_auth(request)
    reply = template.send(request.prepare())
    headers = reply.headers
    try:
        check_success("GetObject", reply.status_code, headers, reply.raw)
    except Strange:
        return None
    metadata = {name[len(_META) :]: headers[name] for name in map(str.lower, headers) if name.startswith(_META)}
    return Found(StreamingBody(reply.raw, headers.get("content-length")), metadata, headers.get("content-type"))
