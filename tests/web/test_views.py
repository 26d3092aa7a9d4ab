"""What the views show, and that hostile ids and contents stay text."""

from __future__ import annotations

import html
import json
import lzma
import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import redis

from distier import Store
from distier.domain.module import Event
from distier.web import app
from distier.web.html import ident, tag, visible
from tests.servers import TestServer, poll
from tests.web.conftest import BASE, client

SAME = {"origin": BASE, "sec-fetch-site": "same-origin"}
HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='x", "a&amp;b&lt;", "a\nb\r\tc",
    "x\x00y\x1b[31m", "\u202egpj.exe", "ünï/日本/\U0001f600", "a  b ", "%3Cscript%3E", "back\\slash\\x0a",
    "javascript:alert(1)", "a?b=c#d;e", "{{7*7}}", "\ufeff\u200b",
]  # fmt: skip


@pytest.fixture
def page(store: Store) -> Iterator[Any]:
    with client(app(store, write=True)) as c:
        yield c


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self, path: str) -> list[dict[str, list[str]]]:
        found = [urlsplit(a.get("href") or "") for t, a in self.tags if t == "a"]
        return [parse_qs(url.query, keep_blank_values=True) for url in found if url.path == path]


def test_hostile_ids_and_contents_stay_text(store: Store, page: Any) -> None:
    for id in HOSTILE:
        store.put(id, f"content: {id}", keywords=[id[:50]], meta={"m": id}, content_type=None)
    store.archive_now()
    plain = {t for t, _ in Tags(page.get("/modules", params={"prefix": "nothing"}).text).tags}
    listed = Tags(page.get("/modules").text)
    assert {t for t, _ in listed.tags} <= plain | {"a", "table", "thead", "tbody", "tr", "th", "td", "span", "div"}
    assert {query["id"][0] for query in listed.links("/module")} == set(HOSTILE)
    for id in HOSTILE:
        shown = page.get("/module", params={"id": id})
        assert shown.status_code == 200
        seen = Tags(shown.text)
        assert [t for t, a in seen.tags if t == "script" and not str(a.get("src")).startswith("/static/")] == []
        assert [t for t, _ in seen.tags if t in ("img", "iframe", "object", "style")] == []
        assert [name for _, a in seen.tags for name in a if name.startswith("on")] == []
        assert ident(id) in seen.text
        assert visible(f"content: {id}") in seen.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202e\ufeff]", shown.text)
        for query in seen.links("/module"):
            assert query["id"] == [id]


def test_ids_that_differ_look_different() -> None:
    assert (
        len({ident(id) for id in [*HOSTILE, "gpj.exe", "a\\x0ab", "a b", "a  b", "back\\slash\n"]}) == len(HOSTILE) + 5
    )
    assert ident("a\nb\\x0a") == "a\\x0ab\\\\x0a"
    assert visible("a\nb\x00\u202e") == "a\nb\\x00\\u202e"
    assert tag("p", "<b>", title='"<', hidden=True, id=None) == '<p title="&quot;&lt;" hidden>&lt;b&gt;</p>'


def test_actions_reach_a_hostile_id(store: Store, page: Any) -> None:
    for id in HOSTILE:
        store.put(id, "x")
    store.archive_now()
    for id in HOSTILE:
        forms = [a for t, a in Tags(page.get("/module", params={"id": id}).text).tags if t == "form"]
        target = next(str(a["action"]) for a in forms if "/do/demote" in str(a["action"]))
        answer = page.post(target, headers=SAME)
        assert answer.status_code == 200
        assert "It is warm now." in answer.text
        placed = store.where(id)
        assert placed is not None
        assert placed.tier == "warm"


def test_each_action_says_what_it_did(store: Store, page: Any) -> None:
    store.put("m", "x")

    def act(action: str, id: str = "m", **query: str) -> str:
        answer = page.post(f"/do/{action}", params={"id": id} | query, headers=SAME)
        said = re.search('role="status"[^>]*>([^<]*)', answer.text)
        return html.unescape(said[1]) if said else str(answer.status_code)

    assert act("pin", **{"for": "1 day"}) == "It is pinned for 1 day."
    assert "not moved and is hot: pinned" in act("demote")
    assert act("unpin") == "Its pin has ended."
    assert act("demote") == "It is warm now."
    assert act("promote") == "It is hot now."
    assert "already" in act("promote")
    assert act("pin", **{"for": "1 year"}) == "400"
    assert act("explode") == "404"
    assert act("demote", id="nothing") == "404"


def test_reading_the_page_is_no_use_and_no_move(store: Store, page: Any) -> None:
    store.put("m", "the text")
    store.archive_now()
    for tier in ("hot", "warm", "cold"):
        if tier != "hot":
            store.demote("m")
        before = store.where("m")
        for path in (
            "/",
            "/modules",
            "/module?id=m",
            "/module?id=m&archived=1",
            "/archive",
            "/fleet",
            "/modules?order=uses",
            "/tree",
            "/tree?prefix=m/",
        ):
            assert page.get(path).status_code == 200
        after = store.where("m")
        assert before is not None
        assert after is not None
        assert (after.tier, after.uses, after.last_use_ms) == (tier, before.uses, before.last_use_ms)
    assert "the text" not in page.get("/module?id=m").text
    assert "the text" in page.get("/module?id=m&archived=1").text
    assert store.stats().reads.hit_ratio is None


def test_previews_are_bounded_and_say_what_they_leave_out(store: Store, page: Any) -> None:
    store.put("long", "x" * 50_000)
    store.put("huge", "x" * 300_000)
    store.put("bytes", bytes(range(256)) * 4)
    store.put("none", "")
    assert "The first 20,000 of 50,000 characters" in page.get("/module?id=long").text
    huge = page.get("/module?id=huge").text
    assert "larger than 256.0 KiB" in huge
    assert "x" * 100 not in huge
    assert "It is not text" in page.get("/module?id=bytes").text
    assert "It is empty" in page.get("/module?id=none").text


def test_paging_shows_every_module_once(open_page_store: Callable[..., Store], store: Store) -> None:
    from distier import Item

    many = open_page_store(namespace="many", shards=3)
    ids = [f"p/{i % 7}/{i}" for i in range(230)] + HOSTILE
    many.put_many([Item(id, "x") for id in ids])
    with client(app(many)) as c:
        ones = {id for id in ids if id.startswith("p/1")}
        everything = set(ids)
        for query, wanted in {
            "": everything,
            "?order=lru": everything,
            "?prefix=p/1": ones,
            "?order=biggest": everything,
        }.items():
            path, found = f"/modules{query}", []
            for _ in range(20):
                seen = Tags(c.get(path).text)
                found += [q["id"][0] for q in seen.links("/module")]
                following = [a["href"] for t, a in seen.tags if t == "a" and a.get("rel") == "next"]
                if not following:
                    break
                path = str(following[0])
            assert sorted(found) == sorted(wanted), query


def test_a_page_costs_the_same_however_many_modules_there_are(
    open_page_store: Callable[..., Store], store: Store
) -> None:
    from distier import Item

    cost: dict[int, list[int]] = {}
    for n in (2000, 12_000):
        many = open_page_store(namespace=f"n{n}", storage_tiers__hot__max_size=10_000_000)
        for i in range(0, n, 1000):
            many.put_many([Item(f"p/{k % 7}/{k}", "x", tokens=1) for k in range(i, i + 1000)])
        counted: list[int] = []
        with redis.Redis.from_url(str(many.space.config.redis.url)) as server, client(app(many)) as c:

            def commands(server: redis.Redis = server) -> int:
                stats: Any = server.info("commandstats")
                return sum(
                    int(v["calls"]) for name, v in stats.items() if name not in ("cmdstat_info", "cmdstat_xread")
                )

            for path in ("/", "/fleet", "/modules", "/modules?prefix=p/3/", "/modules?order=lru", "/modules?order=biggest",
                         "/modules?order=mru&after=1500", "/modules?after=p/4/", "/modules?tier=cold",
                         "/tree", "/tree?prefix=p/3/",
                         "/module?id=p/1/1"):  # fmt: skip
                counted.append(min(_cost(c, path, commands) for _ in range(3)))
        cost[n] = counted
    assert max(cost[12_000]) < 6000
    for small, large in zip(cost[2000], cost[12_000], strict=True):
        assert large <= small * 1.2 + 150


def _cost(c: Any, path: str, commands: Callable[[], int]) -> int:
    before = commands()
    assert c.get(path).status_code == 200
    return commands() - before


def test_versions_that_cannot_be_compared_are_refused(open_page_store: Callable[..., Store], store: Store) -> None:
    kept = open_page_store(namespace="kept", storage_tiers__cold__keep_versions=9)
    contents = [b"\xff", b"text", b"text", b"x" * 300_000, b"\n" * 6000]
    versions = [str(kept.put("m", content, durability="archived").version) for content in contents]
    with client(app(kept)) as c:

        def diff(older: str, newer: str) -> Any:
            return c.get("/diff", params={"id": "m", "older": older, "newer": newer})

        assert "The contents are equal" in diff(*versions[1:3]).text
        for pair, code, said in (
            (versions[:2], 400, "is not text"), (versions[2:4], 400, "too long"), (versions[3:], 400, "too long"),
            ((versions[1], "1-999"), 404, "no version 1-999"), ((versions[1], "x"), 400, ""),
        ):  # fmt: skip
            answer = diff(*pair)
            assert answer.status_code == code and said in answer.text, pair
        assert c.get("/diff?id=none&older=1-1&newer=1-2").status_code == 404
        assert c.get("/tree?prefix=a").status_code == 400


def test_impossible_queries_are_told_apart_from_faults(store: Store, page: Any) -> None:
    for path in ("/modules?order=size", "/modules?tier=frozen", "/modules?order=lru&after=x", "/module?id=",
                 "/archive?path=../", "/archive/object?key=other/modules/x", "/archive/object?key=w/../x",
                 "/module?id=" + "x" * 300):  # fmt: skip
        assert page.get(path).status_code == 400, path
    for path in ("/module?id=nothing", "/nothing", "/static/0/conftest.py", "/static/0/..%2F__init__.py",
                 "/archive/object?key=w/modules/nothing"):  # fmt: skip
        assert page.get(path).status_code == 404, path


def test_the_archive_is_a_tree_with_whole_downloads(store: Store, page: Any) -> None:
    store.put("skills/pdf", "the text of the skill")
    store.put("top", "x")
    store.archive_now()
    folder = Tags(page.get("/archive?path=modules/").text)
    assert [q["path"][0] for q in folder.links("/archive") if "path" in q][1:] == ["modules/skills/", "modules/top/"]
    below = Tags(page.get("/archive?path=modules/skills/pdf/").text)
    key = next(q["key"][0] for q in below.links("/archive/object") if q["key"][0].endswith(".xz"))
    answer = page.get("/archive/object", params={"key": key})
    assert lzma.decompress(answer.content) == b"the text of the skill"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{key.rpartition("/")[2]}"'


def test_the_overview_says_what_needs_a_look(store: Store, page: Any, tmp_path: Path) -> None:
    assert "The namespace is empty" in page.get("/").text
    store.put("m", "x")
    text = Tags(page.get("/").text).text
    assert "no worker maintains shard 0" in text
    poll(lambda: "the archive replies" in page.get("/").text, what="a reply of the archive")
    (tmp_path / "cold").rename(tmp_path / "away")
    assert "The archive does not reply" in page.get("/archive").text
    assert "The archive does not reply" in page.get("/module?id=m").text
    assert page.get("/archive/object?key=w/modules/x").status_code == 503


def test_a_server_that_is_gone_is_shown_on_every_view(redis_server: TestServer, tmp_path: Path) -> None:
    from distier import connect
    from tests.servers import running_server
    from tests.web.conftest import needs

    needs("starlette", "httpx2")
    with running_server("redis", tcp=True) as server, connect(
        {"counter": "estimate"}, redis__url=server.url, storage_tiers__cold__directory=tmp_path, near__enabled=False,
        deadline="5s",
    ) as store:  # fmt: skip
        store.put("m", "x")
        with client(app(store)) as c:
            assert c.get("/").status_code == 200
            server.kill9()
            poll(lambda: c.get("/").status_code == 503, what="the end of the server")
            polled = c.get("/", headers={"HX-Request": "true"})
            assert polled.status_code == 200
            assert 'id="state"' in polled.text
            assert "Redis cannot be read" in polled.text
            for path in ("/modules", "/module?id=m", "/fleet"):
                assert c.get(path).status_code == 503


def test_moves_are_counted_and_thrash_is_told_from_a_rush_of_puts(store: Store) -> None:
    from distier.web.live import Live, Runner

    live = Live(Runner(store))
    now = store.stats()
    at = int(time.time() * 1000)

    def move(n: int, from_: str, to: str, at_ms: int) -> None:
        for i in range(n):
            live._note(Event(f"{at_ms}-{i}", f"m{i}", from_, to, "x", "1-1", at_ms))

    move(9, "warm", "hot", at - 90_000)
    move(100, "none", "hot", at - 2000)
    move(50, "hot", "warm", at - 1000)
    assert dict(live.flows()) == {("none", "hot"): 100, ("hot", "warm"): 50}
    assert live.thrash(now) == ""
    move(40, "cold", "hot", at)
    assert "40 modules left hot" in live.thrash(now)
    assert len(live.recent) == 30


def test_events_are_streamed_as_json_on_one_line(store: Store) -> None:
    import httpx2

    from tests.web.conftest import served

    with served(app(store)) as url, httpx2.stream("GET", f"{url}/events", timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == "retry: 2000"
        store.put("a\nb</script>", "x")
        data = next(line for line in lines if line.startswith("data: "))
        event = json.loads(data.removeprefix("data: "))
        assert (event["id"], event["shown"], event["from"], event["to"]) == (
            "a\nb</script>",
            "a\\x0ab</script>",
            "none",
            "hot",
        )
