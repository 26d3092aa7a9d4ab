"""The behaviour that every kind of archive must have."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distier.domain.ids import MAX_ID_BYTES
from distier.errors import ConfigError, Unavailable
from distier.testing.archives import KEY, ArchiveConformance, key_of, put

from .archives import OUTSIDE, REPLACES_ATOMICALLY


class TestArchive(ArchiveConformance):
    """The suite that distier ships, against every kind of archive."""


@pytest.mark.parametrize("backend", OUTSIDE, indirect=True)
def test_missing_bucket_is_an_error_not_a_miss(backend):
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
def test_any_ids_are_listed_in_order_page_by_page(backend, ids, data):
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


def test_listing_of_several_pages_is_complete(archive, monkeypatch):
    monkeypatch.setattr(
        "distier.stores.s3.archive._PAGE_KEYS", 10
    )  # with S3's own limit of 1000 the test would only take longer
    keys = [f"n/{i:02d}" for i in range(33)]
    for key in keys:
        put(archive, key, b"")
    assert [one.key for one in archive.list("n/")] == keys
    assert [one.key for one in archive.list("n/", start_after="n/04", limit=17)] == keys[5:22]
    archive.delete(keys)
    assert archive.list("") == []


@pytest.mark.parametrize("backend", REPLACES_ATOMICALLY, indirect=True)
def test_object_put_again_by_many_always_exists(backend):
    data = b"s" * 100_000
    with closing(backend.open()) as archive, ThreadPoolExecutor(8) as pool:

        def work(_: int) -> None:
            put(archive, KEY, data)
            assert archive.get(KEY, max_bytes=100_000).data == data

        list(pool.map(work, range(24)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("backend", OUTSIDE, indirect=True)
def test_fork_and_parent_can_use_the_archive_at_once(backend, archive):
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
