"""The views that are lists: modules, the fleet, the archive."""

from __future__ import annotations

from typing import Any

from distier.views import span

from .html import Html, ident, join, tag, url
from .show import ago, bar, module_link, moment, number, section, size, table, tier

ORDERS = {
    "id": "by id", "lru": "hot, least recently used first", "mru": "hot, last used first", "uses": "most used first",
    "biggest": "biggest first", "due": "warm, due to leave first", "dirty": "not archived, oldest first",
    "pins": "pinned, first to end",
}  # fmt: skip
COLUMNS = {"lru": ">last used", "mru": ">last used", "due": ">due in", "dirty": ">dirty since", "pins": ">pinned for"}


def modules(root: str, page: dict[str, Any], prefix: str, chosen: str, order: str, after: str, *, late: bool) -> Html:
    asked = {"prefix": prefix, "tier": chosen, "order": None if order == "id" else order}
    form = tag(
        "form",
        tag("label", "Prefix", tag("input", name="prefix", value=prefix, type="search", autocomplete="off", spellcheck="false",
                                   maxlength=256)),
        tag("label", "Tier", _select("tier", chosen, {"": "all", "hot": "hot", "warm": "warm", "cold": "cold"})),
        tag("label", "Order", _select("order", order, ORDERS)),
        tag("button", "Show", type="submit"),
        action=url(root, "/modules"), method="get", class_="filter", hx_get=url(root, "/modules"), hx_select="#list",
        hx_target="#list", hx_swap="outerHTML", hx_push_url="true", hx_trigger="submit, change",
    )  # fmt: skip
    as_tree = tag("p", tag("a", "As a tree", href=url(root, "/tree")))
    return join(
        tag("h1", "Modules"), form, as_tree, tag("div", *_listing(root, page, asked, order, after, late), id="list")
    )


def _select(name: str, chosen: str, options: dict[str, str]) -> Html:
    made = [tag("option", text, value=value, selected=value == chosen) for value, text in options.items()]
    return tag("select", *made, name=name)


def _listing(
    root: str, page: dict[str, Any], asked: dict[str, Any], order: str, after: str, late: bool
) -> list[Html | None]:
    column = COLUMNS.get(order)
    head = ["id", "tier", ">tokens", ">bytes", ">uses", "archived", ">written"] + ([column] if column else [])
    now = page["now_ms"]
    rows = []
    for m in page["modules"]:
        row = [module_link(root, m["id"]), tier(m["tier"]), number(m["tokens"]), size(m["size_bytes"]), f"{m['uses']:.0f}",
               "yes" if m["clean"] else tag("strong", "no"), ago(now, m["updated_ms"])]  # fmt: skip
        if column:
            row.append(span(m["score"] - now) if order in ("due", "pins") else ago(now, m["score"]))
        rows.append(row)
    notes = []
    if late:
        notes.append(
            "Redis was restarted or lost, and its records are still compared with the archive: modules may be missing."
        )
    if order == "biggest":
        notes.append(f"The {number(page['looked'])} modules that were used last in hot and warm were looked at, "
                     f"of {number(page['of'])}.")  # fmt: skip
    elif page["after"] and page["looked"] > len(rows):
        notes.append(f"{number(page['looked'])} ids were looked at for this page; the next one continues.")
    if page["of"] is not None and order != "biggest":
        notes.append(f"There are {number(page['of'])} in this order.")
    links = []
    if after:
        links.append(tag("a", "First page", href=url(root, "/modules", **asked), rel="first"))
    if page["after"]:
        links.append(tag("a", "Next page", href=url(root, "/modules", **asked, after=page["after"]), rel="next"))
    return [
        _above(root, asked["prefix"], asked),
        *(tag("p", note, class_="small") for note in notes),
        table(
            "Modules",
            head,
            rows,
            "There is no such module on this page." if page["after"] else "There is no such module.",
        ),
        tag("nav", *(join(link, " ") for link in links), aria_label="Pages", class_="pages") if links else None,
    ]


def _above(root: str, prefix: str, asked: dict[str, Any]) -> Html | None:
    """Return links to the prefixes that this one continues."""
    if "/" not in prefix:
        return None
    made = [tag("a", "all", href=url(root, "/modules", **asked | {"prefix": None}))]
    parts = prefix.split("/")
    for i, part in enumerate(parts[:-1]):
        path = "/".join(parts[: i + 1]) + "/"
        made.append(
            join(" / ", tag("a", ident(part) or "(empty)", href=url(root, "/modules", **asked | {"prefix": path})))
        )
    return tag("nav", *made, aria_label="Prefixes", class_="above")


def fleet(totals: dict[str, Any], fleet: dict[str, Any]) -> Html:
    now = fleet["now_ms"]
    epochs = {e["shard"]: e for e in totals["epochs"]}
    shards = []
    for s in fleet["shards"]:
        e = epochs[s["shard"]]
        shards.append((
            str(s["shard"]), ident(s["worker"]) if s["worker"] else tag("strong", "none"),
            span(s["lease_ms"]) if s["lease_ms"] is not None else "-", number(e["epoch"]), moment(e["since_ms"]),
            "first" if e["first"] else "restarted, failed over or lost",
            "yes" if e["verified"] else tag("strong", "no"),
            f"{span(s['dirty_ms'])}: {ident(s['oldest_dirty'])}" if s["oldest_dirty"] else "-",
        ))  # fmt: skip
    nodes = [
        (ident(name), number(n["modules"]), number(n["max_modules"]), size(n["size_bytes"]), size(n["max_bytes"]),
         bar(n["size_bytes"] / n["max_bytes"] if n["max_bytes"] else 0, f"disk of {ident(name)}"))
        for name, n in totals["nodes"].items()
    ]  # fmt: skip
    quotas = [(str(q["shard"]), *_quota(q)) for q in totals["shares"]]
    workers = tag("ul", *(tag("li", ident(name)) for name in fleet["workers"]))
    return join(
        tag("h1", "Fleet"),
        section("Workers", workers if fleet["workers"] else tag("p", "No worker is alive: nothing is archived in the "
                "background, and no room is kept free. Start one with distier worker.", class_="bad note")),
        section("Shards", table("Shards", ("shard", "worker", ">lease ends in", ">epoch", "since", "what began it",
                                           "compared", "oldest not archived"), shards, "")),
        section("Nodes", table("Nodes", ("node", ">modules", ">of", ">bytes", ">of", "full"), nodes,
                               "No node keeps copies on a disk of its own.")),
        section("Quotas of the shards", table("Quotas", ("shard", ">hot tokens", ">hot bytes", ">warm modules", ">warm bytes"),
                quotas, "The namespace has one shard, which has the whole budget.")),
        tag("p", "Times are those of the Redis server, in UTC: ", moment(now), class_="small"),
    )  # fmt: skip


def _quota(q: dict[str, Any]) -> tuple[str, ...]:
    def part(name: str, show: Any) -> str:
        return f"{show(q[name])} of {show(q[f'max_{name}'])}"

    return part("hot_tokens", number), part("hot_bytes", size), part("warm_modules", number), part("warm_bytes", size)


def archive(root: str, namespace: str, folder: dict[str, Any]) -> Html:
    path = folder["path"]
    crumbs = [tag("a", namespace, href=url(root, "/archive"))]
    parts = path.split("/")[:-1]
    for i, part in enumerate(parts):
        crumbs.append(
            join(" / ", tag("a", ident(part), href=url(root, "/archive", path="/".join(parts[: i + 1]) + "/")))
        )
    rows: list[tuple[Any, ...]] = [
        (tag("a", ident(name), href=url(root, "/archive", path=path + name), class_="id"), "folder", "", "")
        for name in folder["folders"]
    ]
    for o in folder["objects"]:
        name = o["key"].rpartition("/")[2]
        link = tag("a", ident(name), href=url(root, "/archive/object", key=o["key"]), class_="id", download=True)
        rows.append((link, "object", size(o["size_bytes"]), moment(o["modified_ms"])))
    next_page = None
    if folder["after"]:
        link = tag("a", "Next page", href=url(root, "/archive", path=path, after=folder["after"]), rel="next")
        next_page = tag("nav", link, aria_label="Pages", class_="pages")
    return join(
        tag("h1", "Archive"),
        tag("p", "Each object is a version, as plain xz: a download opens with xz -dc.", class_="small"),
        tag("nav", *crumbs, aria_label="Folders", class_="above"),
        table("Folder", ("name", "kind", ">bytes", "written"), rows, "There is nothing here."),
        next_page,
    )
