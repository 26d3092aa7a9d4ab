"""Who may ask for the page: hosts, the link and its cookie, origins, and writing."""

from __future__ import annotations

import asyncio
import builtins
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distier import ConfigError, Store, connect_async
from distier.cli import run
from distier.web import LOOPBACK, app
from tests.web.conftest import BASE, client, needs

TOKEN = "the-token-of-the-link"
PATHS = ["/", "/modules", "/module?id=m", "/fleet", "/archive", "/archive/object?key=w/x", "/series.json", "/events",
         "/static/0/app.js", "/nothing", "/do/demote?id=m"]  # fmt: skip
SAME = {"origin": BASE, "sec-fetch-site": "same-origin"}


def test_without_the_cookie_everything_is_refused(store: Store) -> None:
    with client(app(store, write=True, token=TOKEN)) as c:
        for path in PATHS:
            assert c.get(path).status_code == 401, path
            assert c.post(path, headers=SAME).status_code == 401, path
            assert c.get(path, headers={"cookie": "distier_web_8080=guessed"}).status_code == 401
        for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "\u00e9", "%00"):
            assert c.get("/", params={"token": wrong}).status_code == 401


def test_the_link_sets_a_strict_cookie_and_works_once(store: Store) -> None:
    page = app(store, token=TOKEN)
    with client(page) as c:
        assert c.head("/", params={"token": TOKEN}).status_code == 401, "a look ahead must not use the link up"
        answer = c.get("/", params={"token": TOKEN})
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert TOKEN not in cookie
        assert TOKEN not in answer.text
        assert 'content="0;url=/"' in answer.text
        assert c.get("/").status_code == 200
        assert c.get("/static/0/app.js").status_code == 200
    with client(page) as other:
        assert other.get("/", params={"token": TOKEN}).status_code == 401


def test_the_cookie_is_secure_where_the_page_is(store: Store) -> None:
    with client(app(store, token=TOKEN), base_url="https://localhost") as c:
        assert "Secure" in c.get("/", params={"token": TOKEN}).headers["set-cookie"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", "localhost.", "", "127.0.0.2", "[::2]:1"]
)
def test_an_unknown_host_is_misdirected(store: Store, host: str) -> None:
    with client(app(store)) as c:
        assert c.get("/", headers={"host": host}).status_code == 421
        assert c.post("/do/demote?id=m", headers={"host": host} | SAME).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:1", "[::1]:8080", "ops.example:443"])
def test_a_known_host_is_served_with_any_port(store: Store, host: str) -> None:
    with client(app(store, hosts=[*LOOPBACK, "OPS.example"])) as c:
        assert c.get("/fleet", headers={"host": host}).status_code == 200


def test_all_hosts_can_be_allowed(store: Store) -> None:
    with client(app(store, hosts=["*"])) as c:
        assert c.get("/fleet", headers={"host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8081"},
        {"origin": BASE, "sec-fetch-site": "cross-site"},
        {"origin": BASE, "sec-fetch-site": "same-site"},
        {"origin": "http://evil.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_a_post_from_another_site_is_refused(store: Store, headers: dict[str, str]) -> None:
    store.put("m", "x")
    with client(app(store, write=True)) as c:
        assert c.post("/do/pin?id=m&for=1%20h", headers=headers).status_code == 403
    placed = store.where("m")
    assert placed is not None
    assert placed.pinned_until_ms is None


@pytest.mark.parametrize("headers", [SAME, {"origin": BASE}, {"sec-fetch-site": "same-origin"}])
def test_a_post_from_the_page_is_allowed_only_with_write(store: Store, headers: dict[str, str]) -> None:
    store.put("m", "x")
    with client(app(store)) as c:
        assert c.post("/do/pin?id=m&for=1%20h", headers=headers).status_code == 403
        assert c.delete("/do/pin?id=m", headers=headers).status_code == 403
    placed = store.where("m")
    assert placed is not None
    assert placed.pinned_until_ms is None
    with client(app(store, write=True)) as c:
        assert c.post("/do/pin?id=m&for=1%20h", headers=headers).status_code == 200
        assert c.get("/do/pin?id=m&for=1%20h").status_code == 405
    placed = store.where("m")
    assert placed is not None
    assert placed.pinned_until_ms is not None


def test_every_response_has_the_headers(store: Store) -> None:
    with client(app(store)) as c:
        answers = [c.get(path) for path in PATHS if path != "/events"]
        answers += [c.get("/", headers={"host": "x"}), c.post("/do/x?id=m")]
    assert {a.status_code for a in answers} == {200, 403, 404, 405, 421}
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"]
        assert "server" not in answer.headers


def test_nothing_runs_or_is_styled_inline(store: Store) -> None:
    store.put("m", "x")
    with client(app(store, write=True)) as c:
        for path in ("/", "/modules", "/module?id=m", "/fleet", "/archive"):
            text = c.get(path).text
            assert " style=" not in text
            assert "<style" not in text
            assert " on" not in "".join(part.split(">")[0] for part in text.split("<")[1:] if not part.startswith("/"))
            assert all(part.split(">", 1)[1].startswith("</script") for part in text.split("<script")[1:])


def test_a_mounted_page_keeps_its_links_below_its_path(store: Store) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    store.put("m", "x")
    page = app(store)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await page.stop()

    with client(Starlette(routes=[Mount("/ops/cache", page)], lifespan=lifespan)) as c:
        for path in ("/ops/cache/", "/ops/cache/modules", "/ops/cache/module?id=m", "/ops/cache/archive"):
            text = c.get(path).text
            links = [part.split('"')[0] for part in text.replace('src="', 'href="').split('href="')[1:]]
            assert links
            assert not [link for link in links if not link.startswith(("/ops/cache/", "#", "data:"))]
        assert c.get("/ops/cache/static/0/pico.min.css").status_code == 200


def test_the_page_works_over_an_asyncio_store(store: Store) -> None:
    store.put("m", "the text of m")

    async def look() -> list[Any]:
        from httpx2 import ASGITransport, AsyncClient

        config = store.space.config
        async with await connect_async(config) as over:
            page = app(over)
            async with AsyncClient(transport=ASGITransport(page), base_url=BASE) as c:
                answers = [await c.get(path) for path in ("/", "/modules", "/module?id=m", "/fleet", "/archive")]
            await page.stop()
            return answers

    found = asyncio.run(look())
    assert [answer.status_code for answer in found] == [200] * 5
    assert "the text of m" in found[2].text


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def none(name: str, *args: Any, **given: Any) -> Any:
        if name.partition(".")[0] in ("starlette", "uvicorn"):
            raise ImportError(name)
        return real(name, *args, **given)

    monkeypatch.setattr(builtins, "__import__", none)
    nothing: Any = None
    with pytest.raises(ConfigError, match=r"distier\[web\]"):
        app(nothing)


def test_the_library_and_the_command_line_do_not_import_starlette() -> None:
    code = (
        "import sys, distier, distier.web, distier.cli.app; distier.connect;"
        "print(*sorted({'starlette', 'uvicorn', 'anyio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_command_refuses_what_would_expose_modules(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    needs("uvicorn")
    common = ["--url", str(store.space.config.redis.url), "-n", "w", "web"]
    assert run([*common, "--no-token", "--host", "0.0.0.0"]) == 2
    assert "--no-token needs a loopback" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run([*common, "--port", str(taken.getsockname()[1])]) == 9
    assert "--port 0 selects a free port" in capfd.readouterr().err
    assert run(["--url", str(store.space.config.redis.url), "-n", "mistyped", "web", "--port", "0"]) == 3
