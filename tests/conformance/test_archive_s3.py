"""The S3 archive with servers that behave wrongly."""

from __future__ import annotations

import itertools
import socket
import time
from contextlib import closing, contextmanager
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from distier.errors import ArchiveUnavailable, ConfigError, DistierError
from distier.stores.open import open_archive
from tests.servers import free_port

from .archives import SECRET_KEY, fault_server, raw_server, s3_archive

KEY = "team/modules/a/@00000001-00000000000001-0123abcd.md.xz"


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()


def page(*keys, prefix="prefix/", token="", truncated=None):
    """Return a page of a listing, as S3 writes it. `truncated` overrides the flag that follows from `token`."""
    item = "<Contents><Key>prefix/{}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
    more = str(bool(token) if truncated is None else truncated).lower()
    rest = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    inner = f"<Prefix>{prefix}</Prefix><IsTruncated>{more}</IsTruncated>{rest}{''.join(map(item.format, keys))}"
    return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</ListBucketResult>'.encode()


def query(path):
    return {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}


def calls(archive):
    return {
        "get": lambda: archive.get(KEY, max_bytes=10),
        "put": lambda: archive.put(KEY, b"x", content_type="text/plain", metadata={}),
        "list": lambda: archive.list(""),
        "delete": lambda: archive.delete([KEY]),
        "check": archive.check,
    }


def assert_unavailable_within(archive, limit_s):
    for name, call in calls(archive).items():
        began = time.monotonic()
        with pytest.raises(ArchiveUnavailable, match="now"):
            call()
        assert time.monotonic() - began < limit_s, name


def test_closed_port_is_unavailable():
    with closing(s3_archive(f"http://127.0.0.1:{free_port()}", timeout_s=1.0)) as archive:
        assert_unavailable_within(archive, 2.0)


def test_silent_server_is_unavailable_within_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with closing(s3_archive(url, timeout_s=0.6)) as archive:
            assert_unavailable_within(archive, 0.6 + 1.0)  # botocore waits up to a second between attempts


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, error("SlowDown"), ArchiveUnavailable),
        (500, b"<html>oops", ArchiveUnavailable),
        (502, b"", ArchiveUnavailable),
        (429, error("TooManyRequests"), ArchiveUnavailable),
        (403, error("AccessDenied"), ConfigError),
        (403, error("InvalidAccessKeyId"), ConfigError),
        (403, b"", ConfigError),
        (404, error("NoSuchBucket"), ConfigError),
        (404, b"", ConfigError),
        (404, b"<html>not here</html>", ConfigError),
        (400, error("AuthorizationHeaderMalformed"), ConfigError),
    ],
)
def test_only_nosuchkey_is_a_miss(status, body, expected):
    with fault_server(lambda *_: (status, body)) as url, closing(s3_archive(url, timeout_s=5.0)) as archive:
        for name in ("get", "put", "list", "delete"):
            with pytest.raises(expected) as caught:
                calls(archive)[name]()
            assert SECRET_KEY not in str(caught.value)


def test_page_that_is_not_xml_is_unavailable():
    truncated = b"<ListBucketResult><Contents>"
    with (
        fault_server(lambda *_: (200, truncated)) as url,
        closing(s3_archive(url)) as archive,
        pytest.raises(ArchiveUnavailable),
    ):
        archive.list("")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (501, error("NotImplemented")),
        (400, error("MissingContentMD5")),
        (405, b""),
        (400, error("InvalidRequest")),
    ],
)
def test_failing_batch_deletion_falls_back_to_single_deletions(status, body):
    asked: list[tuple[str, str]] = []

    def reply(method: str, path: str) -> tuple[int, bytes]:
        asked.append((method, path))
        return (status, body) if method == "POST" else (204, b"")

    with fault_server(reply) as url, closing(s3_archive(url)) as archive:
        archive.delete(["a", "b"])
        archive.delete(["c"])
    assert [path for method, path in asked if method == "DELETE"] == [f"/bucket/prefix/{key}" for key in "abc"]
    assert sum(method == "POST" for method, _ in asked) == 1  # the archive remembers it


def test_partly_failed_batch_deletion_is_an_error():
    failed = b"<DeleteResult><Error><Key>prefix/b</Key><Code>%s</Code></Error></DeleteResult>"
    for code, expected in ((b"AccessDenied", ConfigError), (b"InternalError", ArchiveUnavailable)):
        with (
            fault_server(lambda *_, code=code: (200, failed % code)) as url,
            closing(s3_archive(url)) as archive,
            pytest.raises(expected),
        ):
            archive.delete(["a", "b"])


def test_listing_out_of_order_is_an_error():
    with (
        fault_server(lambda *_: (200, page("a/x", "a-b/x"))) as url,
        closing(s3_archive(url)) as archive,
        pytest.raises(ConfigError, match="order"),
    ):
        archive.list("")


def test_listing_is_right_if_server_ignores_start_after():
    pages = {"": page(*"ab", token="1"), "1": page(*"cd", token="2"), "2": page(*"ef")}

    def reply(method: str, path: str) -> tuple[int, bytes]:
        return 200, pages[query(path).get("continuation-token", "")]

    with fault_server(reply) as url, closing(s3_archive(url)) as archive:
        assert [one.key for one in archive.list("", start_after="c")] == ["d", "e", "f"]
        assert [one.key for one in archive.list("", start_after="a", limit=2)] == ["b", "c"]


def test_check_reports_the_missing_permission():
    for denied, action in (("GET", "list"), ("PUT", "write"), ("POST", "delete")):
        with (
            bucket(
                lambda method, path, denied=denied: (403, error("AccessDenied")) if method == denied else None
            ) as url,
            closing(s3_archive(url)) as archive,
            pytest.raises(ConfigError, match=rf"cannot {action} s3://bucket/prefix.*grant s3:"),
        ):
            archive.check()


@contextmanager
def bucket(wrong=lambda method, path: None, headers=(("ETag", '"x"'),)):
    """A server that stores objects, except that `wrong(method, path)` may return another (status, body)."""
    kept: dict[str, bytes] = {}

    def reply(method, path):
        if (given := wrong(method, path)) is not None:
            return given
        if method == "PUT":
            kept[path] = path.rpartition("prefix/")[2].encode()
            return 200, b""
        if "list-type" in path:
            keys = [k.rpartition("bucket/prefix/")[2] for k in kept if query(path)["prefix"] in k]
            return 200, page(*keys, prefix=query(path)["prefix"])
        if method == "POST":
            kept.clear()
            return 200, b"<DeleteResult></DeleteResult>"
        return (200, kept[path]) if path in kept else (404, error("NoSuchKey"))

    with fault_server(reply, dict(headers)) as url:
        yield url


NO_LISTINGS = {
    "nothing": b"",
    "an element": b"<ListBucketResult/>",
    "a login page": b"<html><body>Log in</body></html>",
    "HTML that is no XML": b"<!doctype html><html><br></html>",
    "JSON": b'{"contents": []}',
    "an error that is a success": error("NoSuchKey"),
    "other XML": b"<ListAllMyBucketsResult><Buckets/><IsTruncated>false</IsTruncated></ListAllMyBucketsResult>",
    "other XML around it": b"<page>" + page() + b"</page>",
    "not whether it is whole": page().replace(b"IsTruncated", b"Truncated"),
    "no prefix": page().replace(b"Prefix", b"Name"),
    "of all": page(prefix=""),
    "of another prefix": page("a", prefix="prefix/other/"),
    "keys of another prefix": page("a").replace(b"<Key>prefix/a", b"<Key>other/a"),
    "keys that were cut out": page().replace(b"<IsTr", b"<KeyCount>2</KeyCount><IsTr"),
    "keys without a size": page("a").replace(b"<Size>1</Size>", b""),
    "keys without a name": page("a").replace(b"<Key>prefix/a</Key>", b""),
    "sizes that are none": page("a").replace(b"<Size>1<", b"<Size>much<"),
    "a date that is none": page("a").replace(b"2026-01-01T00:00:00Z", b"lately"),
}


def test_success_without_a_listing_is_an_error():
    case = {"name": ""}
    with fault_server(lambda *_: (200, NO_LISTINGS[case["name"]])) as url, closing(s3_archive(url)) as archive:
        for case["name"] in NO_LISTINGS:
            try:
                found = archive.list("")
            except ArchiveUnavailable:
                continue
            pytest.fail(f"{case['name']} is taken for {found}")


def test_success_of_another_kind_of_server_is_an_error():
    """If a login page replies to a put, nothing is archived; if it replies to a get, the object is not damaged."""
    current = [(0, b"")]
    with fault_server(lambda *_: current[0]) as url, closing(s3_archive(url)) as archive:
        for status, body in itertools.product([200, 201, 204, 206], [b"", b"<html>Log in</html>"]):
            current[0] = status, body
            for name in ("get", "put", "list", "check"):
                with pytest.raises(ArchiveUnavailable):
                    calls(archive)[name]()


@pytest.mark.parametrize("encoded", [False, True])
def test_encoded_prefix_in_a_page_is_accepted(encoded):
    key = "a%20+b/ä/x"

    def reply(method: str, path: str) -> tuple[int, bytes]:
        quoted = quote("prefix/" + key)
        shown = f"<EncodingType>url</EncodingType><Prefix>{quoted if encoded else 'prefix/' + key}</Prefix>"
        item = (
            f"<Contents><Key>{quoted}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        )
        return 200, f"<ListBucketResult>{shown}<IsTruncated>false</IsTruncated>{item}</ListBucketResult>".encode()

    with fault_server(reply) as url, closing(s3_archive(url)) as archive:
        assert [one.key for one in archive.list(key)] == [key]


def test_truncated_page_without_token_continues_by_start_after():
    pages = {"": page(*"ab", truncated=True), "prefix/b": page(*"cd", truncated=True), "prefix/d": page("e")}
    with (
        fault_server(lambda _, path: (200, pages[query(path).get("start-after", "")])) as url,
        closing(s3_archive(url)) as archive,
    ):
        assert [one.key for one in archive.list("")] == list("abcde")


def test_empty_page_may_be_followed_by_more():
    pages = {"": page(token="1"), "1": page("a", token="2"), "2": page(token="3"), "3": page("b")}
    with (
        fault_server(lambda _, path: (200, pages[query(path).get("continuation-token", "")])) as url,
        closing(s3_archive(url)) as archive,
    ):
        assert [one.key for one in archive.list("")] == ["a", "b"]


@pytest.mark.parametrize(
    "reply",
    [
        lambda n: page(*"ab", token="same"),
        lambda n: page(*"ab", token=f"token{n}"),
        lambda n: page(*"ab", truncated=True),
        lambda n: page("a" if n % 2 else "b", token=f"token{n}"),
        lambda n: page(token="same"),
        lambda n: page(token=f"token{n}"),
        lambda n: page(truncated=True),
    ],
)
def test_pages_that_do_not_advance_are_an_error(reply):
    asked: list[str] = []

    def count(method: str, path: str) -> tuple[int, bytes]:
        asked.append(path)
        return 200, reply(len(asked))

    with (
        fault_server(count) as url,
        closing(s3_archive(url)) as archive,
        pytest.raises(ConfigError, match=r"continue|order"),
    ):
        archive.list("")
    assert len(asked) < 200


def test_repeated_keys_are_listed_once():
    """`rclone serve s3` lists a key twice while it is replaced; other servers repeat the last key on the next page."""
    pages = {"": page(*"aabb", token="1"), "1": page(*"bccd", token="2"), "2": page("d")}
    with (
        fault_server(lambda _, path: (200, pages[query(path).get("continuation-token", "")])) as url,
        closing(s3_archive(url)) as archive,
    ):
        assert [one.key for one in archive.list("")] == list("abcd")
        assert [one.key for one in archive.list("", limit=3)] == list("abc")
        assert [one.key for one in archive.list("", start_after="b", limit=1)] == ["c"]


def test_check_fails_if_its_probe_is_not_listed():
    def wrong(method: str, path: str) -> tuple[int, bytes] | None:
        return (200, page(prefix=query(path)["prefix"])) if "list-type" in path else None

    with bucket(wrong) as url, closing(s3_archive(url)) as archive, pytest.raises(ConfigError, match="does not list"):
        archive.check()
    with bucket() as url, closing(s3_archive(url)) as archive:
        archive.check()


PERMANENT = b"<Error><Code>PermanentRedirect</Code><Message>m</Message><Endpoint>s3.elsewhere</Endpoint></Error>"


def test_redirect_is_reported_with_its_target():
    headers, current = {"Location": "https://login.example/sso?state=secret"}, [(0, b"")]
    with fault_server(lambda *_: current[0], headers) as url, closing(s3_archive(url)) as archive:
        for status, body in itertools.product([300, 301, 302, 303, 304, 305, 307, 308], [b"", b"<html/>", PERMANENT]):
            current[0] = status, body
            for call in calls(archive).values():
                with pytest.raises(ConfigError, match=r"https://login\.example/sso") as caught:
                    call()
                assert "secret" not in str(caught.value)


def test_redirect_without_target_and_repeated_redirect_are_errors():
    for headers in ({}, {"x-amz-bucket-region": "eu-west-1"}):
        with fault_server(lambda *_: (301, PERMANENT), headers) as url, closing(s3_archive(url)) as archive:
            for call in calls(archive).values():
                with pytest.raises(ConfigError):
                    call()


RAW = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a status that is none": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status out of range": b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
    "1xx without end": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a cut body": b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 100\r\n\r\n<ListB",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
    "broken chunks": b"HTTP/1.1 200 OK\r\nETag: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "bytes in a redirect": b"HTTP/1.1 307 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    "an error without a code": b"HTTP/1.1 403 No\r\nContent-Length: 15\r\n\r\n<Error></Error>",
    "another document as an error": b"HTTP/1.1 400 No\r\nContent-Length: 8\r\n\r\n<a><b/></a>"[:-3],
}


@pytest.mark.parametrize("name", RAW)
def test_any_reply_of_a_server_is_a_distier_error(name):
    with raw_server(RAW[name]) as url, closing(s3_archive(url, timeout_s=1.0)) as archive:
        for verb, call in calls(archive).items():
            if (verb, name) == ("put", "a cut body"):
                continue  # a put needs only the headers
            with pytest.raises(DistierError):
                call()


def test_secret_key_is_in_no_repr_and_no_attribute():
    with closing(s3_archive(f"http://127.0.0.1:{free_port()}")) as archive:
        assert SECRET_KEY not in repr(archive) + str(vars(archive)) + archive.name


@pytest.mark.parametrize("url", ["bucket", "http://bucket/x", "s3://", "s3:///x", "s3://key:secret@bucket/x"])
def test_impossible_url_is_a_configuration_error(url):
    with pytest.raises(ConfigError) as caught:
        open_archive(url=url)
    assert "secret@" not in str(caught.value)


def test_incomplete_credentials_are_a_configuration_error():
    with pytest.raises(ConfigError):
        open_archive(url="s3://bucket", access_key="only", region="us-east-1")


def test_open_archive_requires_exactly_one_location(tmp_path):
    for given in ({}, {"url": "s3://b", "directory": tmp_path}, {"directory": tmp_path, "region": "x"}):
        with pytest.raises(ConfigError):
            open_archive(**given)
    assert open_archive(directory=tmp_path).name == str(tmp_path)


# -- checksums of a PUT; credentials; addressing of the bucket -----------------------------------------------------------

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


def put_one(archive):
    archive.put("a/b", b"data", content_type="text/plain", metadata={})


@pytest.mark.parametrize(("wanted", "code"), [
    ("Content-MD5", "InvalidRequest"), ("Content-MD5", "MissingContentMD5"), ("x-amz-checksum-sha256", "InvalidRequest"),
])  # fmt: skip
def test_put_sends_the_checksum_that_the_bucket_requires(wanted, code):
    """Buckets with object lock require one. The archive finds that out once."""
    asked = []
    right = {
        "Content-MD5": "jXd/OF09/siBXSD3SWAm3A==",
        "x-amz-checksum-sha256": "Om6weQ85rIfJTzhWst0sXREOaBFgImGpqSPTuyOtyLc=",
    }

    def reply(method, path, headers):
        asked.append(method)
        return (200, b"") if headers.get(wanted) == right[wanted] else (400, error(code))

    with fault_server(reply, {"ETag": '"x"'}, with_headers=True) as url, closing(s3_archive(url)) as archive:
        put_one(archive)
        first = len(asked)
        put_one(archive)
        assert 2 <= first <= 3 and len(asked) == first + 1


def test_refused_put_reports_the_reason():
    for status, code in ((400, "InvalidRequest"), (403, "AccessDenied")):
        reply = (status, error(code))
        with fault_server(lambda *_, reply=reply: reply) as url, closing(s3_archive(url)) as archive:  # noqa: SIM117 - its own
            with pytest.raises(ConfigError, match=code):
                put_one(archive)


def test_locked_object_does_not_stop_other_deletions():
    gone = []

    def reply(method, path):
        if method == "POST":
            return 501, error("NotImplemented")
        if path.endswith("locked"):
            return 403, error("AccessDenied")
        gone.append(path.rsplit("/", 1)[1])
        return 204, b""

    with (
        fault_server(reply) as url,
        closing(s3_archive(url)) as archive,
        pytest.raises(ConfigError, match="AccessDenied"),
    ):
        archive.delete(["a", "locked", "z"])
    assert gone == ["a", "z"]


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """A home directory for AWS's files; the fixture's function writes one of them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    def write(name, text):
        (tmp_path / name).write_text(f"[default]\n{text}\n")

    return write


@contextmanager
def botocore_gets(archive):
    """Yield the list of keys that are read by `get_object` of botocore."""
    keys = []
    archive._client.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: keys.append(params["url_path"])
    )
    yield keys


def content(archive, key):
    found = archive.get(key, max_bytes=99)
    assert found is not None
    return found.data


def test_get_after_a_success_is_made_without_botocore():
    names = ["a", "b c/\u00fc+~!*'()&=@%41;", "x:y,z$"]
    metadata = {"ETag": '"x"', "X-Amz-Meta-Sha256": "0f", "x-amz-meta-Kind": "k", "Content-Type": "text/x-a"}
    with bucket(headers=metadata.items()) as url, closing(s3_archive(url)) as archive:
        for name in names:
            archive.put(name, b"", content_type="text/plain", metadata={})
        with botocore_gets(archive) as keys:
            first = archive.get("a", max_bytes=99)
            assert [content(archive, name).decode() for name in names[1:]] == [quote(n, "/~") for n in names[1:]]
            assert archive.get("a", max_bytes=99) == first
        assert len(keys) == 1
        assert first is not None
        assert (first.metadata, first.content_type) == ({"sha256": "0f", "kind": "k"}, "text/x-a")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, error("SlowDown"), ArchiveUnavailable),
        (403, error("AccessDenied"), ConfigError),
        (404, error("NoSuchBucket"), ConfigError),
        (404, error("NoSuchKey"), None),
        (301, b"", ConfigError),
    ],
)
def test_failure_after_a_success_is_reported_as_any_other(status, body, expected):
    now = {"reply": (200, b"data")}
    with fault_server(lambda method, path: now["reply"], {"ETag": '"x"'}) as url, closing(s3_archive(url)) as archive:
        for _ in range(2):
            assert content(archive, "a") == b"data"
        now["reply"] = status, body
        if expected is None:
            assert archive.get("a", max_bytes=9) is None
        else:
            with pytest.raises(expected):
                archive.get("a", max_bytes=9)
        now["reply"] = 200, b"more"
        assert content(archive, "a") == b"more"


def test_login_page_after_a_success_is_no_object():
    now = {"ETag": '"x"'}
    with fault_server(lambda method, path: (200, b"page"), now) as url, closing(s3_archive(url)) as archive:
        archive.get("a", max_bytes=9)
        now.clear()
        with pytest.raises(ArchiveUnavailable, match="not one of S3"):
            archive.get("a", max_bytes=9)


def test_get_with_expired_credentials_after_a_success_reads_new_ones(aws):
    aws("credentials", "aws_access_key_id = OLD\naws_secret_access_key = s\naws_session_token = t")
    good, asked = ["OLD"], []

    def reply(method, path, headers):
        asked.append((headers["Authorization"].split("Credential=")[1].split("/")[0], headers["x-amz-security-token"]))
        return (200, b"data") if asked[-1][0] in good else (403, error("ExpiredToken"))

    with fault_server(reply, {"ETag": '"x"'}, with_headers=True) as url:
        archive = open_archive(url="s3://bucket/prefix", endpoint_url=url, region="us-east-1")
        for _ in range(2):
            archive.get("a", max_bytes=9)
        good[:] = ["NEW"]
        aws("credentials", "aws_access_key_id = NEW\naws_secret_access_key = s\naws_session_token = t2")
        for _ in range(2):
            assert content(archive, "a") == b"data"
        assert asked == [("OLD", "t")] * 4 + [("NEW", "t2")] * 2
        archive.close()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_expired_credentials_are_read_again(aws, code):
    aws("credentials", "aws_access_key_id = OLD\naws_secret_access_key = s\naws_session_token = t")
    good, asked = ["OLD"], []

    def reply(method, path, headers):
        key = headers["Authorization"].split("Credential=")[1].split("/")[0]
        asked.append(key)
        if key not in good:
            return 403, error(code)
        return 200, page() if "list-type" in path else b"data" if method == "GET" else b""

    with fault_server(reply, {"ETag": '"x"'}, with_headers=True) as url:
        archive = open_archive(url="s3://bucket/prefix", endpoint_url=url, region="us-east-1")
        archive.list("")
        good[:] = ["NEW"]
        with pytest.raises(ConfigError):  # they are not renewed yet
            archive.list("")
        aws("credentials", "aws_access_key_id = NEW\naws_secret_access_key = s\naws_session_token = t")
        for call in (lambda: archive.list(""), lambda: archive.get("a", max_bytes=9), lambda: put_one(archive)):
            call()
        assert asked[-3:] == ["NEW"] * 3
        archive.close()


def test_configured_credentials_are_not_replaced(aws):
    aws("credentials", "aws_access_key_id = OTHER\naws_secret_access_key = s")
    asked = []

    def reply(method, path, headers):
        asked.append(
            (headers["Authorization"].split("Credential=")[1].split("/")[0], headers.get("x-amz-security-token"))
        )
        return 403, EXPIRED

    with fault_server(reply, with_headers=True) as url, pytest.raises(ConfigError, match="renew the credentials"):
        open_archive(
            url="s3://bucket",
            endpoint_url=url,
            region="us-east-1",
            access_key="MINE",
            secret_key="s",
            session_token="tok",
        ).list("")
    assert asked == [("MINE", "tok")]


@pytest.mark.parametrize("bad", ["key\n", " key", "ke y", "\tkey", "k\u00e9y"])
def test_white_space_in_keys_is_a_configuration_error(bad, monkeypatch):
    for name in ("access_key", "secret_key", "session_token"):
        given = {"access_key": "a", "secret_key": "s", "session_token": "t"} | {name: bad}
        with pytest.raises(ConfigError, match=name) as caught:
            open_archive(url="s3://bucket", region="us-east-1", **given)
        assert bad.strip() not in str(caught.value).replace("key has", "").replace("_key", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bad)
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY"):
        open_archive(url="s3://bucket", region="us-east-1")


@pytest.mark.parametrize(("setting", "file", "host"), [
    (None, "", "127.0.0.1"), ("path", "s3 =\n  addressing_style = virtual", "s3.test"),
    ("virtual", "", "bucket.s3.test"), (None, "s3 =\n  addressing_style = virtual", "bucket.s3.test"),
    (None, "s3 =\n  addressing_style = path", "s3.test"), (None, "", "s3.test"),
])  # fmt: skip
def test_bucket_is_addressed_as_configured(aws, monkeypatch, setting, file, host):
    """The setting decides, then ~/.aws/config; without both, the path has the bucket if there is an endpoint."""
    aws("config", file)
    hosts = []

    def reply(method, path, headers):
        hosts.append((headers["Host"].partition(":")[0], path.startswith("/bucket")))
        return 200, page()

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, *rest, **more: real("127.0.0.1" if "s3.test" in str(name) else name, *rest, **more),
    )
    with fault_server(reply, with_headers=True) as url:
        url = url if host == "127.0.0.1" else url.replace("127.0.0.1", "s3.test")
        archive = open_archive(
            url="s3://bucket/prefix",
            endpoint_url=url,
            addressing_style=setting,
            access_key="a",
            secret_key="s",
            region="r-1",
        )
        archive.list("")
        archive.close()
    assert hosts == [(host, not host.startswith("bucket"))]


def test_endpoint_of_the_aws_file_is_used(aws):
    with fault_server(lambda method, path: (200, page())) as url:
        aws("config", f"endpoint_url = {url}\nregion = eu-west-1")
        archive = open_archive(url="s3://bucket/prefix", access_key="a", secret_key="s")
        assert archive.list("") == []
        archive.close()
