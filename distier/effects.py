"""The closed set of effects: everything that a plan can request from the outside.

A *plan* is a generator that yields effects and receives their results. The logic exists once, in the plans; a *driver*
(`drive/sync.py`, `drive/aio.py`) performs the effects, blocking or on an event loop. So a test can run any plan
without a server, stop it after any effect, or interleave two plans.

    record = yield from Command(("HGETALL", key), parse)      # an effect is iterable: `yield from` is typed

Redis effects are safe to send twice: reads change nothing, and scripts recognise a repeated write by its write id. The few
others have `retry=False`: after a lost reply the driver does not send them again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from .domain.keys import Shard
    from .domain.module import Record
    from .domain.objects import Fetched, Listed  # noqa: F401 - in the strings below

T = TypeVar("T")
Plan = Generator["Effect[Any]", Any, T]
Arg = str | bytes | int | float
RestoreTier = Literal["Bulk", "Standard", "Expedited"]
RESTORE_TIERS: tuple[RestoreTier, ...] = get_args(RestoreTier)


class Cancelled(BaseException):
    """Thrown into a plan whose call is abandoned, because its task was cancelled or somebody pressed Ctrl-C.

    A plan that holds a lease then releases it, with one last effect.
    """


TIDY_S = 1.0
"""How long that last effect may take."""
USE_S = 0.25
"""How long a read waits for its use to be recorded."""
HINT_S = 1.0
"""How long a call waits for other hints. They save work: a lease saves a request to the archive, a warm copy the next one."""


class Effect(Generic[T]):
    """A request of a plan; T is the type of its result. It is iterable, so that `yield from effect` is typed."""

    __slots__ = ()

    def __iter__(self) -> Generator[Effect[Any], Any, T]:
        result: T = yield self
        return result


@dataclass(slots=True)
class Command(Effect[T]):
    """One Redis command. `parse` converts its reply into a value."""

    shard: Shard
    args: tuple[Arg, ...]
    parse: Callable[[Any], T]
    retry: bool = True
    replicas: int = 0
    hint: float = 0.0
    """For a hint, the seconds that the call waits for it; 0 if it is not a hint. A hint is of no use later, so it is not sent
    again when the server refuses it temporarily. It may still take effect after the wait has ended."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its verb, its whole text, the SHA-1 for EVALSHA, and the command that runs it."""

    name: str
    source: bytes
    sha: str
    command: str = "EVALSHA"


@dataclass(slots=True)
class Sending:
    """What is known about the transmissions of a write.

    `lost` means that a reply was lost, so the write may have been applied. `since` is a version (`epoch-ver`) of the shard from
    before the write was first sent. Once a reply was lost, the command contains `since`.
    """

    since: str = "0-0"
    lost: bool = False


@dataclass(slots=True)
class RunScript(Effect[T]):
    """One run of a script on one shard. `keys` contains every key that it touches.

    With `replicas`, the run succeeds only when that many replicas have the write (`WAIT`). If fewer have it in time, that is an
    error although the write was applied.
    """

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
    """Several independent calls in one round trip (one per master on a cluster). The results are in the calls' order.

    The result of a call that fails is its error, as a value, so that the results of the others are not lost. If the first call
    is a hint, the driver does not let the others wait for hints.
    """

    calls: Sequence[Command[Any] | RunScript[Any]]


@dataclass(slots=True)
class ArchivePut(Effect[None]):
    """Write an object."""

    key: str
    data: bytes
    content_type: str
    metadata: Mapping[str, str]


@dataclass(slots=True)
class ArchiveGet(Effect["Fetched | None"]):
    """Read an object of at most `max_bytes`. The result is None only if the archive reports that the object does not exist."""

    key: str
    max_bytes: int


@dataclass(slots=True)
class ArchiveList(Effect["list[Listed]"]):
    """List at most `limit` objects with this prefix, in the order of their keys, beginning after `start_after`."""

    prefix: str
    start_after: str = ""
    limit: int = 1000


@dataclass(slots=True)
class ArchiveDelete(Effect[None]):
    """Delete objects; a key without an object is no error."""

    keys: Sequence[str]


@dataclass(slots=True)
class ArchiveRestore(Effect[bool]):
    """Ask for a copy that can be read for `days`. The result says whether the object can be read now."""

    key: str
    days: int
    tier: RestoreTier


@dataclass(slots=True)
class Offload(Effect[T]):
    """A computation over `size_bytes` of data. The asyncio driver runs large ones in a thread.

    A large one does not start after the call's deadline, and the deadline does not interrupt it. So a plan divides a long
    computation into steps.
    """

    size_bytes: int
    function: Callable[[], T]
    what: str = "its own computations"
    """The name of the computation in an error, if it took most of the call's time."""


@dataclass(slots=True)
class Parallel(Effect[list[Any]]):
    """Run several plans at once. The results are in order; a plan that fails has its `DistierError` as its result."""

    plans: Sequence[Plan[Any]]


@dataclass(slots=True)
class Now(Effect[int]):
    """The wall clock in milliseconds since the Unix epoch, only for output to people. Scripts use the server's clock."""


@dataclass(slots=True)
class Monotonic(Effect[float]):
    """This machine's monotonic clock, in seconds, to estimate what a server's clock shows since a look at it."""


@dataclass(slots=True)
class NewToken(Effect[str]):
    """128 random bits, as 32 hexadecimal digits, for a write id or the name of a lease's holder."""


@dataclass(slots=True)
class Sleep(Effect[None]):
    """Wait, at most until the call's deadline."""

    seconds: float
    what: str = "waiting for another process"
    """The name of the wait in an error, if it took most of the call's time."""


@dataclass(slots=True)
class Used(Effect["RunScript[Any] | None"]):
    """Note one use of a module, or one use of each of several modules. `hit` is a counter of the process to add 1 to.

    The process gathers uses. When a batch is due, or with `flush`, the result is the script call that sends the batch; the plan
    adds it to the calls that it sends anyway.
    """

    shard: Shard
    id: str | Sequence[str]
    flush: bool = False
    hit: str = ""


@dataclass(slots=True)
class Progress(Effect[None]):
    """Report a value of the plan's own to the caller, while the plan runs: a finding, or the numbers so far."""

    value: object


@dataclass(slots=True)
class Count(Effect[None]):
    """Add `n` to one of the process's own counters (`hits.hot`, `misses`, ...)."""

    name: str
    n: int = 1


# The node's own disk (`stores/local.py`). Only plans of a space with a node yield these effects.


@dataclass(slots=True)
class LocalGet(Effect["bytes | None"]):
    """Read the content of exactly this version from the node's disk, and check it. The result is None if it is not there."""

    record: Record


@dataclass(slots=True)
class LocalPut(Effect[bool]):
    """Keep a clean version on the node's disk. The result is False if the disk did not take it, which is no error."""

    record: Record
    content: bytes


@dataclass(slots=True)
class LocalHas(Effect[bool]):
    """Ask whether the node's disk has this version. This does not count as a use."""

    id: str
    write_id: str


@dataclass(slots=True)
class LocalDelete(Effect[bool]):
    """Drop the node's copies of this module. The result says whether there was one."""

    id: str


@dataclass(slots=True)
class Peers(Effect[tuple[str, ...]]):
    """The names of the other nodes that are alive and have not lately failed to answer."""


@dataclass(slots=True)
class PeerSilent(Effect[None]):
    """Report that a node did not answer in time. `Peers` omits it for a while."""

    node: str


def collect(value: T | BaseException) -> T:
    """Return a result of `Pipeline` or `Parallel`; raise it if it is an error."""
    if isinstance(value, BaseException):
        raise value
    return value
