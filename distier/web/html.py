"""HTML that is escaped where it is made: what is not `Html` is text."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import Any
from urllib.parse import quote

from distier import __version__

VOID = {"meta", "link", "input"}
HTMX = '{"allowEval":false,"includeIndicatorStyles":false,"allowScriptTags":false,"historyCacheSize":0,"timeout":10000}'
"""htmx without what the policy forbids: no `eval`, no inline style, nothing of the page in the browser's storage."""


class Html(str):
    """Markup. Only `tag` and `join` make it."""

    __slots__ = ()


Child = "Html | str | int | float | None"


def tag(_name: str, *children: Html | str | int | float | None, **attributes: Any) -> Html:
    """Return an element. `class_` is `class`, `hx_get` is `hx-get`; True is an attribute without a value, None or False
    none."""
    made = [f"<{_name}"]
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if value is True:
            made.append(f" {name}")
        elif value is not None and value is not False:
            made.append(f' {name}="{escape(str(value), quote=True)}"')
    made.append(">")
    if _name not in VOID:
        made += [*map(_child, children), f"</{_name}>"]
    return Html("".join(made))


def join(*children: Html | str | int | float | None) -> Html:
    """Return children next to each other."""
    return Html("".join(map(_child, children)))


def _child(child: Html | str | int | float | None) -> str:
    if child is None:
        return ""
    return str(child) if isinstance(child, Html) else escape(visible(str(child)), quote=True)


def visible(text: str, keep: str = "\n\t") -> str:
    """Return text in which each character can be seen: control characters, marks of direction and the like as `\\x07` or
    `\\u202e`. Else an id could look like another one."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _hidden(c) else _escaped(c) for c in text)


def ident(text: str) -> str:
    """Return an id as one line, in which each character can be seen. Its own backslashes are doubled."""
    shown = visible(text.replace("\\", "\\\\"), keep="")
    return shown.replace("  ", " \\x20") if "  " in shown or shown != shown.strip() else shown


def _hidden(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or c == "\N{REPLACEMENT CHARACTER}"


def _escaped(c: str) -> str:
    n = ord(c)
    return f"\\x{n:02x}" if n < 0x100 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}"


def url(root: str, path: str, /, **query: Any) -> str:
    """Return the address of a page below `root`. Values that are None or empty are left out."""
    asked = "&".join(f"{k.rstrip('_')}={quote(str(v), safe='')}" for k, v in query.items() if v not in (None, ""))
    return f"{root}{path}" + (f"?{asked}" if asked else "")


def document(title: str, root: str, *body: Html, refresh: str | None = None, plain: bool = False) -> Html:
    """Return a whole page. `plain` refers to no other file: for a reader who may not get one."""
    meta = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - distier"),
        tag("link", rel="icon", href="data:,"),
    ]
    if refresh is not None:
        meta.append(tag("meta", http_equiv="refresh", content=f"0;url={refresh}"))
    if not plain and refresh is None:
        static = f"{root}/static/{__version__}/"
        meta += [
            tag("link", rel="stylesheet", href=f"{static}pico.min.css"),
            tag("link", rel="stylesheet", href=f"{static}uPlot.min.css"),
            tag("link", rel="stylesheet", href=f"{static}app.css"),
            tag("meta", name="htmx-config", content=HTMX),
            tag("script", src=f"{static}htmx.min.js", defer=True),
            tag("script", src=f"{static}uPlot.iife.min.js", defer=True),
            tag("script", src=f"{static}app.js", defer=True),
        ]
    head = tag("head", *meta)
    return Html("<!doctype html>" + tag("html", head, tag("body", *body, data_root=root), lang="en"))
