"""Take the pictures of docs/how-to/operators-page.md: `python -m tests.web.screenshots [DIRECTORY]`. Needs Chromium."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from distier import connect
from distier.web import app
from tests.servers import available_kinds, running_server
from tests.web import states
from tests.web.conftest import CHROMIUM, served

IMAGES = Path(__file__).parents[2] / "docs" / "images" / "web"
READ_S = 16
"""How long agents read, so that the hit ratio is a line."""


class Picture(NamedTuple):
    file: str
    state: str
    path: str = "/"
    wide: int = 1080
    high: int = 800
    scheme: str = "light"
    reads: bool = False
    clicks: tuple[str, ...] = ()


CHANGED = "skills/pdf-0"
"""The module that has an older version."""
PICTURES = (
    Picture("overview.png", "healthy", reads=True),
    Picture("thrash.png", "thrash", reads=True),
    Picture("archive-down.png", "archive down", high=420),
    Picture("dirty.png", "dirty", high=420),
    Picture("module.png", "healthy", f"/module?id={CHANGED}", high=560, scheme="dark"),
    Picture("tree.png", "healthy", "/tree", high=420, clicks=("summary",)),
    Picture("diff.png", "healthy", f"/module?id={CHANGED}", high=420, clicks=("a:text-is('diff')",)),
)


def take(browser: Any, url: str, picture: Picture, directory: Path, store: Any) -> None:
    context = browser.new_context(viewport={"width": picture.wide, "height": picture.high}, color_scheme=picture.scheme)
    page = context.new_page()
    page.goto(url + picture.path)
    for selector in picture.clicks:
        page.locator(selector).first.click()
    end = time.monotonic() + (READ_S if picture.reads else 2.5)
    while time.monotonic() < end:
        if picture.reads:
            states.read(store, picture.state, 4)
        page.wait_for_timeout(30)
    page.screenshot(path=str(directory / picture.file))
    context.close()


def main(directory: Path) -> None:
    from playwright.sync_api import sync_playwright

    directory.mkdir(parents=True, exist_ok=True)
    kind: Any = "redis" if available_kinds()["valkey"] else "valkey"
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright, running_server(kind, tcp=True) as server:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        for state in states.SETTINGS:
            with tempfile.TemporaryDirectory() as tmp:
                cold = Path(tmp) / "cold"
                open_store = partial(
                    connect, {"counter": "estimate"}, redis__url=server.url, near__enabled=False,
                    storage_tiers__cold__directory=cold, storage_tiers__cold__keep_versions=3,
                )  # fmt: skip
                with states.make(state, open_store, cold) as store, served(app(store, write=True)) as url:
                    if state == "healthy" and (module := store.get(CHANGED)) is not None:
                        changed = module.text.replace("\n", " and more\n", 1) + "A new last line.\n"
                        store.put(CHANGED, changed, keywords=module.keywords, meta=module.meta, durability="archived")
                    for picture in PICTURES:
                        if picture.state == state:
                            take(browser, url, picture, directory, store)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
