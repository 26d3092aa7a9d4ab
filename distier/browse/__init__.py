"""The page that shows an archive in a browser, and README.txt at the root of the archive.

The page is one file that needs nothing from elsewhere: rows of the manifest, compressed, a script that lists and finds them,
and a decoder of `.xz` (see `xz-decompress.LICENSE`), which browsers do not have. It reads objects by addresses relative to its
own, so it works from a bucket's website, from any web server, and, where the reader chooses the object, from a disk.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from distier.domain.manifest import Row, last_copies

CONTENT_TYPE = "text/html; charset=utf-8"
README = "README.txt"
VERSIONS_MAX = 200_000
"""Versions on a page: about six megabytes, which Chromium opens in one second."""


class Page(NamedTuple):
    """A page, and how many modules and versions it lists. Those after `VERSIONS_MAX` versions are left out."""

    data: bytes
    modules: int
    versions: int
    complete: bool


def page_key(namespace: str) -> str:
    return f"{namespace}/index.html"


def make_page(namespace: str, groups: Iterable[Sequence[Row]], written_ms: int) -> Page:
    """Return the page for modules in the order of the manifest.

    Args:
        namespace: The namespace.
        groups: The rows of each module, the newest version last.
        written_ms: When the manifest was read, in ms since the Unix epoch.
    """
    lines, versions, complete = list[str](), 0, True
    stored_bytes = 0
    for rows in map(last_copies, groups):
        if versions + len(rows) > VERSIONS_MAX:
            complete = False
            break
        versions += len(rows)
        stored_bytes += sum(row.archived_bytes for row in rows)
        directory = rows[0].key.rpartition("/")[0]
        newest_first = [_version(row) for row in reversed(rows)]
        lines.append(json.dumps([rows[0].id, directory, newest_first], ensure_ascii=False, separators=(",", ":")))
    counts = f"{len(lines):,} modules, {versions:,} versions, {stored_bytes:,} bytes."
    if not complete:
        counts += " This is only the beginning, in the order of ids: distier archive ls shows all."
    packed = gzip.compress("\n".join(lines).encode(), mtime=0)
    text = Template(_read("page.html")).substitute(
        title=html.escape(f"Archive of {namespace}"),
        about=html.escape(counts),
        written=written_ms,
        style=_read("page.css"),
        decoder=_read("xz-decompress.min.js"),
        script=_read("page.js"),
        rows=base64.b64encode(packed).decode(),
    )
    return Page(text.encode(), len(lines), versions, complete)


def readme() -> bytes:
    return _read(README).encode()


def _version(row: Row) -> list[Any]:
    """Return a version as `page.js` has it, without what is missing at its end."""
    known = row.known
    out = [row.key.rpartition("/")[2], row.updated_ms, known.get("bytes"), row.archived_bytes or None, known.get("tokens"),
           known.get("type"), known.get("keywords"), known.get("pack")]  # fmt: skip
    while out[-1] is None:
        out.pop()
    return out


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
