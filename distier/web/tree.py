"""The ids as a tree that unfolds."""

from __future__ import annotations

from collections.abc import Sequence

from .html import Html, ident, join, tag, url
from .show import module_link


def tree(root: str, prefix: str, names: Sequence[str], after: str | None) -> Html:
    """Return one level. A folder loads what is below it when it is opened, with the same view."""
    where = tag("p", "Below ", tag("b", ident(prefix), class_="id"), class_="small") if prefix else None
    empty = tag("p", "There is no module.", class_="empty") if not names else None
    return join(
        tag("h1", "Modules"),
        tag("p", tag("a", "As a list", href=url(root, "/modules", prefix=prefix))),
        where,
        tag("ul", *(_node(root, prefix, name) for name in names), _more(root, prefix, after), class_="branch tree"),
        empty,
    )


def _node(root: str, prefix: str, name: str) -> Html:
    shown = ident(name.removeprefix(prefix))
    if not name.endswith("/"):
        return tag("li", module_link(root, name, shown))
    below = url(root, "/tree", prefix=name)
    return tag("li", tag(
        "details",
        tag("summary", shown, class_="id"),
        tag("div", tag("p", tag("a", "Open", href=below), class_="small"), class_="below"),
        hx_get=below, hx_trigger="toggle once", hx_select=".branch", hx_target="find .below", hx_swap="innerHTML",
    ))  # fmt: skip


def _more(root: str, prefix: str, after: str | None) -> Html | None:
    if after is None:
        return None
    following = url(root, "/tree", prefix=prefix, after=after)
    return tag("li", tag("a", "More", href=following, rel="next", hx_get=following, hx_select=".branch > li",
                         hx_target="closest li", hx_swap="outerHTML"))  # fmt: skip
