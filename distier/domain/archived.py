"""How a version is written in the archive: its object name and its metadata.

    <ns>/modules/<path of id>/@<epoch>-<ver>-<write8>.<ext>.xz    the content
    <ns>/modules/<path of id>/@<epoch>-<ver>-<write8>.deleted     a tombstone (empty)
    <ns>/modules/<path of id>/@<epoch>-<ver>-<write8>.meta.json   a sidecar: what the record knows, for a store that
                                                                  keeps no metadata, or more than S3's 2 kB of it
    <ns>/packs/...                                                many versions in one object (`packs.py`)

`<write8>` is the beginning of the write id. Names sort as versions do; the greatest name is the current version. The content
object alone is enough to restore a module. Metadata is a convenience: some servers drop it, so nothing depends on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from distier.errors import Invalid

from .content_types import KNOWN_EXTENSIONS, extension_for
from .ids import MAX_ID_BYTES, MAX_SEGMENT_CHARS, decode_id, encode_id, from_path, to_path
from .module import Record
from .order import Order, parse_stem
from .packs import parse_reference

CONTENT_TYPE = "application/x-xz"
MAX_USER_METADATA_BYTES = 1800
"""S3 allows 2 kB of names and values together, and some servers count their own headers too."""

LEAF_BYTES_MAX = 45
"""The longest object name without its directory: a stem of 33 bytes, `.`, an extension of 8 bytes, and `.xz`."""

_PATH_BYTES_MAX = 3 * MAX_ID_BYTES + 2 * (1 + 3 * MAX_ID_BYTES // (MAX_SEGMENT_CHARS - 2))
_NAMESPACE_BYTES_MAX = 64
_KEY_BYTES_MAX = _NAMESPACE_BYTES_MAX + len("/modules/") + _PATH_BYTES_MAX + len("/") + LEAF_BYTES_MAX

# This matches unknown extensions too, which a later distier may add. If it overlooked an object, an older version of the
# module would seem to be the current one.
_CONTENT = re.compile(r"([a-z0-9]{1,8})\.xz", re.ASCII)

ObjectKind = Literal["content", "deleted", "meta"]


class VersionObject(NamedTuple):
    """One object of one version, read from its key.

    `pack` is the name of the pack that has the version; empty for an object of its own. The key of a member is the one that
    its own object would have.
    """

    key: str
    directory: str
    order: Order
    kind: ObjectKind
    extension: str
    pack: str = ""

    def is_in(self, prefix: str) -> bool:
        """Whether this is a version of the module with this `version_prefix`, and not of one in a directory below."""
        return f"{self.directory}/@" == prefix

    @property
    def rank(self) -> tuple[Order, bool]:
        """The version with the greatest rank is the current one. At equal positions, a known extension wins."""
        return self.order, self.kind == "deleted" or self.extension in KNOWN_EXTENSIONS


class Limits(NamedTuple):
    """What names an archive can store.

    `key_bytes` is the longest key and `name_bytes` the longest component between two `/`. Names must not contain a character
    of `refused`. With `drops_dots` the archive drops a dot at the end of a component.
    """

    key_bytes: int = 1024
    name_bytes: int = MAX_SEGMENT_CHARS + 1
    refused: str = ""
    drops_dots: bool = False

    @property
    def take_all(self) -> bool:
        """Whether every id of every namespace is within these limits."""
        fits = self.key_bytes >= _KEY_BYTES_MAX and self.name_bytes > MAX_SEGMENT_CHARS
        return fits and not self.refused and not self.drops_dots


def check_fits(namespace: str, id: str, limits: Limits) -> None:
    """Raises `Invalid` for an id whose versions could never be archived.

    The check comes before the put is acknowledged. Later it would be too late: the version would stay in Redis for ever, and be
    lost with Redis.
    """
    path = to_path(encode_id(id))
    parts = path.split("/")
    left_bytes = id_bytes_left(namespace, limits)
    why = ""
    if len(path) > _path_bytes_left(namespace, limits):
        why = f"its path in the archive has {len(path)} bytes, and {left_bytes} bytes are left for an id"
    elif (longest := max(map(len, parts))) > limits.name_bytes:
        why = f"a part of it between two `/` has {longest} bytes in the archive, and {limits.name_bytes} bytes are allowed"
    elif found := sorted(set(path) & set(limits.refused)):
        why = f"the archive's file system does not allow names with {' '.join(found)}"
    elif limits.drops_dots and any(part.endswith(".") for part in parts):
        why = "the archive's file system drops a dot at the end of a name"
    if why:
        encoded = (
            "" if path == id else " (characters other than letters, digits and common signs take three bytes or more)"
        )
        raise Invalid(
            f"module {id[:60]!r} could never be archived: {why}{encoded}; nothing was changed. Use a shorter id"
        )


def id_bytes_left(namespace: str, limits: Limits) -> int:
    """Return the length of the longest id that can be archived: one part, letters only, in bytes."""
    room = min(_path_bytes_left(namespace, limits), MAX_ID_BYTES)
    if limits.name_bytes <= MAX_SEGMENT_CHARS:
        room = min(room, limits.name_bytes)
    if limits.name_bytes < LEAF_BYTES_MAX:
        return 0
    return next((n for n in range(room, 0, -1) if len(to_path("a" * n)) <= _path_bytes_left(namespace, limits)), 0)


def _path_bytes_left(namespace: str, limits: Limits) -> int:
    if limits.name_bytes < max(LEAF_BYTES_MAX, len(namespace)):
        return 0
    return limits.key_bytes - len(modules_prefix(namespace)) - len("/") - LEAF_BYTES_MAX


def modules_prefix(namespace: str) -> str:
    return f"{namespace}/modules/"


def module_directory(namespace: str, id: str) -> str:
    return f"{modules_prefix(namespace)}{to_path(encode_id(id))}/"


def version_prefix(namespace: str, id: str) -> str:
    """Return the prefix of all versions of this module, and of no module whose id continues with `/`."""
    return module_directory(namespace, id) + "@"


def content_key(namespace: str, record: Record) -> str:
    if record.deleted:
        return f"{module_directory(namespace, record.id)}{record.order.stem}.deleted"
    return f"{module_directory(namespace, record.id)}{record.order.stem}.{extension_for(record.content_type)}.xz"


def object_key(namespace: str, record: Record) -> str:
    """Return the key of a clean version: its own name, unless it is in a pack or has another name (`archived_key`)."""
    if record.archived_key is None:
        return content_key(namespace, record)
    pack = parse_reference(record.id, record.archived_key)
    return pack.key(namespace) if pack else record.archived_key


def sidecar_key(key: str) -> str:
    directory, _, name = key.rpartition("/")
    return f"{directory}/{name.partition('.')[0]}.meta.json"


def parse_key(key: str) -> VersionObject | None:
    """Parse a key of the archive; None for a name that distier did not give.

    Editors, sync tools and operating systems leave files in the archive whose names begin or end as ours do.
    """
    directory, _, name = key.rpartition("/")
    stem, _, extension = name.partition(".")
    order = parse_stem(stem)
    if order is None or not directory:
        return None
    if extension == "deleted":
        return VersionObject(key, directory, order, "deleted", extension)
    if extension == "meta.json":
        return VersionObject(key, directory, order, "meta", extension)
    if match := _CONTENT.fullmatch(extension):
        return VersionObject(key, directory, order, "content", match[1])
    return None


def id_of(namespace: str, directory: str) -> str:
    """Return the module id of a directory of the archive. Raises `Invalid` if distier did not give that name."""
    return decode_id(from_path(directory.removeprefix(modules_prefix(namespace)).rstrip("/")))


def dominated(objects: Iterable[VersionObject]) -> list[str]:
    """Return the keys among the objects of ONE module that a greater version dominates.

    A version exists when its content or tombstone exists; a sidecar alone dominates nothing. A sidecar without its version
    stays, because a write may still upload the content.
    """
    objects = list(objects)
    present = [tuple(o.order) for o in objects if o.kind != "meta"]
    if not present:
        return []
    greatest = max(present)
    return [o.key for o in objects if tuple(o.order) < greatest]


def describe_plain(record: Record) -> dict[str, object]:
    """Return what the record knows, by the names that sidecars and the manifest have."""
    known: dict[str, object] = {
        "id": record.id,
        "version": str(record.order),
        "tok": record.order.write_id,
        "sha256": record.sha256,
        "bytes": record.size_bytes,
        "tokens": record.tokens,
        "counter": record.counter,
        "type": record.content_type,
        "created": record.created_ms,
        "updated": record.updated_ms,
        "ttl": record.ttl_ms,
        "keywords": record.keywords.decode(),
        "meta": record.meta.decode(),
        "transform": record.transform,
        "outline": record.outline,
    }
    return {k: v for k, v in known.items() if v not in (None, "")}


def describe(record: Record) -> dict[str, str]:
    """Return what the record knows, as ASCII names and percent-encoded values."""
    return {f"distier-{k}": quote(str(v), safe="/ ;=,:+-._") for k, v in describe_plain(record).items()}


def download_name(key: str, described: Mapping[str, str]) -> str:
    """Return the name under which a browser should save a content object: that of the module. Empty for other objects."""
    found, id = parse_key(key), unquote(described.get("distier-id", ""))
    if found is None or found.kind != "content" or not id:
        return ""
    name = id.rpartition("/")[2]
    return f"{name}.xz" if "." in name else f"{name}.{found.extension}.xz"


def user_metadata(described: Mapping[str, str]) -> dict[str, str]:
    """Return as many of the entries as S3 takes, the most useful first."""
    out: dict[str, str] = {}
    room = MAX_USER_METADATA_BYTES
    for name, value in described.items():
        room -= len(name) + len(value)
        if room < 0:
            break
        out[name] = value
    return out


def pack_sidecar(described: Mapping[str, str]) -> bytes:
    """Return the sidecar's JSON: readable values, one per line."""
    plain = {name.removeprefix("distier-"): unquote(value) for name, value in described.items()}
    return json.dumps(plain, ensure_ascii=False, indent=1).encode() + b"\n"
