"""The routes of the page: what each address reads, and which view shows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from distier import __version__
from distier.client import AsyncStore, Store
from distier.domain.difference import diff_lines
from distier.domain.ids import check_id
from distier.domain.module import TIERS, Moved
from distier.effects import ArchiveGet
from distier.errors import ArchiveUnavailable, ConfigError, Corrupt, DistierError, Invalid, NotFound, Unavailable
from distier.plans.get.browse import RANKS, level, page_by_id, page_by_rank
from distier.plans.get.explain import explain
from distier.plans.get.history import get_version
from distier.plans.get.peek import archived_versions, peek
from distier.plans.get.where import where
from distier.plans.recovery.folders import list_folder
from distier.plans.tier.demote import demote
from distier.plans.tier.promote import pin, promote, unpin
from distier.views import (
    explained_view,
    fleet_view,
    folder_view,
    health_view,
    page_view,
    stats_view,
    version_view,
    view,
)

from . import module_page, overview, tables, tree
from .html import Html, document, ident, join, tag, url
from .live import Live, Runner

STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
PAGE_ROWS = 50
PREVIEW_BYTES = 256 * 1024
"""Modules up to this size have a preview. Redis cannot return a part of a field, so a larger one is not read at all."""
DIFF_LINES = 5000
"""Versions with more lines are not compared: the time grows with the product of both."""
TREE_ROWS = 50
DOWNLOAD_BYTES = 64 << 20
PIN_S = {"1 h": 3600, "1 day": 86_400, "7 days": 604_800}
VIEWS = (("/", "Overview"), ("/modules", "Modules"), ("/fleet", "Fleet"), ("/archive", "Archive"))


class Pages:
    """The views of one store."""

    def __init__(self, store: Store | AsyncStore, *, write: bool) -> None:
        self.run, self.write = Runner(store), write
        self.space = store.space
        self.live = Live(self.run)
        self._static = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}

    # -- the overview --------------------------------------------------------------------------------------------------

    async def overview(self, request: Request) -> Response:
        root = root_of(request)
        try:
            now = await self.live.now()
        except DistierError as e:
            if "hx-request" not in request.headers:
                raise
            # The overview polls: a browser would log each failed request, and htmx would leave the old totals in place.
            return self._page(request, "Overview", overview.unreadable(root, str(e)))
        thrash = self.live.thrash(now.stats)
        health = health_view(now.stats, now.health, archive=now.archive, thrash=thrash)
        totals = stats_view(now.stats)
        body = overview.overview(
            root, health, totals, now.stats, self.live.flows(), [view(e) for e in self.live.recent]
        )
        return self._page(request, "Overview", body)

    async def series(self, request: Request) -> Response:
        times, parts = self.live.hit_ratio()
        return JSONResponse({"times": times, "hit_ratio": parts})

    async def events(self, request: Request) -> Response:
        if self.live.is_full:
            raise HTTPException(503, "Too many browsers follow the moves already.")

        async def stream() -> AsyncIterator[str]:
            yield "retry: 2000\n\n"
            async for event in self.live.watch():
                shown = view(event) | {"shown": ident(event.id)} if event else None
                yield f"data: {json.dumps(shown)}\n\n" if shown else ": nothing moved\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    # -- modules -------------------------------------------------------------------------------------------------------

    async def modules(self, request: Request) -> Response:
        q = request.query_params
        prefix, tier, order, after = q.get("prefix", ""), q.get("tier", ""), q.get("order", "id"), q.get("after", "")
        if tier not in ("", *TIERS):
            raise Invalid(f"the tier must be hot, warm or cold, not {tier[:40]!r}")
        if order == "id":
            page = await self.run(page_by_id(self.space, prefix, after, PAGE_ROWS, tier or None))
        else:
            rank = next((rank for rank in RANKS if rank == order), None)
            if rank is None:
                raise Invalid(f"the order must be id, {', '.join(RANKS)}, not {order[:40]!r}")
            page = await self.run(page_by_rank(self.space, rank, after, PAGE_ROWS, prefix=prefix, tier=tier or None))
        now = await self.live.now()
        late = any(not epoch.verified for epoch in now.stats.epochs)
        body = tables.modules(root_of(request), page_view(page), prefix, tier, order, after, late=late)
        return self._page(request, "Modules", body)

    async def module(self, request: Request) -> Response:
        return await self._module(request, check_id(request.query_params.get("id", "")))

    async def _module(self, request: Request, id: str, said: str = "") -> Response:
        placed = await self.run(where(self.space, id))
        if placed is None:
            raise NotFound(f"There is no module {id!r}.")
        explained = await self.run(explain(self.space, id))
        failed = ""
        try:
            wanted = "archived" in request.query_params
            peeked = await self.run(peek(self.space, id, max_bytes=PREVIEW_BYTES, from_archive=wanted))
        except (Unavailable, Corrupt) as e:
            peeked, failed = None, str(e)
        versions: list[dict[str, Any]] | str = []
        try:
            versions = [version_view(v) for v in await self.run(archived_versions(self.space, id), 2.0)]
        except (Unavailable, ConfigError) as e:
            versions = str(e)
        body = module_page.module_page(
            root_of(request), view(placed), explained_view(explained) if explained else None, peeked, failed, versions,
            said=said, actions=list(PIN_S) if self.write else None, most_bytes=PREVIEW_BYTES,
        )  # fmt: skip
        return self._page(request, id, body, current="Modules")

    async def tree(self, request: Request) -> Response:
        prefix = request.query_params.get("prefix", "")
        if prefix and not prefix.endswith("/"):
            raise Invalid("A folder's prefix ends in '/'.")
        found = await self.run(level(self.space, prefix, request.query_params.get("after", ""), TREE_ROWS))
        return self._page(
            request, "Tree", tree.tree(root_of(request), prefix, found.names, found.after), current="Modules"
        )

    async def difference(self, request: Request) -> Response:
        q = request.query_params
        id, older, newer = check_id(q.get("id", "")), q.get("older", ""), q.get("newer", "")
        modules = []
        for version in (older, newer):
            module = await self.run(get_version(self.space, id, version), 30.0)
            if module is None:
                raise NotFound(f"The archive has no version {version} of module {id!r} any more.")
            if len(module.content) > PREVIEW_BYTES or module.content.count(b"\n") > DIFF_LINES:
                raise Invalid(f"Version {version} is too long to be compared here: distier diff does it.")
            modules.append(module)
        lines = await asyncio.to_thread(diff_lines, modules[0], modules[1], ident(id))
        body = module_page.difference(root_of(request), id, older, newer, lines)
        return self._page(request, "Difference", body, current="Modules")

    async def act(self, request: Request) -> Response:
        """Demote, promote, pin or unpin one module. The guard has checked that writing is allowed, and where it comes from."""
        id, action = check_id(request.query_params.get("id", "")), request.path_params["action"]
        try:
            if action == "pin":
                wanted = request.query_params.get("for", "")
                if wanted not in PIN_S:
                    raise Invalid(f"a pin is for {', '.join(PIN_S)}, not {wanted[:40]!r}")
                await self.run(pin(self.space, id, PIN_S[wanted] * 1000))
                said = f"It is pinned for {wanted}."
            elif action == "unpin":
                await self.run(unpin(self.space, id))
                said = "Its pin has ended."
            elif action in ("demote", "promote"):
                moved: Moved = await self.run((demote if action == "demote" else promote)(self.space, id))
                why = f": {moved.reason}" if moved.reason else ""
                said = f"It is {moved.tier} now." if moved.moved else f"It was not moved and is {moved.tier}{why}."
            else:
                raise HTTPException(404, "There is no such action.")
        except (Unavailable, Corrupt, ConfigError) as e:
            said = f"It was not done: {e}"
        return await self._module(request, id, said)

    # -- the fleet and the archive -------------------------------------------------------------------------------------

    async def fleet(self, request: Request) -> Response:
        now = await self.live.now()
        return self._page(request, "Fleet", tables.fleet(stats_view(now.stats), fleet_view(now.health)))

    async def archive(self, request: Request) -> Response:
        q = request.query_params
        path = q.get("path", "")
        root = root_of(request)
        try:
            found = await self.run(list_folder(self.space, path, q.get("after", "")))
        except (ArchiveUnavailable, ConfigError) as e:
            body = join(
                tag("h1", "Archive"), tag("p", tag("strong", "The archive does not reply. "), str(e), class_="bad note")
            )
            return self._page(request, "Archive", body)
        return self._page(request, "Archive", tables.archive(root, self.space.namespace, folder_view(found)))

    async def download(self, request: Request) -> Response:
        key = request.query_params.get("key", "")
        # An archive may hold several namespaces, and this page shows one.
        if not key.startswith(f"{self.space.namespace}/") or any(part in ("", ".", "..") for part in key.split("/")):
            raise Invalid("This is no object of the namespace.")
        found = await self.run(ArchiveGet(key, DOWNLOAD_BYTES).__iter__(), 30.0)
        if found is None:
            raise NotFound("There is no such object in the archive.")
        name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.@") else "_" for c in key.rpartition("/")[2])
        return Response(
            found.data, media_type="application/octet-stream",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )  # fmt: skip

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404, "There is no such file.")
        # The version is in the path, so a browser need not ask again.
        headers = {"Cache-Control": "private, max-age=86400"}
        return Response(self._static[name], media_type=TYPES["." + name.rpartition(".")[2]], headers=headers)

    # -- frames --------------------------------------------------------------------------------------------------------

    def _page(
        self, request: Request, title: str, body: Html, *, code: int = 200, current: str | None = None
    ) -> Response:
        root = root_of(request)
        links = [
            tag("li", tag("a", name, href=url(root, path), aria_current="page" if name == (current or title) else None))
            for path, name in VIEWS
        ]
        mode = "read and write" if self.write else "read only"
        header = tag("header", tag("nav", tag("ul", *links, class_="views"), aria_label="Views"),
                     tag("p", tag("b", self.space.namespace), f" ({mode})", class_="of"), class_="container")  # fmt: skip
        skip = tag("a", "Skip to the content", href="#main", class_="skip")
        main = tag("main", body, id="main", tabindex="-1", class_="container")
        footer = tag("footer", tag("small", f"distier {__version__}"), class_="container")
        return HTMLResponse(document(title, root, skip, header, main, footer), status_code=code)

    async def failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            code, text = error.status_code, error.detail
        else:
            code = 404 if isinstance(error, NotFound) else 400 if isinstance(error, Invalid) else 503
            if isinstance(error, ConfigError):
                code = 503
            text = str(error)
        title = {404: "Not found", 400: "Not possible", 405: "Not possible"}.get(code, "Not available")
        # htmx shows no failed response. `list` is the part of the modules that the form replaces, `branch` that of the tree.
        shown = join(tag("h1", title), tag("div", tag("p", text, class_="bad note"), id="list", class_="branch"))
        return self._page(request, title, shown, code=200 if "hx-request" in request.headers else code)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.live.start(keep=True)
        yield
        await self.live.stop()


def root_of(request: Request) -> str:
    """Return the path under which the app is mounted."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def make_app(store: Store | AsyncStore, *, write: bool) -> tuple[ASGIApp, Live]:
    """Return the app without its guard, and what follows the store for it."""
    pages = Pages(store, write=write)

    def on(path: str, show: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        async def followed(request: Request) -> Response:
            pages.live.start()
            return await show(request)

        return Route(path, followed, methods=[method])

    routes = [
        on("/", pages.overview),
        on("/series.json", pages.series),
        on("/events", pages.events),
        on("/modules", pages.modules),
        on("/module", pages.module),
        on("/tree", pages.tree),
        on("/diff", pages.difference),
        on("/do/{action}", pages.act, "POST"),
        on("/fleet", pages.fleet),
        on("/archive", pages.archive),
        on("/archive/object", pages.download),
        on("/static/{version}/{name}", pages.static),
    ]
    handlers: Any = {HTTPException: pages.failed, DistierError: pages.failed}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=pages.lifespan), pages.live
