"""Who may ask for the page: the host, the cookie, the origin, and the headers of every response.

    Host is unknown                       421   a name that resolves to this machine, in a browser that another site controls
    no cookie and no link with the token  401
    POST from another site                403
    POST without `write`                  403

A mounted app gets the same checks, but for the cookie where no token was given.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .html import document, tag
from .live import Live

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
COOKIE_S = 12 * 3600
READING = ("GET", "HEAD")


class Guard:
    """Lets a request through to `inner` if it may see the page."""

    def __init__(
        self, inner: ASGIApp, live: Live, *, write: bool, token: str | None, hosts: Sequence[str]
    ) -> None:  # fmt: skip
        self._inner, self._write, self._token = inner, write, token
        self.stop, self.end_streams = live.stop, live.end_streams
        self._hosts = {host.lower() for host in hosts}
        self._needs_cookie = token is not None
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # `lifespan`; there are no websockets
            await self._inner(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self._inner)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """Return the response to a request that may not see what it asks for; None for one that may."""
        host = request.headers.get("host", "")
        if "*" not in self._hosts and without_port(host) not in self._hosts:
            return _refused(421, "Unknown host", "The page does not answer under this name. Allow it with --allow-host NAME "
                            "(in an app of your own: distier.web.app(..., hosts=[...])).")  # fmt: skip
        if self._needs_cookie and not self._has_cookie(request):
            return self._redeem(request) or _refused(
                401,
                "Not signed in",
                "Open the link that distier web printed. It works once; start it again for another one.",
            )
        if request.method not in READING:
            if not same_origin(request.headers, host):
                return _refused(403, "Another site", "A change must come from the page itself.")
            if not self._write:
                return _refused(403, "Read only", "Start distier web with --write to allow changes.")
        return None

    def _cookie(self, request: Request) -> str:
        # Cookies do not know ports: two pages on one host must not overwrite each other's.
        port = request.headers.get("host", "").rpartition(":")[2]
        return f"distier_web_{port}" if port.isascii() and port.isdigit() else "distier_web"

    def _has_cookie(self, request: Request) -> bool:
        return _equal(request.cookies.get(self._cookie(request), ""), self._session)

    def _redeem(self, request: Request) -> Response | None:
        """Return the page that sets the cookie, if the request has the token. It works once.

        It is no redirect: a browser that follows a link from another site (a terminal in a browser) would not send a strict
        cookie along with the redirected request, but does with one that this page makes.
        """
        token = request.query_params.get("token", "")
        if request.method != "GET" or self._token is None or not _equal(token, self._token):
            return None
        self._token = None
        home = request.scope.get("root_path", "") + "/"
        body = tag("p", "Signed in. ", tag("a", "Continue to the page", href=home), ".")
        response = HTMLResponse(document("Signed in", home[:-1], tag("main", body, id="main"), refresh=home))
        response.set_cookie(
            self._cookie(request), self._session, max_age=COOKIE_S, path=home, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response


def without_port(host: str) -> str:
    """Return the name in a `Host` header, in lower case."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isascii() and port.isdigit() else host).lower()


def same_origin(headers: Headers, host: str) -> bool:
    """Return whether a browser says that the page itself makes this request.

    What it says must agree; one that says nothing is refused. The scheme is not compared: a proxy may end TLS.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None and origin is None:
        return False
    return site in (None, "same-origin") and (origin is None or urlsplit(origin).netloc.lower() == host.lower())


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _refused(code: int, title: str, text: str) -> Response:
    body = tag("main", tag("h1", title), tag("p", text), id="main")
    return HTMLResponse(document(title, "", body, plain=True), status_code=code)
