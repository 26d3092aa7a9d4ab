"""What S3 servers get wrong, and what the S3 archive makes of it."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest

from distier.errors import ArchiveUnavailable, ConfigError
from distier.stores.open import open_archive

from .archives import SECRET_KEY, fault_server, free_port, s3_archive

KEY = "team/modules/a/@00000001-00000000000001-0123abcd.md.xz"


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()


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


def test_a_closed_port_is_unavailable():
    with closing(s3_archive(f"http://127.0.0.1:{free_port()}", timeout_s=1.0)) as archive:
        assert_unavailable_within(archive, 2.0)


def test_a_server_that_never_answers_is_unavailable_within_the_timeout():
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
def test_no_answer_but_nosuchkey_is_a_miss(status, body, expected):
    with fault_server(lambda *_: (status, body)) as url, closing(s3_archive(url, timeout_s=5.0)) as archive:
        for name in ("get", "put", "list", "delete"):
            with pytest.raises(expected) as caught:
                calls(archive)[name]()
            assert SECRET_KEY not in str(caught.value)


def test_a_page_that_is_no_xml_is_unavailable():
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
def test_where_deleting_in_batches_fails_objects_are_deleted_one_by_one(status, body):
    asked: list[tuple[str, str]] = []

    def answer(method: str, path: str) -> tuple[int, bytes]:
        asked.append((method, path))
        return (status, body) if method == "POST" else (204, b"")

    with fault_server(answer) as url, closing(s3_archive(url)) as archive:
        archive.delete(["a", "b"])
        archive.delete(["c"])
    assert [path for method, path in asked if method == "DELETE"] == [f"/bucket/prefix/{key}" for key in "abc"]
    assert sum(method == "POST" for method, _ in asked) == 1  # it is remembered


def test_a_batch_that_fails_in_part_is_an_error():
    failed = b"<DeleteResult><Error><Key>prefix/b</Key><Code>%s</Code></Error></DeleteResult>"
    for code, expected in ((b"AccessDenied", ConfigError), (b"InternalError", ArchiveUnavailable)):
        with (
            fault_server(lambda *_, code=code: (200, failed % code)) as url,
            closing(s3_archive(url)) as archive,
            pytest.raises(expected),
        ):
            archive.delete(["a", "b"])


def test_a_listing_out_of_order_is_refused():
    item = "<Contents><Key>prefix/{}</Key><Size>1</Size><LastModified>{}</LastModified></Contents>"
    items = "".join(item.format(key, "2026-01-01T00:00:00Z") for key in ("a/x", "a-b/x"))
    page = f"<ListBucketResult>{items}</ListBucketResult>".encode()
    with (
        fault_server(lambda *_: (200, page)) as url,
        closing(s3_archive(url)) as archive,
        pytest.raises(ConfigError, match="order"),
    ):
        archive.list("")


def test_a_server_that_ignores_start_after_costs_requests_and_nothing_else():
    item = "<Contents><Key>prefix/{}</Key><Size>1</Size><LastModified>2026-01-01T00:00Z</LastModified></Contents>"
    pages = {"": ("ab", "1"), "1": ("cd", "2"), "2": ("ef", "")}

    def answer(method: str, path: str) -> tuple[int, bytes]:
        token = parse_qs(urlsplit(path).query).get("continuation-token", [""])[0]
        keys, following = pages[token]
        rest = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
        more = f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>{rest}"
        return 200, f"<ListBucketResult>{more}{''.join(map(item.format, keys))}</ListBucketResult>".encode()

    with fault_server(answer) as url, closing(s3_archive(url)) as archive:
        assert [one.key for one in archive.list("", start_after="c")] == ["d", "e", "f"]
        assert [one.key for one in archive.list("", start_after="a", limit=2)] == ["b", "c"]


def test_check_says_which_right_is_missing():
    page = b"<ListBucketResult></ListBucketResult>"
    for denied, said in (("GET", "list"), ("PUT", "write"), ("POST", "delete")):
        kept: dict[str, bytes] = {}

        def answer(method: str, path: str, denied=denied, kept=kept) -> tuple[int, bytes]:
            if method == denied:
                return 403, error("AccessDenied")
            if method == "PUT":
                kept[path] = path.rpartition("prefix/")[2].encode()
            return (200, kept[path]) if method == "GET" and path in kept else (200, page)

        with (
            fault_server(answer) as url,
            closing(s3_archive(url)) as archive,
            pytest.raises(ConfigError, match=rf"can not {said} s3://bucket/prefix.*grant s3:"),
        ):
            archive.check()


def test_no_secret_is_shown():
    with closing(s3_archive(f"http://127.0.0.1:{free_port()}")) as archive:
        assert SECRET_KEY not in repr(archive) + str(vars(archive)) + archive.name


@pytest.mark.parametrize("url", ["bucket", "http://bucket/x", "s3://", "s3:///x", "s3://key:secret@bucket/x"])
def test_impossible_urls(url):
    with pytest.raises(ConfigError) as caught:
        open_archive(url=url)
    assert "secret@" not in str(caught.value)


def test_half_a_credential_is_a_configuration_error():
    with pytest.raises(ConfigError):
        open_archive(url="s3://bucket", access_key="only", region="us-east-1")


def test_open_archive_wants_one_place(tmp_path):
    for given in ({}, {"url": "s3://b", "directory": tmp_path}, {"directory": tmp_path, "region": "x"}):
        with pytest.raises(ConfigError):
            open_archive(**given)
    assert open_archive(directory=tmp_path).name == str(tmp_path)
