"""The page of the archive in a real browser, served as a bucket's website is, and opened from a disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from distier import connect
from distier.plans.fleet.packing import pack_all
from distier.plans.recovery.browse import write_page
from tests.servers import poll
from tests.web.test_browser import LOOKS, browser, check, opened

__all__ = ["browser"]
BINARY = bytes(range(256)) * 16


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def website(directory: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/w/index.html"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, valkey_server: Any) -> Path:
    """Modules with odd names, several versions, a binary one, a deleted one, and some hundred others."""
    directory = tmp_path_factory.mktemp("archive")
    valkey_server.client().flushall()
    with connect(
        {"counter": "estimate"}, redis__url=valkey_server.url, namespace="w", near__enabled=False, deadline="60s",
        storage_tiers__cold__directory=directory, storage_tiers__cold__keep_versions=9,
    ) as store:  # fmt: skip
        for i in range(3):
            store.put("memories/user.md", f"# Version {i}\n<script>alert(1)</script>\n", durability="archived")
        store.put("skills/über mut/%41.md", "odd", keywords=["pdf", "Formulare"], durability="archived")
        store.put("logo.png", BINARY, durability="archived")
        store.put("gone.md", "x", durability="archived")
        store.delete("gone.md", durability="archived")
        for i in range(600):
            store.put(f"many/{i:03}.txt", "x")
        store.archive_now()
        store.run(write_page(store.space), deadline_s=60)
    return directory


def test_older_version_is_found_read_and_downloaded_in_a_browser(browser: Any, archive: Path, tmp_path: Path) -> None:
    with website(archive) as url, opened(browser) as (page, errors):
        page.goto(url)
        page.get_by_role("link", name="memories/ (1)").click()
        page.get_by_role("link", name="user.md").click()
        poll(lambda: page.locator("tbody tr").count() == 3, what="three versions")
        page.get_by_role("button", name="Open").nth(2).click()
        assert page.locator("#content").inner_text().startswith("# Version 0\n<script>")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download user.md").click()
        assert Path(download.value.path()).read_text() == "# Version 0\n<script>alert(1)</script>\n"
        page.goto(f"{url}#id=logo.png")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("This is no text.").wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download logo.png").click()
        assert Path(download.value.path()).read_bytes() == BINARY
        assert errors.real == []


def test_modules_are_found_by_words_of_ids_and_keywords(browser: Any, archive: Path) -> None:
    with website(archive) as url, opened(browser) as (page, errors):
        page.goto(url)
        page.get_by_role("searchbox").fill("formulare ÜBER")
        page.get_by_text("1 module", exact=True).wait_for()
        page.get_by_role("link", name="skills/über mut/%41.md").click()
        page.get_by_role("button", name="Open").click()
        assert page.locator("#content").inner_text() == "odd"
        page.get_by_role("searchbox").fill("many/")
        page.get_by_text("500 of 600 are shown").wait_for()
        page.get_by_role("searchbox").fill("nothing of the kind")
        page.get_by_text("No id and no keyword has all these words.").wait_for()
        page.get_by_role("link", name="all modules").click()
        page.get_by_role("link", name="gone.md (deleted)").click()
        poll(lambda: page.get_by_role("button", name="Open").count() == 1, what="the version before the tombstone")
        assert errors.real == []


def test_versions_in_packs_are_read_and_downloaded_in_a_browser(
    browser: Any, valkey_server: Any, tmp_path: Path
) -> None:
    valkey_server.client().flushall()
    long = f"{'d' * 90}/{'e' * 90}/f.md"
    with connect(
        {"counter": "estimate"}, redis__url=valkey_server.url, namespace="w", near__enabled=False, deadline="60s",
        storage_tiers__cold__directory=tmp_path, storage_tiers__cold__keep_versions=9,
    ) as store:  # fmt: skip
        for i in range(2):
            for id in ("skills/über mut/SKILL.md", long, "same"):
                store.put(id, f"# {id} {i}\n", durability="archived")
        packed = pack_all(store.space, min_age_ms=-(10**15), everything=True)
        assert store.run(packed, deadline_s=60).members == 6
        store.run(write_page(store.space), deadline_s=60)
    with website(tmp_path) as url, opened(browser) as (page, errors):
        for id in ("skills/über mut/SKILL.md", long, "same"):
            page.goto(f"{url}#id={quote(id, safe='')}")
            for nth, i in enumerate((1, 0)):
                page.get_by_role("button", name="Open").nth(nth).click()
                page.get_by_text(f"# {id} {i}", exact=True).wait_for()
            with page.expect_download() as download:
                page.get_by_role("link", name="Download").click()
            assert Path(download.value.path()).read_text() == f"# {id} 0\n"
        with page.expect_download() as download:
            page.get_by_role("link", name="Pack").first.click()
        assert Path(download.value.path()).read_bytes()[:6] == b"\xfd7zXZ\0"
        assert errors.real == []


def test_swept_object_is_reported_as_gone(browser: Any, archive: Path) -> None:
    (object,) = (archive / "w/modules/many/007.txt").glob("*.xz")
    object.unlink()
    with website(archive) as url, opened(browser) as (page, _):
        page.goto(f"{url}#id=many%2F007.txt")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("it was deleted since this page was written").wait_for()


def test_page_on_a_disk_reads_the_object_that_the_reader_chooses(browser: Any, archive: Path) -> None:
    with opened(browser) as (page, _):
        page.goto(f"{(archive / 'w/index.html').as_uri()}#id=memories%2Fuser.md")
        page.get_by_role("button", name="Open").nth(1).click()
        name = page.locator("code").inner_text()
        page.locator("input[type=file]").set_input_files(archive / "w" / name)
        assert page.locator("#content").inner_text().startswith("# Version 1")
        other = next((archive / "w/manifest/0").glob("*.gz"))
        page.get_by_role("button", name="Open").nth(1).click()
        page.locator("input[type=file]").set_input_files(other)
        page.get_by_text("This is no readable object").wait_for()


def test_page_is_clean_at_both_widths_light_and_dark(browser: Any, archive: Path) -> None:
    with website(archive) as url:
        for wide, scheme in LOOKS:
            with opened(browser, wide, scheme) as (page, errors):
                for view in ("", "#in=many%2F", "#id=memories%2Fuser.md", "#id=nothing"):
                    page.goto(url + view)
                    page.locator("main > *").first.wait_for()
                    check(page, errors, f"{view} at {wide} {scheme}")
                page.goto(f"{url}#id=memories%2Fuser.md")
                page.get_by_role("button", name="Open").first.click()
                page.locator("#content").wait_for()
                check(page, errors, f"a content at {wide} {scheme}")
