"""`docs/ERRORS.md`: every error class and exit code, what causes it and what to do.

The classes come from the package, the exit codes from `distier.cli.exits`. What no program can know stands in `ADVICE`; a class
without a row there is an error of this generator.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

import distier
from distier.cli.exits import EXITS, code_of
from distier.errors import DistierError


class Advice(NamedTuple):
    cause: str
    remedy: str
    retry: str
    """Whether the same call may succeed when it is repeated."""


YES, NO = "yes", "no"

# By the class's name. The group of a class (the class below `DistierError`) decides its section.
ADVICE: dict[str, Advice] = {
    "DistierError": Advice("Never raised itself: the base of all others.", "Catch it to catch every error of distier.", ""),
    "Unavailable": Advice(
        "Redis, the archive or this machine cannot serve the call now. No data was lost.",
        "Repeat the call with a backoff. After a write, the outcome is unknown: read the module, or write again.",
        YES,
    ),
    "RedisUnavailable": Advice(
        "Redis refused the connection, ended it, or did not reply in time; or the embedded server did not start.",
        "Check the server with `distier doctor`. Repeat the call.",
        YES,
    ),
    "Unsaved": Advice(
        "`distier down` would lose writes: the embedded server acknowledged them and cannot write them to its disk.",
        "Free space on the disk and repeat the command, or give the writes up with `distier down --force`.",
        YES,
    ),
    "ArchiveUnavailable": Advice(
        "The bucket or the directory of the archive refused a request, or did not reply in time.",
        "Check it with `distier doctor`: network, credentials, free disk. Repeat the call.",
        YES,
    ),
    "Strange": Advice(
        "A reply is not one of an S3 server: it is the login page of a proxy, or `endpoint_url` names another kind of server.",
        "Correct `storage_tiers.cold.endpoint_url`, or let the process pass the proxy.",
        "after the correction",
    ),
    "NeedsRestore": Advice(
        "The content is in a storage class such as GLACIER, which S3 cannot read at once.",
        "Run `distier restore ID --wait`, then repeat the call.",
        "after the restore",
    ),
    "ArchiveTimeout": Advice(
        "The deadline of the call passed while it waited for the archive.",
        "Raise `deadline`, or find out why the archive is slow. Repeat the call.",
        YES,
    ),
    "DeadlineExceeded": Advice(
        "The deadline of the call passed before the call was done.",
        "Raise `deadline` or put fewer modules into one call. After a write, the outcome is unknown.",
        YES,
    ),
    "Full": Advice(
        "Redis is at `maxmemory`, or the budgets are full of dirty or pinned modules.",
        "Run a worker, which archives dirty modules; unpin modules; raise the budget or `maxmemory`. Nothing was changed.",
        YES,
    ),
    "Recovering": Advice(
        "Redis restarted, failed over or lost its data, and the shard is getting its new epoch.",
        "Repeat the call after some seconds. After a durable write, the outcome is unknown: read the module first.",
        YES,
    ),
    "Fenced": Advice(
        "The shard began a new epoch while a durable write was on its way to the archive.",
        "Read the module, then repeat the call: the outcome is unknown.",
        YES,
    ),
    "Contended": Advice(
        "Other processes change the quotas of the shards at the same moment, again and again.",
        "Repeat the call.",
        YES,
    ),
    "Stopping": Advice(
        "A worker got SIGTERM and left a step unfinished. It handles this error itself; callers never see it.",
        "Nothing: another worker, or the next start, does the step.",
        YES,
    ),
    "Conflict": Advice(
        "The module is not at the version that `if_version` names: somebody else wrote first. Nothing was changed.",
        "Read the module, decide again, and write with the version that you have read.",
        "after a read",
    ),
    "Pinned": Advice(
        "`distier demote` was asked to move a pinned module down.",
        "`distier unpin ID`, or wait until the pin ends.",
        NO,
    ),
    "Corrupt": Advice(
        "A copy does not match its checksum, its length or its format.",
        "Read again: another copy may be good. Then run `distier fsck`, and `distier fsck --repair`.",
        "once",
    ),
    "OutOfStep": Advice(
        "A reply or a record belongs to another module. distier used nothing of it and closed the connection.",
        "Repeat the call. If it fails again, the record is damaged: run `distier fsck`.",
        YES,
    ),
    "ObjectGone": Advice(
        "The archive does not have the object that the record of a module names.",
        "Run `distier fsck`. Restore the object from a backup or a version of the bucket, or put the module again.",
        NO,
    ),
    "Vanished": Advice(
        "The archive listed an object and then did not have it: a newer version replaced it, or it is lost.",
        "Repeat the call. If it fails again, run `distier fsck`.",
        YES,
    ),
    "RescuedInPart": Advice(
        "`distier rescue` could not read some objects of the archive. All other modules are back.",
        "Repair or delete the objects that the message names, then run `distier rescue` again.",
        "after the repair",
    ),
    "Invalid": Advice(
        "An argument, an id, a content or an option is wrong. Nothing was changed.",
        "Correct the call; the message says how. It is a `ValueError` too.",
        NO,
    ),
    "NotFound": Advice(
        "The call needs a module or a namespace that does not exist. `get` and `where` return `None` instead.",
        "Check the id and the namespace. It is a `KeyError` too.",
        NO,
    ),
    "ConfigError": Advice(
        "A setting is unknown, has an impossible value, or does not fit what it names.",
        "Correct the setting that the message names; `distier config show` says where its value came from.",
        NO,
    ),
    "WrongArchive": Advice(
        "The configured archive belongs to another namespace, or is not the one that this namespace uses.",
        "Correct `storage_tiers.cold` or `namespace`. If another archive is meant now, run `distier archive adopt`.",
        NO,
    ),
}  # fmt: skip

_HEAD = """\
# Errors

Written by `make docs` from the code; a test compares it.

A miss is a value (`None`, `False`), never an error. A fault is an error, never a miss. Every error that distier raises on
purpose is a `DistierError` of one of four groups, and the group says what to do:

| catch | what to do |
|---|---|
| `distier.Unavailable` | repeat the call later, with a backoff |
| `distier.Conflict` | read the module again, then decide |
| `distier.Corrupt` | read again; run `distier fsck` |
| `distier.Invalid` | correct the call |

An error of a write says whether the write was applied. After `Conflict`, `Invalid` and `Full` nothing was changed.
After any other `Unavailable` the outcome is unknown.

Classes that are marked "internal" may change in any release: catch the public class that they derive from.
"""

_EXITS_HEAD = """
## Exit codes

The command line ends with one code for each thing that a script may want to do:

| code | error | meaning |
|---|---|---|
"""


def error_classes() -> list[type[DistierError]]:
    """Every error class of the package, each after its bases, siblings by name."""
    for module in pkgutil.walk_packages(distier.__path__, "distier."):
        if not module.name.endswith("__main__"):
            try:
                import_module(module.name)
            except ModuleNotFoundError:  # an adapter of a package that is not installed here; it defines no errors
                if not module.name.startswith("distier.integrations."):
                    raise
    return list(dict.fromkeys(_below(DistierError)))


def _below(kind: type[DistierError]) -> Iterator[type[DistierError]]:
    yield kind
    for inner in sorted(kind.__subclasses__(), key=lambda c: c.__name__):
        if inner.__module__.split(".")[0] == "distier":  # a test may have classes of its own
            yield from _below(inner)


def render() -> str:
    """The page, as Markdown. Raises `LookupError` for a class that has no advice, and for advice that has no class."""
    classes = error_classes()
    if odd := {kind.__name__ for kind in classes} ^ ADVICE.keys():
        raise LookupError(f"classes without ADVICE, or ADVICE without a class: {sorted(odd)}")
    groups = [kind for kind in classes if kind.__bases__[0] is DistierError]
    sections = "".join(_section(group, [kind for kind in classes if issubclass(kind, group)]) for group in groups)
    exits = "".join(
        f"| {code} | {f'`{error.__name__}`' if error else ''} | {what} |\n"
        for code, error, what in sorted(EXITS, key=lambda e: e.code)
    )
    return f"{_HEAD}{sections}{_EXITS_HEAD}{exits}"


def _section(group: type[DistierError], classes: list[type[DistierError]]) -> str:
    head = f"\n## {group.__name__}\n\n| class | raised when | what to do | retry | exit code |\n|---|---|---|---|---|\n"
    return head + "".join(map(_row, classes))


def _row(kind: type[DistierError]) -> str:
    advice = ADVICE[kind.__name__]
    bases = " and ".join(f"`{base.__name__}`" for base in kind.__bases__ if issubclass(base, DistierError))
    name = f"`{kind.__name__}`" if kind.__name__ in distier.__all__ else f"`{kind.__name__}` (internal)"
    if DistierError not in kind.__bases__:
        name += f"; a kind of {bases}"
    code = code_of(kind.__new__(kind))
    return f"| {name} | {advice.cause} | {advice.remedy} | {advice.retry} | {code} |\n"
