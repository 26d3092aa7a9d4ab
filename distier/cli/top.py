"""`distier top`: a namespace at a glance, live in a terminal of 80x24 and up, or once."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import output
from .session import Session, session_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from distier.client import Store
    from distier.domain.module import Event
    from distier.plans.fleet.health import Health
    from distier.plans.fleet.statistics import Stats
    from distier.plans.get.browse import Page, Rank

ORDERS: dict[str, tuple[Rank, str]] = {
    "l": ("lru", "longest unused"), "m": ("mru", "just used"), "u": ("uses", "most used"), "b": ("biggest", "biggest"),
    "d": ("dirty", "not archived"), "e": ("due", "due to leave warm"), "p": ("pins", "pinned"),
}  # fmt: skip
"""By key: an order of modules, and what it is called."""
LINES = 24
COLUMNS = 80
FIXED_LINES = 14
"""Lines of a frame that are no modules, with the line of keys."""
FLOWS_MS = 60_000


def register(app: typer.Typer) -> None:
    app.command("top")(top)


@dataclass
class View:
    """What the user has chosen."""

    rank: Rank = "lru"
    prefix: str = ""
    paused: bool = False
    typing: str | None = None
    """The filter that is being typed; None if none is."""
    ended: bool = False

    def press(self, key: str) -> None:
        """Act on a key."""
        if self.typing is not None:
            self._type(key)
        elif key in ORDERS:
            self.rank = ORDERS[key][0]
        elif key == "/":
            self.typing = ""
        elif key == " ":
            self.paused = not self.paused
        elif key in ("q", "\x03", "\x04", ""):
            self.ended = True

    def _type(self, key: str) -> None:
        assert self.typing is not None
        if key in ("\r", "\n"):
            self.prefix, self.typing = self.typing, None
        elif key in ("\x1b", "\x03"):
            self.typing = None
        elif key in ("\x7f", "\b"):
            self.typing = self.typing[:-1]
        elif key.isprintable():
            self.typing += key


@dataclass
class Seen:
    """One look at the namespace."""

    stats: Stats
    health: Health
    page: Page
    at_s: float


@dataclass
class Flows:
    """The moves of the last minute, from events."""

    moves: deque[Event] = field(default_factory=deque)
    cursor: Any = None

    def read(self, store: Store, now_ms: int) -> None:
        """Read the events since the last look, at first those of the last minute. `now_ms` is the server's time."""
        from distier.observe.events import Cursor, read_events

        if self.cursor is None:
            self.cursor = store.run(Cursor.start(store.space.keys.shards, f"{max(0, now_ms - FLOWS_MS)}"))
        while events := store.run(read_events(self.cursor, 0)):
            self.moves += (event for event in events if event.is_tier_change)
        while self.moves and self.moves[0].at_ms < now_ms - FLOWS_MS:
            self.moves.popleft()

    def counts(self) -> Counter[tuple[str, str]]:
        return Counter((event.from_, event.to) for event in self.moves)


def top(
    context: typer.Context,
    order: Annotated[
        str, typer.Option("--order", metavar="NAME", help="lru, mru, uses, biggest, dirty, due or pins.")
    ] = "lru",
    prefix: Annotated[str, typer.Option("--prefix", metavar="TEXT", help="Only ids with this prefix.")] = "",
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", help="Time between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look, and exit.")] = False,
) -> None:
    """Show health, tiers, flows, hit ratio, moves and modules, live. Keys: l m u b d e p order, / filter, space, q."""
    known = {rank: rank for rank, _ in ORDERS.values()}
    if order not in known:
        raise typer.BadParameter(f"--order must be one of {', '.join(known)}, not {order!r}")
    if not 0.1 <= every <= 3600:
        raise typer.BadParameter(f"--every must be 0.1 to 3600 seconds, not {every:g}")
    session, view = session_of(context), View(known[order], prefix)
    live = not once and not session.json and sys.stdout.isatty() and sys.stdin.isatty()
    with session.look() as store:
        flows = Flows()
        if live:
            _live(store, view, flows, every)
            return
        while True:
            seen = _look(store, view, flows, LINES - FIXED_LINES)
            _print(session, store, seen, flows, view)
            if once or not session.json:
                return
            time.sleep(every)


def _look(store: Store, view: View, flows: Flows, rows: int) -> Seen:
    from distier.plans.fleet.health import read_health
    from distier.plans.get.browse import page_by_rank

    stats, health = store.stats(), store.run(read_health(store.space))
    page = store.run(page_by_rank(store.space, view.rank, "", max(1, rows), prefix=view.prefix))
    flows.read(store, page.now_ms)
    return Seen(stats, health, page, time.time())


def _print(session: Session, store: Store, seen: Seen, flows: Flows, view: View) -> None:
    if session.json:
        output.emit(as_json(store.space.namespace, seen, flows, view))
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
        for line in frame(store.space.namespace, seen, flows, view, min(console.width, 120)):
            console.print(line, no_wrap=True, overflow="ellipsis")


def as_json(namespace: str, seen: Seen, flows: Flows, view: View) -> dict[str, Any]:
    """Return one look as data."""
    from distier.views import stats_view

    rows = [{name: getattr(row, name) for name in type(row).__dataclass_fields__} for row in seen.page.rows]
    moves = [{"from": a, "to": b, "count": n} for (a, b), n in sorted(flows.counts().items())]
    return {
        "namespace": namespace, "at_ms": int(seen.at_s * 1000), "problems": problems(seen),
        "moves_of_a_minute": moves, "order": view.rank, "prefix": view.prefix, "modules": rows,
        "stats": stats_view(seen.stats),
    }  # fmt: skip


def problems(seen: Seen) -> list[str]:
    """Return what an operator should look at, as the page shows it too."""
    from distier.views import health_view

    found = [check["text"] for check in health_view(seen.stats, seen.health)["checks"] if not check["ok"]]
    if seen.stats.eviction.ranking:
        found.append("modules are still being ranked for the new eviction policy")
    return found


# -- the frame --------------------------------------------------------------------------------------------------------


def frame(namespace: str, seen: Seen, flows: Flows, view: View, width: int = COLUMNS) -> list[RenderableType]:
    """Return the lines of one look."""
    from rich.text import Text

    wrong, s = problems(seen), seen.stats
    ratio = "" if s.reads.hit_ratio is None else f"   {s.reads.hit_ratio:.1%} of reads without the archive"
    clock = time.strftime("%H:%M:%S", time.localtime(seen.at_s)) + ("   paused" if view.paused else "")
    head = Text.assemble(("distier top", "bold"), f"   {namespace}   {s.eviction.policy}{ratio}   {clock}")
    health = Text(f"LOOK  {'; '.join(wrong)}", "bold red") if wrong else Text("ok    nothing to look at", "green")
    lines: list[RenderableType] = [head, health, *map(Text, _tiers(s)), Text(_flows(s, flows)), Text("")]
    recent = list(flows.moves)[-3:]
    moves = [f"{e.from_:>5} > {e.to:<6} {e.reason:<9} {output.shown(e.id)}" for e in reversed(recent)]
    lines += [Text(line, "dim") for line in [*moves, *[""] * (3 - len(moves))]]
    lines += [Text(line, style) for line, style in _modules(seen.page, view, width)]
    for line in lines:
        if isinstance(line, Text):
            line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _tiers(s: Stats) -> Iterator[str]:
    n, size = output.number, output.size
    rows = [
        ("hot", n(s.hot.count), n(s.hot.tokens), size(s.hot.size_bytes), _bar(s.hot.tokens, s.hot.max_tokens)),
        ("warm", n(s.warm.count), n(s.warm.tokens), size(s.warm.stored_bytes),
         _bar(max(s.warm.count / max(1, s.warm.max_modules), s.warm.stored_bytes / max(1, s.warm.max_bytes)), 1)),
        ("cold", n(s.cold.count), n(s.cold.tokens), size(s.cold.stored_bytes), ""),
    ]  # fmt: skip
    return output.long_rows(("tier", ">modules", ">tokens", ">stored", "budget"), rows, ())


def _bar(used: float, most: float) -> str:
    share = min(1.0, used / most) if most else 0.0
    return f"{'#' * round(share * 20):<20} {share:.0%}"


def _flows(s: Stats, flows: Flows) -> str:
    counts = flows.counts()
    shown = ", ".join(f"{n} {a} > {b}" for (a, b), n in counts.most_common(4)) or "none"
    dirty = output.counted(s.dirty_count, "module")
    return f"not archived: {dirty}   moves of a minute: {shown}"


def _modules(page: Page, view: View, width: int) -> Iterator[tuple[str, str]]:
    title = next(text for rank, text in ORDERS.values() if rank == view.rank)
    chosen = f"   prefix {view.prefix}" if view.prefix else ""
    if view.typing is not None:
        chosen = f"   prefix: {view.typing}_"
    yield f"{title} ({page.of:,} in all){chosen}" if page.of is not None else f"{title}{chosen}", "bold"
    room = max(20, width - 38)
    yield f"{'id':<{room}} {'tier':<4} {'tokens':>8} {'bytes':>9} {_column(view.rank):>11}", "underline"
    for row in page.rows:
        id = output.shown(row.id)
        cut = id if len(id) <= room else f"{id[: room - 1]}…"
        yield (
            f"{cut:<{room}} {row.tier:<4} {row.tokens:>8,} {output.size(row.size_bytes):>9} {_score(page, row, view):>11}",
            "",
        )
    if not page.rows:
        yield "no module", "dim"


def _column(rank: Rank) -> str:
    return {"lru": "last used", "mru": "last used", "uses": "uses", "biggest": "uses", "dirty": "waits", "due": "due in",
            "pins": "pinned for"}[rank]  # fmt: skip


def _score(page: Page, row: Any, view: View) -> str:
    from distier.views import span

    if view.rank in ("uses", "biggest"):
        return f"{row.uses:,.0f}"
    score = row.score or 0.0
    if view.rank in ("due", "pins"):
        return span(score - page.now_ms)
    text = span(page.now_ms - score)
    return text if view.rank == "dirty" else f"{text} ago"


# -- live -------------------------------------------------------------------------------------------------------------


def _live(store: Store, view: View, flows: Flows, every: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console, seen, next_s = Console(), None, 0.0
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while not view.ended:
            for key in pressed(0.05):
                view.press(key)
                next_s = 0.0
            now_s = time.monotonic()
            if now_s < next_s:
                continue
            next_s = now_s + every
            if not view.paused or seen is None:
                seen = _look(store, view, flows, console.height - FIXED_LINES)
            foot = " ".join(f"{key}:{rank}" for key, (rank, _) in ORDERS.items())
            lines = frame(store.space.namespace, seen, flows, view, console.width)
            keys_line = Text(f"{foot} /:filter space:pause q:quit", "dim", no_wrap=True, overflow="ellipsis")
            live.update(Group(*lines[: console.height - 1], keys_line), refresh=True)


@contextmanager
def keys() -> Iterator[Any]:
    """Yield a function that returns the keys that were pressed within some seconds. The terminal echoes nothing meanwhile."""
    import os
    import select
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def pressed(wait_s: float) -> Sequence[str]:
        if not select.select([stdin], [], [], wait_s)[0]:
            return ()
        text = os.read(stdin, 64).decode(errors="replace")
        return list(text) if text else [""]  # an empty read: the terminal is gone

    tty.setcbreak(stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
