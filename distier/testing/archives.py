"""The conformance suite of archives: what distier relies on, whatever stores the objects.

Subclass it in a test module of your own, and give it a fixture `archive` that returns a fresh, empty archive:

    class TestMyArchive(ArchiveConformance):
        @pytest.fixture
        def archive(self, tmp_path: Path) -> Iterator[Archive]:
            with closing(MyArchive(f"my://{tmp_path}")) as archive:
                yield archive

It needs pytest. The same class runs in distier's own tests against directories, memory, and two S3 servers.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from distier.domain.ids import encode_id, to_path
from distier.domain.objects import Fetched
from distier.errors import Corrupt, DistierError, Invalid
from distier.stores.archive import Archive

CONTENT_TYPE = "application/x-xz"
KEY = "team/modules/a/b/@00000001-00000000000001-0123abcd.md.xz"
ORDERED = ["a!/x", "a-b/x", "a/b-/x", "a/b/@1", "a/b/x/y", "a/b0", "a/x", "a0", "aa", "b%2F/x", "b/x", "é/x"]
"""Keys in the order of their bytes, which is that of a listing."""


def key_of(id: str, ver: int = 1) -> str:
    """Return the key of a version of a module, as distier names it."""
    return f"team/modules/{to_path(encode_id(id))}/@00000001-{ver:014d}-0123abcd.md.xz"


def put(archive: Archive, key: str, data: bytes = b"content", **metadata: str) -> None:
    """Put an object of the type that distier's have."""
    archive.put(key, data, content_type=CONTENT_TYPE, metadata=metadata)


def got(archive: Archive, key: str, max_bytes: int) -> Fetched:
    """Return an object that has to be there."""
    found = archive.get(key, max_bytes=max_bytes)
    assert found is not None, f"there is no {key}"
    return found


class ArchiveConformance:
    """What every archive must do."""

    @pytest.mark.parametrize("size_bytes", [0, 1, 5 << 20])
    def test_get_returns_the_bytes_that_were_put(self, archive: Archive, size_bytes: int) -> None:
        data = os.urandom(size_bytes)
        put(archive, KEY, data)
        assert got(archive, KEY, size_bytes).data == data
        [listed] = archive.list("")
        assert (listed.key, listed.size_bytes) == (KEY, size_bytes)

    def test_missing_object_is_none_next_to_similar_keys(self, archive: Archive) -> None:
        assert archive.get(KEY, max_bytes=10) is None
        put(archive, KEY)
        above = KEY.rpartition("/")[0]
        for key in (KEY + "0", KEY[:-1], above, above + "/@0", "team", "other", KEY + "/below"):
            assert archive.get(key, max_bytes=10) is None

    def test_metadata_is_kept_if_the_archive_says_so(self, archive: Archive) -> None:
        put(archive, KEY, id="a%2Fb", tokens="12")
        kept = got(archive, KEY, 10).metadata
        assert dict(kept) == ({"id": "a%2Fb", "tokens": "12"} if archive.keeps_metadata else {})

    def test_an_object_larger_than_expected_is_corrupt(self, archive: Archive) -> None:
        put(archive, KEY, b"x" * 1000)
        assert len(got(archive, KEY, 1000).data) == 1000
        for max_bytes in (999, 0):
            with pytest.raises(Corrupt, match=f"more than {max_bytes}"):
                archive.get(KEY, max_bytes=max_bytes)
        assert len(got(archive, KEY, 2000).data) == 1000  # the connection is not out of step

    def test_one_of_two_contents_for_a_key_stays_whole(self, archive: Archive) -> None:
        put(archive, KEY, b"a" * 5000)
        put(archive, KEY, b"b" * 70)
        assert got(archive, KEY, 5000).data in (b"a" * 5000, b"b" * 70)
        put(archive, KEY, b"b" * 70)
        assert [one.key for one in archive.list("")] == [KEY]

    def test_delete_is_idempotent_and_leaves_others(self, archive: Archive) -> None:
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

    def test_keys_are_listed_in_the_order_of_their_bytes(self, archive: Archive) -> None:
        for key in reversed(ORDERED):
            put(archive, key)
        assert [one.key for one in archive.list("")] == ORDERED

    def test_every_prefix_limit_and_start(self, archive: Archive) -> None:
        for key in ORDERED:
            put(archive, key)
        for prefix in ["", "a", "a/", "a/b", "a/b/", "a/b/x/y", "a/b/x/y/", "b%", "c", "a//", "../", "é"]:
            whole = [key for key in ORDERED if key.startswith(prefix)]
            for start_after in ["", *ORDERED[::3], "a/", "a/b", "a/c", "a/b/x/", "zz", "A"]:
                wanted = [key for key in whole if key.encode() > start_after.encode()]
                for limit in (2, 1000):
                    found = archive.list(prefix, start_after=start_after, limit=limit)
                    assert [one.key for one in found] == wanted[:limit], (prefix, start_after, limit)

    def test_keys_other_than_relative_paths_are_refused(self, archive: Archive) -> None:
        for key in ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "\ud800", "a" * 1025]:
            for call in (
                partial(put, archive, key),
                partial(archive.get, key, max_bytes=10),
                partial(archive.delete, [KEY, key]),
            ):
                with pytest.raises(Invalid):
                    call()
        with pytest.raises(Invalid):
            archive.list("", limit=0)

    def test_threads_put_and_get_at_once(self, archive: Archive) -> None:
        def work(i: int) -> None:
            data = bytes([i]) * 3000
            key = key_of(f"m/{i % 4}", i)
            put(archive, key, data)
            assert got(archive, key, 3000).data == data

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(48)))
        assert len(archive.list("")) == 48

    def test_check_passes_and_leaves_nothing_behind(self, archive: Archive) -> None:
        archive.check()
        assert archive.list("") == []

    def test_times_are_plausible(self, archive: Archive) -> None:
        put(archive, KEY)
        [one] = archive.list("")
        assert one.modified_ms == 1 or abs(one.modified_ms / 1000 - time.time()) < 60

    def test_listing_while_others_put_and_delete(self, archive: Archive) -> None:
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

    def test_errors_are_distier_errors(self, archive: Archive) -> None:
        with pytest.raises(DistierError):
            archive.get("..", max_bytes=1)
