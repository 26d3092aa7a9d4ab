"""One module: where it is and why, what it says, its versions, and what can be done with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distier.views import span

from .html import Html, ident, join, tag, url
from .show import facts, module_link, moment, number, section, size, table, tier

if TYPE_CHECKING:
    from distier.plans.get.peek import Peeked

PREVIEW_CHARS = 20_000
SHOWN_LINES = 2000


def module_page(
    root: str, placed: dict[str, Any], explained: dict[str, Any] | None, peeked: Peeked | None, failed: str,
    versions: list[dict[str, Any]] | str, *, said: str, actions: list[str] | None, most_bytes: int,
) -> Html:  # fmt: skip
    id = placed["id"]
    parts = [tag("h1", ident(id), class_="id")]
    if said:
        parts.append(tag("p", said, role="status", class_="note said"))
    if explained is not None:
        parts.append(tag("p", tier(placed["tier"]), " ", ident(explained["text"]), class_="why"))
    if actions is not None:
        parts.append(_actions(root, id, placed, actions))
    parts += [
        section("Where", _placement(root, placed, explained)),
        section("Described by", _described(peeked)),
        section("Content", _preview(root, id, placed, peeked, failed, most_bytes)),
        section("Versions in the archive", _versions(root, id, versions)),
    ]
    return join(*parts)


def _actions(root: str, id: str, placed: dict[str, Any], pins: list[str]) -> Html:
    def button(text: str, action: str, **query: str) -> Html:
        # The id is in the address: a form would change line ends in it.
        target = url(root, f"/do/{action}", id=id, **query)
        return tag("form", tag("button", text, type="submit", class_="secondary"), method="post", action=target,
                   hx_post=target, hx_select="#main", hx_target="#main", hx_swap="outerHTML show:none")  # fmt: skip

    made = [button("Promote", "promote"), button("Demote", "demote")]
    made += [button(f"Pin for {name}", "pin", for_=name) for name in pins]
    if placed["pinned_until_ms"]:
        made.append(button("Unpin", "unpin"))
    return tag("div", *made, class_="actions", role="group", aria_label="Actions")


def _placement(root: str, p: dict[str, Any], e: dict[str, Any] | None) -> Html:
    rows: list[tuple[str, Any]] = [
        ("tier", tier(p["tier"])), ("version", p["version"]), ("tokens", number(p["tokens"])), ("size", size(p["size_bytes"])),
        ("stored", size(p["stored_bytes"]) + (f", compressed {p['ratio']:.1f} times" if p["ratio"] else "")),
        ("archived", "yes" if p["clean"] else tag("strong", "not yet")), ("uses", f"{p['uses']:.1f}"),
        ("last used", moment(p["last_use_ms"])), ("written", moment(p["updated_ms"])), ("created", moment(p["created_ms"])),
    ]  # fmt: skip
    if p["dirty_since_ms"]:
        rows.append(("dirty since", moment(p["dirty_since_ms"])))
    if p["due_ms"]:
        rows.append(("due to leave warm", moment(p["due_ms"])))
    if p["ttl_ms"] is not None:
        rows.append(("its frame expires in", span(p["ttl_ms"])))
    if p["pinned_until_ms"]:
        rows.append(("pinned until", moment(p["pinned_until_ms"])))
    if p["expires_ms"] is not None:
        rows.append(("expires", moment(p["expires_ms"])))
    if e is not None and e["before"] is not None:
        rows.append(("leaves before it", f"{number(e['before'])} of {number(e['of'])} modules, by {e['policy']}"))
    if p["nodes"]:
        rows.append(("on the disks of", ", ".join(map(ident, p["nodes"]))))
    rows += [("content type", ident(p["content_type"])), ("SHA-256", tag("code", p["sha256"]))]
    if p["archived_key"]:
        link = tag(
            "a", ident(p["archived_key"]), href=url(root, "/archive/object", key=p["archived_key"]), download=True
        )
        rows.append(("object", tag("span", link, class_="id")))
    return facts(rows)


def _described(peeked: Peeked | None) -> Html:
    if peeked is None or not (peeked.keywords or peeked.meta):
        return tag("p", "It has no keywords and no metadata.", class_="empty")
    parts = []
    if peeked.keywords:
        parts.append(tag("p", "Keywords: ", ", ".join(map(ident, peeked.keywords))))
    if peeked.meta:
        text = json.dumps(peeked.meta, ensure_ascii=False, indent=1)
        parts.append(tag("pre", text[:PREVIEW_CHARS], tabindex="0", role="region", aria_label="Metadata"))
    return join(*parts)


def _preview(root: str, id: str, p: dict[str, Any], peeked: Peeked | None, failed: str, most_bytes: int) -> Html:
    if failed:
        return tag("p", failed, class_="bad note")
    if peeked is None or peeked.why == "moving":
        return tag("p", "It moved while it was read. Load the page again.", class_="empty")
    if peeked.why == "too large":
        return tag("p", f"It is larger than {size(most_bytes)}; distier cat prints it.", class_="empty")
    if peeked.why == "archived":
        link = tag("a", "Read it from the archive", href=url(root, "/module", id=id, archived="1"))
        return tag("p", "It is only in the archive. ", link, ". That neither uses nor moves it.", class_="empty")
    content = peeked.content or b""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return tag(
            "p", f"It is not text ({ident(p['content_type'])}). Its first bytes:", tag("code", content[:64].hex(" "))
        )
    cut = text[:PREVIEW_CHARS]
    shown = tag("pre", cut, tabindex="0", role="region", aria_label="Content", class_="preview")
    if len(cut) < len(text):
        return join(shown, tag("p", f"The first {number(len(cut))} of {number(len(text))} characters.", class_="small"))
    return shown if text else tag("p", "It is empty.", class_="empty")


def _versions(root: str, id: str, versions: list[dict[str, Any]] | str) -> Html:
    if isinstance(versions, str):
        return tag("p", tag("strong", "The archive does not reply. "), versions, class_="bad note")
    rows: list[tuple[Any, ...]] = []
    before: str | None = None
    for v in versions:
        download = tag("a", "download", href=url(root, "/archive/object", key=v["key"]), download=True)
        diff = None
        if v["kind"] == "content":
            diff = before and tag("a", "diff", href=url(root, "/diff", id=id, older=before, newer=v["version"]))
            before = v["version"]
        rows.append((v["version"], "deleted" if v["kind"] == "deleted" else "content", size(v["size_bytes"]),
                     moment(v["modified_ms"]), diff or "", download))  # fmt: skip
    return table(
        "Versions",
        ("version", "what", ">bytes", "written", "from the one before", ""),
        rows[::-1],
        "The archive has none.",
    )


def difference(root: str, id: str, older: str, newer: str, lines: Sequence[str]) -> Html:
    """Return a unified diff, with each line marked as added or removed."""
    body = lines[2:]  # the first two name the versions
    added, removed = (sum(line.startswith(sign) for line in body) for sign in "+-")
    shown = join(*(tag("span", line, "\n", class_=_kind(line)) for line in body[:SHOWN_LINES]))
    left = len(body) - SHOWN_LINES
    return join(
        tag("h1", module_link(root, id), class_="id"),
        tag("p", f"Version {older} to {newer}: {added:,} lines added, {removed:,} removed."),
        tag("pre", shown, tabindex="0", role="region", aria_label="Difference", class_="diff")
        if body else tag("p", "The contents are equal.", class_="empty"),
        tag("p", f"{left:,} more lines: distier diff prints them.", class_="small") if left > 0 else None,
    )  # fmt: skip


def _kind(line: str) -> str | None:
    return {"+": "added", "-": "removed", "@": "at"}.get(line[:1])
