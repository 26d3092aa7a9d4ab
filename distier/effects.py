"""The closed set of effects: everything that a plan can ask of the world.

A *plan* is a generator that yields effects and gets their results back. Plans hold the logic, once; a *driver*
(`drive/sync.py`, `drive/aio.py`) performs the effects, blocking or on an event loop. So a test can run any plan
without a server, stop it after any effect, or interleave two.

    record = yield from Command(("HGETALL", key), parse)      # an effect is iterable: `yield from` is typed

Redis effects are safe to send twice: reads are, scripts recognise their own repetition by token. The few that
are not say `retry=False`, and then a lost reply is not followed by a second try.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from .domain.keys import Shard
    from .domain.module import Record
    from .stores.archive import Fetched, Listed  # noqa: F401 - in the strings below

T = TypeVar("T")
Plan = Generator["Effect[Any]", Any, T]
Arg = str | bytes | int | float


class Cancelled(BaseException):
    """Thrown into a plan whose call is given up (a task was cancelled, somebody pressed Ctrl-C): a plan that holds a lease
    gives it back, with one last effect."""


TIDY_S = 1.0
"""How long that may take."""
USE_S = 0.25
"""How long a read waits until its use is noted."""
HINT_S = 1.0
"""And for other hints, which save work: a lease saves a request to the archive, a warm copy the next one."""


class Effect(Generic[T]):
    __slots__ = ()

    def __iter__(self) -> Generator[Effect[Any], Any, T]:
        result: T = yield self
        return result


@dataclass(slots=True)
class Command(Effect[T]):
    """One Redis command. `parse` turns its reply into a value."""

    shard: Shard
    args: tuple[Arg, ...]
    parse: Callable[[Any], T]
    retry: bool = True
    replicas: int = 0
    hint: float = 0.0
    """Seconds that it is waited for, where it is a hint (0: it is none). A hint is worth nothing later: it is not sent again
    where the server refuses it for the moment. It may take effect after nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its verb, its whole text, the SHA-1 that EVALSHA takes, and the command that runs it."""

    name: str
    source: bytes
    sha: str
    command: str = "EVALSHA"


@dataclass(slots=True)
class Sending:
    """Of a write: whether a reply to it was `lost`, so that it may have been applied. `since` is a version (`epoch-ver`) of its
    shard from before it was sent for the first time; it is sent along from then on."""

    since: str = "0-0"
    lost: bool = False


@dataclass(slots=True)
class RunScript(Effect[T]):
    """One run of a script on one shard; every key that it touches is in `keys`. With `replicas`, it is done only when that
    many replicas have it (`WAIT`); fewer in time is an error, though the write was applied."""

    shard: Shard
    script: Script
    keys: tuple[str, ...]
    args: tuple[Arg, ...]
    parse: Callable[[Any], T]
    retry: bool = True
    replicas: int = 0
    hint: float = 0.0
    sending: Sending | None = None


@dataclass(slots=True)
class Pipeline(Effect[list[Any]]):
    """Several independent calls in one round trip (one per master on a cluster), answered in order.

    A call that fails alone answers its error as a value, so that its neighbours are not lost. Hints go first: that tells the
    driver that the others must not wait for them.
    """

    calls: Sequence[Command[Any] | RunScript[Any]]


@dataclass(slots=True)
class ArchivePut(Effect[None]):
    key: str
    data: bytes
    content_type: str
    metadata: Mapping[str, str]


@dataclass(slots=True)
class ArchiveGet(Effect["Fetched | None"]):
    """None only where the archive says that there is no such object."""

    key: str
    max_bytes: int


@dataclass(slots=True)
class ArchiveList(Effect["list[Listed]"]):
    prefix: str
    start_after: str = ""
    limit: int = 1000


@dataclass(slots=True)
class ArchiveDelete(Effect[None]):
    keys: Sequence[str]


@dataclass(slots=True)
class Offload(Effect[T]):
    """A computation over `size_bytes` of data; the asyncio driver runs large ones in a thread. A large one is not begun after
    the call's deadline, and not ended by it: what takes long comes in steps."""

    size_bytes: int
    function: Callable[[], T]
    what: str = "its own computations"
    """What an error calls it where it took most of a call's time."""


@dataclass(slots=True)
class Parallel(Effect[list[Any]]):
    """Several plans at once. Each answers its result, or its `DistierError` as a value, in order."""

    plans: Sequence[Plan[Any]]


@dataclass(slots=True)
class Now(Effect[int]):
    """Wall clock in ms; only for what people read. Scripts use the server's clock."""


@dataclass(slots=True)
class NewToken(Effect[str]):
    """A fresh 128-bit token, as 32 hex characters."""


@dataclass(slots=True)
class Sleep(Effect[None]):
    seconds: float
    what: str = "waiting for another process"
    """What an error calls it where it took most of a call's time."""


@dataclass(slots=True)
class Used(Effect["RunScript[Any] | None"]):
    """Note one use of a module, or of each of several. Uses are gathered in the process; where a batch is due (or `flush` is
    set), the answer is the script call that tells Redis, for the plan to send along with what it sends anyway."""

    shard: Shard
    id: str | Sequence[str]
    flush: bool = False


@dataclass(slots=True)
class Count(Effect[None]):
    """Add to one of the process's own counters (`hits.hot`, `misses`, ...)."""

    name: str
    n: int = 1


# The node's own disk (`stores/local.py`). Only plans of a space that has a node yield these.


@dataclass(slots=True)
class LocalGet(Effect["bytes | None"]):
    """The content of exactly this version from the node's disk, checked; None where it is not there."""

    record: Record


@dataclass(slots=True)
class LocalPut(Effect[bool]):
    """Keep a clean version on the node's disk. False where it was not kept; that is no error."""

    record: Record
    content: bytes


@dataclass(slots=True)
class LocalHas(Effect[bool]):
    """Whether the node's disk has this version; no use."""

    id: str
    write_id: str


@dataclass(slots=True)
class LocalDelete(Effect[bool]):
    """Drop what the node's disk has of this module; whether that was anything."""

    id: str


@dataclass(slots=True)
class Peers(Effect[tuple[str, ...]]):
    """Other nodes that live and have answered lately, by name."""


@dataclass(slots=True)
class PeerSilent(Effect[None]):
    """This node did not answer in time: it is left out of `Peers` for a while."""

    node: str


def collect(value: T | BaseException) -> T:
    """A result of `Pipeline` or `Parallel`: the value, or its error raised here."""
    if isinstance(value, BaseException):
        raise value
    return value
