"""How a version is written in the archive: its object name, and what is said about it beside the bytes.

    <ns>/modules/<path of id>/@<epoch>-<ver>-<tok8>.<ext>.xz      the content
    <ns>/modules/<path of id>/@<epoch>-<ver>-<tok8>.deleted       a tombstone (empty)
    <ns>/modules/<path of id>/@<epoch>-<ver>-<tok8>.meta.json     a sidecar: what the record knows, where the store
                                                                  keeps no metadata or it is too long for S3's 2 kB

Names sort as versions do; the greatest is the current one. The bytes alone bring a module back; metadata is a
convenience that real servers drop, so nothing rests on it.
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

CONTENT_TYPE = "application/x-xz"
MAX_USER_METADATA_BYTES = 1800
"""S3 allows 2 kB of names and values together; some servers count their own headers in."""

LEAF_BYTES_MAX = 45
"""The longest name of an object without its directory: a stem of 33, and `.` an extension of 8 and `.xz`."""

_PATH_BYTES_MAX = 3 * MAX_ID_BYTES + 2 * (1 + 3 * MAX_ID_BYTES // (MAX_SEGMENT_CHARS - 2))
_NAMESPACE_BYTES_MAX = 64
_KEY_BYTES_MAX = _NAMESPACE_BYTES_MAX + len("/modules/") + _PATH_BYTES_MAX + len("/") + LEAF_BYTES_MAX

# Also extensions that a later version may add: a version that is not seen would be a module in an older one.
_CONTENT = re.compile(r"([a-z0-9]{1,8})\.xz", re.ASCII)

ObjectKind = Literal["content", "deleted", "meta"]


class VersionObject(NamedTuple):
    """One object of one version, read from its key."""

    key: str
    directory: str
    order: Order
    kind: ObjectKind
    extension: str

    def is_in(self, prefix: str) -> bool:
        """Whether it is a version of the module with this `version_prefix`, and does not lie in a directory below."""
        return f"{self.directory}/@" == prefix

    @property
    def rank(self) -> tuple[Order, bool]:
        """The greatest is the current one. Of two with one place in the order, the one with an extension that distier gives."""
        return self.order, self.kind == "deleted" or self.extension in KNOWN_EXTENSIONS


class Limits(NamedTuple):
    """What an archive can take: keys of `key_bytes`, components between two `/` of `name_bytes`; none of the characters in
    `refused`, and no component that ends in a dot, where it `drops_dots`."""

    key_bytes: int = 1024
    name_bytes: int = MAX_SEGMENT_CHARS + 1
    refused: str = ""
    drops_dots: bool = False

    @property
    def take_all(self) -> bool:
        """Whether they hold for every id in every namespace."""
        fits = self.key_bytes >= _KEY_BYTES_MAX and self.name_bytes > MAX_SEGMENT_CHARS
        return fits and not self.refused and not self.drops_dots


def check_fits(namespace: str, id: str, limits: Limits) -> None:
    """Raises `Invalid` for an id whose versions could never be archived. Where that is found out after the put is acknowledged,
    the version stays in Redis for ever, and is lost with it."""
    path = to_path(encode_id(id))
    parts = path.split("/")
    left_bytes = id_bytes_left(namespace, limits)
    why = ""
    if len(path) > _path_bytes_left(namespace, limits):
        why = f"its path there has {len(path)} bytes, and {left_bytes} bytes are left for an id"
    elif (longest := max(map(len, parts))) > limits.name_bytes:
        why = f"a part of it has {longest} bytes there, and {limits.name_bytes} are left for each part of an id between two `/`"
    elif found := sorted(set(path) & set(limits.refused)):
        why = f"the archive's file system takes no name with {' '.join(found)}"
    elif limits.drops_dots and any(part.endswith(".") for part in parts):
        why = "the archive's file system drops a dot at the end of a name"
    if why:
        encoded = "" if path == id else " (all but letters, digits and common signs take three bytes or more)"
        raise Invalid(
            f"module {id[:60]!r} could never be archived: {why}{encoded}; nothing was changed. Use a shorter id"
        )


def id_bytes_left(namespace: str, limits: Limits) -> int:
    """The longest id of one part, in letters, that can be archived."""
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
    """All versions of this module, and nothing of modules whose ids go on with `/`."""
    return module_directory(namespace, id) + "@"


def content_key(namespace: str, record: Record) -> str:
    if record.deleted:
        return f"{module_directory(namespace, record.id)}{record.order.stem}.deleted"
    return f"{module_directory(namespace, record.id)}{record.order.stem}.{extension_for(record.content_type)}.xz"


def object_key(namespace: str, record: Record) -> str:
    """Where a clean version is: under its own name, unless it was found under another one (`archived_key`)."""
    return record.archived_key or content_key(namespace, record)


def sidecar_key(key: str) -> str:
    directory, _, name = key.rpartition("/")
    return f"{directory}/{name.partition('.')[0]}.meta.json"


def parse_key(key: str) -> VersionObject | None:
    """What a key of the archive is; None for anything that distier did not name: editors, sync tools and operating systems
    leave files beside ours whose names begin or end as ours do."""
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
    """The module id of a directory of the archive. Raises `Invalid` if distier never named it so."""
    return decode_id(from_path(directory.removeprefix(modules_prefix(namespace)).rstrip("/")))


def dominated(objects: Iterable[VersionObject]) -> list[str]:
    """The keys among the objects of ONE module that a greater version dominates.

    A version is there once its content or tombstone is; a sidecar alone dominates nothing. A sidecar of a version
    that is not there is kept: its content may be on the way.
    """
    objects = list(objects)
    present = [tuple(o.order) for o in objects if o.kind != "meta"]
    if not present:
        return []
    greatest = max(present)
    return [o.key for o in objects if tuple(o.order) < greatest]


def describe(record: Record) -> dict[str, str]:
    """What the record knows, as ASCII names and percent-encoded values."""
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
        "keywords": record.keywords.decode(),
        "meta": record.meta.decode(),
        "transform": record.transform,
        "outline": record.outline,
    }
    return {f"distier-{k}": quote(str(v), safe="/ ;=,:+-._") for k, v in known.items() if v not in (None, "")}


def user_metadata(described: Mapping[str, str]) -> dict[str, str]:
    """As much of it as S3 takes, the most useful first."""
    out: dict[str, str] = {}
    room = MAX_USER_METADATA_BYTES
    for name, value in described.items():
        room -= len(name) + len(value)
        if room < 0:
            break
        out[name] = value
    return out


def pack_sidecar(described: Mapping[str, str]) -> bytes:
    """The sidecar's JSON: readable values, one a line."""
    plain = {name.removeprefix("distier-"): unquote(value) for name, value in described.items()}
    return json.dumps(plain, ensure_ascii=False, indent=1).encode() + b"\n"
