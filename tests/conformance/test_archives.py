"""What every archive must do, whatever is behind it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distier.domain.ids import MAX_ID_BYTES, encode_id, to_path
from distier.errors import ConfigError, Corrupt, DistierError, Invalid, Unavailable

from .archives import OUTSIDE, REPLACES_ATOMICALLY

TYPE = "application/x-xz"
KEY = "team/modules/a/b/@00000001-00000000000001-0123abcd.md.xz"


def put(archive, key, data=b"content", **metadata):
    archive.put(key, data, content_type=TYPE, metadata=metadata)


def key_of(id: str, ver: int = 1) -> str:
    return f"team/modules/{to_path(encode_id(id))}/@00000001-{ver:014d}-0123abcd.md.xz"


@pytest.mark.parametrize("size_bytes", [0, 1, 5 << 20])
def test_an_object_comes_back_as_it_was_put(archive, size_bytes):
    data = os.urandom(size_bytes)
    put(archive, KEY, data)
    assert archive.get(KEY, max_bytes=size_bytes).data == data
    [listed] = archive.list("")
    assert (listed.key, listed.size_bytes) == (KEY, size_bytes)


def test_a_missing_object_is_none_beside_and_above_and_below_others(archive):
    assert archive.get(KEY, max_bytes=10) is None
    put(archive, KEY)
    above = KEY.rpartition("/")[0]
    for key in (KEY + "0", KEY[:-1], above, above + "/@0", "team", "other", KEY + "/below"):
        assert archive.get(key, max_bytes=10) is None


@pytest.mark.parametrize("backend", OUTSIDE, indirect=True)
def test_a_missing_bucket_is_never_a_missing_object(backend):
    archive = backend.missing()
    calls = {
        "get": lambda: archive.get(KEY, max_bytes=10),
        "list": lambda: archive.list("team/"),
        "put": lambda: put(archive, KEY),
        "check": archive.check,
    }
    with closing(archive):
        for name, call in calls.items():
            with pytest.raises((ConfigError, Unavailable), match=r"no-such-bucket|archive-"):
                pytest.fail(f"{name} of a missing bucket gave {call()!r}")


def test_metadata_is_kept_if_the_archive_says_so(archive):
    put(archive, KEY, id="a%2Fb", tokens="12")
    kept = archive.get(KEY, max_bytes=10).metadata
    assert dict(kept) == ({"id": "a%2Fb", "tokens": "12"} if archive.keeps_metadata else {})


def test_an_object_larger_than_expected_is_corrupt(archive):
    put(archive, KEY, b"x" * 1000)
    assert len(archive.get(KEY, max_bytes=1000).data) == 1000
    for max_bytes in (999, 0):
        with pytest.raises(Corrupt, match=f"more than {max_bytes}"):
            archive.get(KEY, max_bytes=max_bytes)
    assert len(archive.get(KEY, max_bytes=2000).data) == 1000  # the connection is not out of step


def test_of_two_contents_for_a_key_one_stays_whole(archive):
    put(archive, KEY, b"a" * 5000)
    put(archive, KEY, b"b" * 70)
    assert archive.get(KEY, max_bytes=5000).data in (b"a" * 5000, b"b" * 70)
    put(archive, KEY, b"b" * 70)
    assert [one.key for one in archive.list("")] == [KEY]


def test_delete_is_idempotent_and_leaves_the_others(archive):
    keys = [key_of(f"a/{i}") for i in range(5)] + [key_of("a")]
    for key in keys:
        put(archive, key)
    archive.delete([])
    for _ in range(2):
        archive.delete([*keys[:4], "never/was/here"])
    assert [one.key for one in archive.list("")] == sorted(keys[4:])
    archive.delete(keys)
    assert archive.list("") == []
    put(archive, KEY)  # where directories were removed
    assert archive.get(KEY, max_bytes=10) is not None


ORDERED = ["a!/x", "a-b/x", "a/b-/x", "a/b/@1", "a/b/x/y", "a/b0", "a/x", "a0", "aa", "b%2F/x", "b/x", "é/x"]


def test_keys_are_listed_in_the_order_of_their_bytes(archive):
    for key in reversed(ORDERED):
        put(archive, key)
    assert [one.key for one in archive.list("")] == ORDERED


def test_every_prefix_limit_and_start(archive):
    for key in ORDERED:
        put(archive, key)
    for prefix in ["", "a", "a/", "a/b", "a/b/", "a/b/x/y", "a/b/x/y/", "b%", "c", "a//", "../", "é"]:
        whole = [key for key in ORDERED if key.startswith(prefix)]
        for start_after in ["", *ORDERED[::3], "a/", "a/b", "a/c", "a/b/x/", "zz", "A"]:
            wanted = [key for key in whole if key.encode() > start_after.encode()]
            for limit in (2, 1000):
                found = archive.list(prefix, start_after=start_after, limit=limit)
                assert [one.key for one in found] == wanted[:limit], (prefix, start_after, limit)


NASTY = [
    "..",
    ".",
    "a",
    "a-",
    "a0",
    "é",
    "\U0001f600",
    "\x00",
    "\x7f",
    "%",
    "+",
    "&<>",
    " ",
    "~",
    "@x",
    ".tmp",
    "\\",
    "*",
]
segments = st.sampled_from(NASTY) | st.text(max_size=12)
ids = st.lists(segments, min_size=1, max_size=4).map("/".join).filter(lambda text: 1 <= len(text.encode()) <= 256)


@given(ids=st.sets(ids | st.text(min_size=1, max_size=40), min_size=1, max_size=8), data=st.data())
@example(ids={"a" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2), "\x00" * MAX_ID_BYTES, "a//", "//", "a"}, data=None)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_module_id_is_listed_in_order_page_by_page(backend, ids, data):
    keys = sorted((key_of(one, ver) for one in ids for ver in (1, 2)), key=str.encode)
    with closing(backend.open()) as archive:
        for key in keys:
            put(archive, key, key.encode())
        limit = data.draw(st.integers(1, 7)) if data else 3
        found, after = [], ""
        while page := archive.list("team/modules/", start_after=after, limit=limit):
            found += page
            after = page[-1].key
        assert [one.key for one in found] == keys
        for key in keys:
            assert archive.get(key, max_bytes=2000).data == key.encode()
        archive.delete(keys)
        assert archive.list("") == []


def test_more_keys_than_one_page(archive, monkeypatch):
    monkeypatch.setattr("distier.stores.s3.archive._PAGE_KEYS", 10)  # S3's own limit, 1000, only takes longer
    keys = [f"n/{i:02d}" for i in range(33)]
    for key in keys:
        put(archive, key, b"")
    assert [one.key for one in archive.list("n/")] == keys
    assert [one.key for one in archive.list("n/", start_after="n/04", limit=17)] == keys[5:22]
    archive.delete(keys)
    assert archive.list("") == []


def test_keys_that_are_no_relative_paths_are_refused(archive):
    for key in ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "\ud800", "a" * 1025]:
        for call in (
            lambda key=key: put(archive, key),
            lambda key=key: archive.get(key, max_bytes=10),
            lambda key=key: archive.delete([KEY, key]),
        ):
            with pytest.raises(Invalid):
                call()
    with pytest.raises(Invalid):
        archive.list("", limit=0)


def test_threads_put_and_get_at_once(archive):
    def work(i: int) -> None:
        data = bytes([i]) * 3000
        key = key_of(f"m/{i % 4}", i)
        put(archive, key, data)
        assert archive.get(key, max_bytes=3000).data == data

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(48)))
    assert len(archive.list("")) == 48


@pytest.mark.parametrize("backend", REPLACES_ATOMICALLY, indirect=True)
def test_an_object_put_once_more_by_many_is_always_there(backend):
    data = b"s" * 100_000
    with closing(backend.open()) as archive, ThreadPoolExecutor(8) as pool:

        def work(_: int) -> None:
            put(archive, KEY, data)
            assert archive.get(KEY, max_bytes=100_000).data == data

        list(pool.map(work, range(24)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("backend", OUTSIDE, indirect=True)
def test_a_fork_may_use_the_archive_beside_its_parent(backend, archive):
    keys = [key_of(f"m{i}") for i in range(4)]
    for key in keys:
        put(archive, key, key.encode())
    list(ThreadPoolExecutor(4).map(lambda key: archive.get(key, max_bytes=500), keys))  # connections in the pool

    def all_right() -> bool:
        return all(archive.get(key, max_bytes=500).data == key.encode() for _ in range(10) for key in keys)

    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = 0 if all_right() else 1
        finally:
            os._exit(code)
    assert all_right()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_check_passes_and_leaves_nothing(archive):
    archive.check()
    assert archive.list("") == []


def test_times_are_plausible(archive):
    put(archive, KEY)
    [one] = archive.list("")
    assert one.modified_ms == 1 or abs(one.modified_ms / 1000 - time.time()) < 60


def test_listing_while_others_put_and_delete(archive):
    """What stays is listed always; what comes and goes may be."""
    stay = [key_of(f"s/{i}") for i in range(0, 40, 4)]
    come = [key_of(f"s/{i}") for i in range(1, 40, 4)]
    for key in stay:
        put(archive, key)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for key in come:
                put(archive, key)
            archive.delete(come)

    with ThreadPoolExecutor(1) as pool:
        churned = pool.submit(churn)
        try:
            for _ in range(8):
                found = [one.key for one in archive.list("team/")]
                assert found == sorted(found)
                assert set(stay) <= set(found)
        finally:
            stop.set()
        churned.result()


def test_errors_are_ours(archive):
    with pytest.raises(DistierError):
        archive.get("..", max_bytes=1)
