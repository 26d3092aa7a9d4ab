"""The page in a real Chromium: every view and state, wide and narrow, light and dark, by keyboard, without an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distier import Store
from distier.web import app
from tests.servers import TestServer, poll
from tests.web import states
from tests.web.conftest import CHROMIUM, needs, served

AXE = (Path(__file__).parent / "axe.min.js").read_text("utf-8")
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
VIEWS = ["/", "/modules", "/tree", "/modules?order=uses&prefix=skills/", "/module?id=skills/pdf-0", "/fleet",
         "/archive?path=modules/", "/module?id=nothing"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    needs("starlette", "uvicorn", "playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt install chromium")
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root with its sandbox
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield opened
        opened.close()


class Errors(list[str]):
    """What a page reports on its console, and exceptions; a document that is not found is what the test asked for."""

    def __init__(self, page: Any) -> None:
        super().__init__()
        page.on("console", lambda m: self.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.append(str(e)))

    @property
    def real(self) -> list[str]:
        return [text for text in self if "404 (Not Found)" not in text]


@contextmanager
def opened(browser: Any, wide: int = 1280, scheme: str = "light") -> Iterator[tuple[Any, Errors]]:
    context = browser.new_context(viewport={"width": wide, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(30_000)
    try:
        yield page, Errors(page)
    finally:
        context.close()


def serious(page: Any) -> list[str]:
    """Return what axe-core finds that is serious or critical."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}: {[node['html'][:120] for node in v['nodes']]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]


def check(page: Any, errors: Errors, what: str) -> None:
    assert serious(page) == [], what
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{what} scrolls to the side"
    assert page.evaluate("document.querySelectorAll('main').length") == 1
    assert errors.real == [], what


def test_every_view_is_clean_at_both_widths_light_and_dark(
    browser: Any, open_page_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = states.make("healthy", open_page_store, tmp_path / "cold")
    with served(app(store, write=True)) as url:
        for wide, scheme in LOOKS:
            with opened(browser, wide, scheme) as (page, errors):
                for view in VIEWS:
                    page.goto(url + view)
                    check(page, errors, f"{view} at {wide} {scheme}")
                if (wide, scheme) in (LOOKS[0], LOOKS[3]):
                    page.goto(url)
                    page.locator("#state").evaluate("e => e.dataset.seen = 'before the poll'")
                    poll(lambda: _reads_until_drawn(store, page), what="the chart, after two samples")
                    poll(lambda: not page.locator("#state").get_attribute("data-seen"), what="a poll")
                    check(page, errors, f"the chart at {wide} {scheme}")


def test_the_checks_of_a_page_can_fail(browser: Any, open_page_store: Callable[..., Store]) -> None:
    with served(app(open_page_store())) as url, opened(browser) as (page, errors):
        page.goto(url)
        page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\"><p id=p>x')")
        assert any(found.startswith("image-alt") for found in serious(page))
        page.evaluate("document.getElementById('p').setAttribute('style', 'width: 9000px')")
        assert any("Content Security Policy" in text for text in errors.real)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate("document.getElementById('p').style.width = '9000px'")
        assert not page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def _reads_until_drawn(store: Store, page: Any) -> bool:
    states.read(store, "healthy", 20)
    page.wait_for_timeout(100)
    return bool(page.locator("#chart canvas").count())


@pytest.mark.parametrize("state", states.SETTINGS)
def test_every_state_is_shown_on_the_overview(
    browser: Any, open_page_store: Callable[..., Store], tmp_path: Path, state: str
) -> None:
    store = states.make(state, open_page_store, tmp_path / "cold")
    with served(app(store)) as url:
        for wide, scheme in (LOOKS[0], LOOKS[3]):
            with opened(browser, wide, scheme) as (page, errors):
                page.goto(url)
                page.wait_for_selector(f"#state :text({json.dumps(states.LOOK[state])})")
                page.wait_for_selector(":text('Live.')")
                check(page, errors, f"{state} at {wide} {scheme}")


def test_the_tree_unfolds_by_keyboard_and_shows_what_is_below(
    browser: Any, open_page_store: Callable[..., Store]
) -> None:
    needs("starlette")
    store = open_page_store()
    for id in ("top", *(f"skills/{n:03}/SKILL.md" for n in range(60)), "skills/about", "docs/<b>/a"):
        store.put(id, "x")
    with served(app(store)) as url, opened(browser) as (page, errors):
        page.goto(url + "/tree")
        assert page.locator("ul.branch > li").all_inner_texts() == ["docs/", "skills/", "top"]
        page.locator("summary", has_text="skills/").focus()
        page.keyboard.press("Enter")
        below = page.locator("details", has_text="skills/").locator("ul.branch > li")
        page.wait_for_selector("summary:text-is('049/')")
        assert below.count() == 51 and below.last.inner_text() == "More"
        below.last.get_by_role("link").click()
        page.wait_for_selector("summary:text-is('059/')")
        assert below.count() == 61
        page.locator("summary:text-is('007/')").click()
        page.wait_for_selector("a:text-is('SKILL.md')")
        check(page, errors, "an open tree")
        page.locator("a:text-is('SKILL.md')").click()
        page.wait_for_selector("h1:text-is('skills/007/SKILL.md')")
        page.goto(url + "/tree?prefix=docs/")
        assert page.locator("summary").all_inner_texts() == ["<b>/"]


def test_the_difference_of_two_versions_is_marked(browser: Any, open_page_store: Callable[..., Store]) -> None:
    needs("starlette")
    store = open_page_store(storage_tiers__cold__keep_versions=9)
    for text in ("a\nb\nc\n", "a\n<b>\nc\n", "a\n<b>\nc\nd\n"):
        store.put("m", text, durability="archived")
    with served(app(store)) as url:
        for wide, scheme in LOOKS:
            with opened(browser, wide, scheme) as (page, errors):
                page.goto(url + "/module?id=m")
                check(page, errors, f"the module at {wide} {scheme}")
                links = page.locator("a:text-is('diff')")
                assert links.count() == 2
                links.last.click()
                page.wait_for_selector(".diff .added")
                assert page.locator(".diff .removed").all_inner_texts() == ["-b\n"]
                assert page.locator(".diff .added").all_inner_texts() == ["+<b>\n"]
                check(page, errors, f"the difference at {wide} {scheme}")


def test_live_moves_appear_within_a_second(browser: Any, open_page_store: Callable[..., Store], tmp_path: Path) -> None:
    needs("starlette")
    store = open_page_store()
    with served(app(store)) as url, opened(browser) as (page, errors):
        page.goto(url)
        page.wait_for_selector(":text('Live.')")
        took: list[float] = []
        for i in range(5):
            began = time.monotonic()
            store.put(f"live/<b>{i}</b>", "x")
            page.wait_for_selector(f"#moves a:text('live/<b>{i}</b>')")
            took.append(time.monotonic() - began)
        assert sorted(took)[2] < 1.0
        page.click("#pause")
        store.put("live/later", "x")
        page.wait_for_selector("#state :text('none to hot 6')")  # the polled part has it, the list waits
        assert page.locator("#moves :text('live/later')").count() == 0
        page.click("#pause")
        page.wait_for_selector("#moves :text('live/later')")
        assert errors == []


def test_the_page_is_used_by_keyboard_alone(
    browser: Any, open_page_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = states.make("healthy", open_page_store, tmp_path / "cold")
    with served(app(store, write=True)) as url, opened(browser) as (page, errors):
        for view in ("/", "/modules?prefix=docs/", "/module?id=skills/pdf-0"):
            page.goto(url + view)
            if view == "/":
                page.click("#pause")  # rows that come and go are no stable order of tabs
                page.evaluate("document.activeElement.blur()")
                page.goto(url + view)
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0"), (
                "the skip link is not shown"
            )
            wanted = page.locator("a[href], button, input, select, [tabindex='0']").count()
            seen = {page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)")}
            for _ in range(wanted - 1):
                page.keyboard.press("Tab")
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", view
                seen.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
            assert len(seen) >= wanted - 1, f"{view}: the keyboard does not reach everything"
        page.goto(f"{url}/modules")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        page.keyboard.type("code/services/")
        page.keyboard.press("Enter")
        page.wait_for_selector("#list nav.above")
        assert page.evaluate("document.activeElement.name") == "prefix", "the focus must stay where the user types"
        assert "prefix=code%2Fservices%2F" in page.url.replace("/services/", "%2Fservices%2F").replace(
            "code/", "code%2F"
        )
        page.goto(f"{url}/module?id=skills/pdf-0")
        page.focus("button:text('Pin for 1 h')")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=status]:text('It is pinned for 1 h.')")
        page.focus("button:text('Unpin')")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=status]:text('Its pin has ended.')")
        assert errors == []


def test_hostile_ids_do_nothing_in_a_browser(browser: Any, open_page_store: Callable[..., Store]) -> None:
    from tests.web.test_views import HOSTILE

    store = open_page_store(namespace="hostile")
    with served(app(store, write=True)) as url, opened(browser) as (page, errors):
        page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
        page.goto(url)
        page.wait_for_selector(":text('Live.')")
        for id in HOSTILE:
            store.put(id, f"<script>alert(2)</script>{id}", meta={"x": id}, keywords=[id[:20]])
        poll(lambda: page.locator("#moves a").count() >= len(HOSTILE), what="the moves of hostile ids")
        page.goto(f"{url}/modules")
        links = page.eval_on_selector_all("#list a.id", "found => found.map(a => a.href)")
        assert len(links) == len(HOSTILE)
        for link in links:
            page.goto(link)
            assert page.locator("h1").count() == 1
            page.click("button:text('Pin for 1 h')")
            page.wait_for_selector("[role=status]:text('It is pinned')")
        pinned = [store.where(id) for id in HOSTILE]
        assert all(placed is not None and placed.pinned_until_ms for placed in pinned)
        assert errors == []


def test_without_write_there_is_nothing_to_press(browser: Any, open_page_store: Callable[..., Store]) -> None:
    store = open_page_store(namespace="reading")
    store.put("m", "x")
    with served(app(store)) as url, opened(browser) as (page, _):
        page.goto(f"{url}/module?id=m")
        assert page.locator("button").count() == 0


def test_the_command_signs_a_browser_in_once(
    browser: Any, one_server: TestServer, open_page_store: Callable[..., Store]
) -> None:
    open_page_store(namespace="cli").put("m", "x")
    command = [sys.executable, "-m", "distier", "--url", one_server.url, "-n", "cli", "--json", "web", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert (said["namespace"], said["write"]) == ("cli", False)
        with opened(browser) as (page, errors):
            page.goto(said["url"])
            page.wait_for_selector("h1:text('Overview')")
            assert "token" not in page.url
            page.wait_for_selector(":text('Live.')")
            (cookie,) = page.context.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            assert page.evaluate("document.cookie") == ""
            assert errors == []
            process.send_signal(signal.SIGINT)
            poll(lambda: process.poll() is not None, what="the end of distier web")
        assert process.returncode == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
