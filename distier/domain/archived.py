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
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from .content_types import extension_for
from .ids import decode_id, encode_id, from_path, to_path
from .module import Record
from .order import Order, parse_stem

CONTENT_TYPE = "application/x-xz"
MAX_USER_METADATA_BYTES = 1800
"""S3 allows 2 kB of names and values together; some servers count their own headers in."""

ObjectKind = Literal["content", "deleted", "meta"]


class VersionObject(NamedTuple):
    """One object of one version, read from its key."""

    key: str
    directory: str
    order: Order
    kind: ObjectKind
    extension: str


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
    """What a key of the archive is; None for anything that distier did not name."""
    directory, _, name = key.rpartition("/")
    stem, _, extension = name.partition(".")
    order = parse_stem(stem)
    if order is None or not directory:
        return None
    if extension == "deleted":
        return VersionObject(key, directory, order, "deleted", extension)
    if extension == "meta.json":
        return VersionObject(key, directory, order, "meta", extension)
    if extension.endswith(".xz"):
        return VersionObject(key, directory, order, "content", extension[: -len(".xz")])
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
        "tok": record.order.tok,
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
