"""The page that shows the archive in a browser (`distier/browse`): written after a sweep, if the archive has changed since."""

from __future__ import annotations

from distier.browse import CONTENT_TYPE, README, Page, make_page, page_key, readme
from distier.domain import manifest as names
from distier.effects import ArchiveDelete, ArchiveList, ArchivePut, Count, Now, Offload, Plan
from distier.errors import ConfigError
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.manifest import list_manifest, open_manifest

WHAT = "making the page of the archive"
LATE_MS = 600_000
"""A file of the manifest may be written while the page is made. So what is a little older than the page counts as new."""


def write_page_if_changed(space: Namespace) -> Plan[Page | None]:
    """Write the page if a file of the manifest is newer than it. Returns None if not. Raises `ArchiveUnavailable`.

    It costs two requests if nothing has changed.
    """
    cold = space.config.storage_tiers.cold
    if not cold.index_page or not cold.manifest:
        return None
    listed = yield from list_manifest(space)
    changed_ms = [entry.modified_ms for entry in listed if names.parse_file(space.namespace, entry)]
    key = page_key(space.namespace)
    present = yield from ArchiveList(key, limit=1)
    if not changed_ms or (present and present[0].key == key and present[0].modified_ms > max(changed_ms) + LATE_MS):
        return None
    return (yield from write_page(space))


def page_of(space: Namespace) -> Plan[Page]:
    """Return the page, made from the manifest. Raises `ArchiveUnavailable`."""
    now_ms = yield Now()
    manifest = yield from open_manifest(space)
    size_bytes = 10 * sum(map(len, manifest.files.values()))  # the rows are about ten times as large as the files
    return (yield from Offload(size_bytes, lambda: make_page(space.namespace, manifest.groups(), now_ms), WHAT))


def write_page(space: Namespace) -> Plan[Page]:
    """Write the page into the archive, and README.txt where there is none. Raises `ArchiveUnavailable`."""
    page, key = (yield from page_of(space)), page_key(space.namespace)
    yield from ArchiveDelete([key])  # the archive keeps the first content of a key
    yield from ArchivePut(key, page.data, CONTENT_TYPE, {})
    try:
        present = yield from ArchiveList(README, limit=1)
        if not present or present[0].key != README:
            yield from ArchivePut(README, readme(), "text/plain; charset=utf-8", {})
    except ConfigError:  # this user may write only below the namespace
        yield from Count("browse.no_readme")
    return page
