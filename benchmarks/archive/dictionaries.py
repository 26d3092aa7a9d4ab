"""Measure dictionaries: how small warm copies of real modules become after the worker learned from others, and the costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.archive.packs import opened
from distier import Item, Store
from distier.domain.codec import (
    DICTIONARY_CONTENT_BYTES_MAX,
    compress_frame,
    compress_with_dictionary,
    decompress_frame,
)
from distier.domain.dictionary import name_of
from distier.plans.common.content import FAST_LEVEL_MAX
from distier.plans.fleet.dictionaries import learn_if_due
from tests.servers import TestServer

TIMED = 200
WRITE_ID = "0" * 28


def measure(server: TestServer, home: Path, modules: Sequence[tuple[str, bytes]]) -> dict[str, float]:
    """Half of the modules are there when the worker learns. The others come later, and are measured."""
    shuffled = [(id, content) for id, content in modules if 0 < len(content) <= DICTIONARY_CONTENT_BYTES_MAX]
    Random(16).shuffle(shuffled)
    half = len(shuffled) // 2
    found: dict[str, float] = {"modules": len(shuffled) - half, "content": sum(len(c) for _, c in shuffled[half:])}
    for word, on in (("plain", False), ("dictionary", True)):
        with opened(
            server, home / word, storage_tiers__warm__dictionary=on, storage_tiers__warm__max_modules=100_000
        ) as store:
            put(store, shuffled[:half])
            began_s = time.process_time()
            learned = store.run(learn_if_due(store.space), deadline_s=3600)
            if on:
                assert learned == 1, "the dictionary gains too little"
                found["learn"] = time.process_time() - began_s
            put(store, shuffled[half:])
            ids = [id for id, _ in shuffled[half:]]
            store.demote_many(ids, to="warm")
            found[word] = found["content"] / stored(store, ids)
            store.demote_many(ids, to="cold")
            found[f"{word} cold us"] = timed(ids[:TIMED], store.get)
            found[f"{word} warm us"] = timed(ids[:TIMED], store.get)
            for id in ids[TIMED:]:
                store.get(id)
            found[f"{word} left"] = found["content"] / stored(store, ids)
            if on:
                data = next(iter(store.space.process.dictionaries._values.values()))
                found |= codecs([c for _, c in shuffled[half:][:TIMED]], data)
    return found


def put(store: Store, modules: Sequence[tuple[str, bytes]]) -> None:
    for start in range(0, len(modules), 200):
        store.put_many([Item(id, content) for id, content in modules[start : start + 200]])
    store.archive_now(deadline_s=3600)


def stored(store: Store, ids: Sequence[str]) -> int:
    placed = store.where_many(ids)
    assert all(p is not None and p.tier == "warm" for p in placed.values())
    return sum(p.stored_bytes for p in placed.values() if p)


def timed(inputs: Sequence[Any], work: Callable[[Any], object]) -> float:
    """Return the median time in microseconds."""
    times = []
    for each in inputs:
        began = time.perf_counter()
        work(each)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def codecs(contents: Sequence[bytes], data: bytes) -> dict[str, float]:
    name = name_of(data)
    plain = [(compress_frame(c, write_id=WRITE_ID), len(c)) for c in contents]
    mine = [(compress_with_dictionary(c, name, data), len(c)) for c in contents]
    return {
        "make": timed(contents, lambda c: compress_with_dictionary(c, name, data))
        / timed(contents, lambda c: compress_frame(c, write_id=WRITE_ID)),
        "make for a reader us": timed(
            contents, lambda c: compress_with_dictionary(c, name, data, level=FAST_LEVEL_MAX)
        ),
        "make plain for a reader us": timed(contents, lambda c: compress_frame(c, level=0, write_id=WRITE_ID)),
        "open": timed(mine, lambda f: decompress_frame(*f[0], size_bytes=f[1], dictionary=data))
        / timed(plain, lambda f: decompress_frame(*f[0], size_bytes=f[1])),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [
        "| corpus | modules, content | plain: demoted, read | dictionary: demoted, read | make | open | cold read | warm read "
        "| learn |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in found.items():
        lines.append(
            f"| {name} | {r['modules']:,}, {r['content'] / 1e6:.1f} MB | {r['plain']:.2f}x, {r['plain left']:.2f}x | "
            f"**{r['dictionary']:.2f}x**, {r['dictionary left']:.2f}x | {r['make']:.2f} | {r['open']:.2f} | "
            f"{r['dictionary cold us'] / r['plain cold us']:.2f} | {r['dictionary warm us'] / r['plain warm us']:.2f} | "
            f"{r['learn']:.1f} s |"
        )
    return "\n".join(lines)
