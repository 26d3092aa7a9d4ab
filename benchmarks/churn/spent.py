"""`spent`: what the CPU of an access goes to, where the working set does not fit.

The clients are sampled by the CPU time of their process (SIGPROF): a sample belongs to the innermost function that `PARTS`
names. The server says itself how long its scripts took.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from benchmarks.churn.caches import LZ4, OURS, open_cache
from benchmarks.churn.client import measure
from benchmarks.churn.replay import Work, fill_records, fit, prepared, served, server_cpu_s, settings_of
from benchmarks.churn.section import WARMUP_PART, Options
from benchmarks.churn.traces import ZIPF, NoTrace, trace_of
from benchmarks.table import Table

NAMES = ("git_caffeine", ZIPF)
PART = 0.05
SAMPLE_S = 0.0005
XZ, FRAMES, OBJECT, SOCKETS = "xz", "lz4", "the object's file, and for distier its thread", "sockets of Redis"
REST = "Python: commands, replies, records, modules, near cache"
SCRIPTS, SERVER = "server: scripts", "server: sockets and plain commands"
PARTS: Mapping[str, Sequence[tuple[str, str]]] = {
    XZ: (("domain/codec.py", "decompress_xz"), ("/lzma.py", "")),
    FRAMES: (("domain/codec.py", "frame"), ("churn/caches.py", "pack")),
    OBJECT: (("stores/threads.py", ""), ("stores/directory.py", ""), ("/pathlib.py", "")),
    SOCKETS: (("stores/redis/connection.py", ""), ("_parsers/", ""), ("redis/connection.py", "")),
}
"""Parts of files' and functions' names."""


def spent(options: Options) -> Table:
    table = Table(
        "Where the CPU of an access goes: archive at 0 ms, one client",
        ("trace", "what", "distier, us", "by hand, lz4, us", "ratio"),
        notes=f"{PART:.0%} of the footprint in Redis, near cache on, a third of the accesses to warm up. Clients: samples of "
        f"{SAMPLE_S * 1e3:.1f} ms of CPU, all threads. Server: `used_cpu`, and the microseconds of EVALSHA with the commands "
        "that scripts call.",
    )
    for name in NAMES:
        try:
            trace = trace_of(name, options.accesses, options.traces)
        except NoTrace as e:
            print(f"   {e}", flush=True)
            continue
        with prepared(trace, int(len(trace.ids) * WARMUP_PART)) as work:
            budgets, _ = fit(work, int(trace.footprint_bytes * PART))
            ours, by_hand = _replayed(work, OURS, budgets), _replayed(work, LZ4, budgets)
        for what in (XZ, FRAMES, OBJECT, SOCKETS, REST, SCRIPTS, SERVER):
            ratio: object = ours[what] / by_hand[what] if by_hand[what] else "-"
            table.add(name, what, ours[what], by_hand[what], ratio)
        for what in ("archive reads an access", "commands an access, with those of scripts", "scripts an access"):
            table.add(name, what, ours[what], by_hand[what], ours[what] / by_hand[what] if by_hand[what] else "-")
    return table


def _replayed(work: Work, kind: str, budgets: tuple[int, int]) -> dict[str, float]:
    """Replay the trace in this process. Returns microseconds, and numbers, an access."""
    memory = int(work.trace.footprint_bytes * PART)
    settings, ids, sizes = settings_of(budgets), work.trace.ids, work.trace.sizes
    with served(work) as (server, archive, _), server.client() as peer:
        if kind == OURS:
            fill_records(server, archive, settings)
        else:
            used = int(peer.info("memory")["used_memory"])
            peer.config_set("maxmemory", used + memory)
            peer.config_set("maxmemory-policy", "allkeys-lru")
        cache = open_cache(kind, server.socket_url, archive, work.objects, settings, memory)
        try:
            for id in ids[: work.warmup]:
                cache.get(id)
            peer.config_resetstat()
            before_s, calls = server_cpu_s(server), _commands(peer)
            with sampled() as samples:
                found = measure(cache, ids[work.warmup :], sizes)
            server_s, calls = server_cpu_s(server) - before_s, _commands(peer) - calls
            scripts: Any = peer.info("commandstats").get("cmdstat_evalsha", {"calls": 0, "usec": 0})
        finally:
            cache.close()
    n, all_samples = len(found.us), max(1, samples.total())
    out = {what: samples[what] / all_samples * found.cpu_s / n * 1e6 for what in (*PARTS, REST)}
    out[SCRIPTS] = scripts["usec"] / n
    out[SERVER] = server_s / n * 1e6 - out[SCRIPTS]
    out["archive reads an access"] = found.archive_reads / n
    out["commands an access, with those of scripts"] = calls / n
    out["scripts an access"] = scripts["calls"] / n
    return out


def _commands(peer: Any) -> int:
    """Return the number of commands that clients sent: a script counts as one."""
    found = peer.info("stats")
    return int(found["total_commands_processed"])


@contextmanager
def sampled() -> Iterator[Counter[str]]:
    """Count samples of this process's CPU time by what it went to. Runs in the main thread."""
    counts: Counter[str] = Counter()

    def note(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            file, function = frame.f_code.co_filename, frame.f_code.co_name
            for what, names in PARTS.items():
                if any(part in file and word in function for part, word in names):
                    counts[what] += 1
                    return
            frame = frame.f_back
        counts[REST] += 1

    before = signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
    try:
        yield counts
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
