"""Reading a part of a module. Of a large hot module, only the part is sent; others are read whole, from their nearest copy."""

from __future__ import annotations

from distier.domain.module import Module, Part
from distier.domain.order import is_of
from distier.effects import Plan, Used
from distier.errors import Invalid, OutOfStep
from distier.lua import read_range
from distier.plans.common.namespace import Namespace
from distier.plans.common.touches import send_touch

CUT_BYTES = 64 * 1024
"""A smaller content is read whole: sending it takes no longer than the script, and a near cache can keep it."""


def check_range(start: int, length: int | None) -> None:
    """Raise `Invalid` for a range that there cannot be."""
    for name, value in (("start", start), ("length", 0 if length is None else length)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise Invalid(f"{name} must be a number of bytes, at least 0; not {value!r:.80}")


def part_of(module: Module, start: int, length: int | None) -> Part:
    """Return a part of a module that was read whole."""
    end = None if length is None else start + length
    return Part(
        module.id,
        module.content[start:end],
        start,
        len(module.content),
        module.version,
        module.content_type,
        module.tier,
    )


def get_part(space: Namespace, id: str, start: int, length: int | None) -> Plan[Part | None]:
    """Return a part of a large hot module; None if the module has to be read whole."""
    shard = space.shard(id)
    found = yield from read_range(shard, id, start, length, CUT_BYTES)
    if found is None:
        return None
    content, size_bytes, order, content_type = found
    if not is_of(id, order.write_id.encode()):
        raise OutOfStep(f"a request for the record of module {id!r} got the record of another module")
    touch = yield Used(shard, id, hit="hits.hot")
    if touch is not None:
        yield from send_touch(space, [touch])
    return Part(id, content, start, size_bytes, order, content_type, "hot")
