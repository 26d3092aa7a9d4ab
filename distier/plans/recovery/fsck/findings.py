"""What `fsck` can find, and the state of one run of it."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from distier.domain import archived as names
from distier.effects import Plan, Progress
from distier.errors import DistierError
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.walk import Position, Skipped

Level = Literal["note", "fault", "lost"]


class Kind(NamedTuple):
    """A kind of finding."""

    level: Level
    what: str
    repair: str


_INDEX = "the set named in it does not agree with the record"
KINDS: Mapping[str, Kind] = {
    "lost": Kind("lost", "not archived yet, and its only copy is gone or cut off", ""),
    "lost-object": Kind("lost", "its archived object is gone, and there is no copy and no other version", ""),
    "lost-version": Kind(
        "lost", "its archived object is gone, and only an older version is there", "goes back to that"
    ),
    "lost-copy": Kind("lost", "not archived yet, and its only copy does not match its SHA-256", ""),
    "damaged-object": Kind("lost", "its archived object is damaged, and Redis has no copy", ""),
    "object-gone": Kind("fault", "its archived object is gone; the content is in Redis", "archived again"),
    "object-behind": Kind("fault", "its archived object is gone; a greater version is there", "adopts that"),
    "object-healed": Kind("fault", "its archived object is damaged; Redis has the content", "put as a new version"),
    "copy-damaged": Kind("fault", "the copy in Redis is damaged; the archive has it", "drops the copy"),
    "malformed": Kind(
        "fault", "the record lacks what every record has", "dropped if empty, then the archive's adopted"
    ),
    "foreign-type": Kind("fault", "a key of a module has another Redis type: something else writes here", ""),
    "hot-content": Kind(
        "fault", "hot, and its content is missing or has a wrong length", "demoted: the archive has it"
    ),
    "content-stray": Kind("fault", "not hot, and its record holds content", "drops that"),
    "frame-orphan": Kind("fault", "a warm copy that no warm record speaks of", "dropped"),
    "frame-length": Kind("fault", "the warm copy has a wrong length; the archive has it", "dropped"),
    "frame-ttl": Kind("fault", "not archived yet, and its warm copy would expire", "PERSIST"),
    "frame-no-ttl": Kind("fault", "archived, and its warm copy never expires", "gets its TTL"),
    "record-ttl": Kind("fault", "the record of a living module would expire", "PERSIST"),
    "tombstone-no-ttl": Kind("fault", "an archived tombstone that never expires", "gets its TTL"),
    **{f"missing-{s}": Kind("fault", _INDEX, "added to it") for s in ("hot", "warm", "dirty", "ids", "expiring")},
    **{f"stray-{s}": Kind("fault", _INDEX, "taken out of it") for s in ("hot", "warm", "dirty", "uses", "pins", "ids")},
    "stray-chunk": Kind("fault", "a chunk of the index of ids that the index does not name", "dropped"),
    "accounts": Kind("fault", "the sums in `usage` differ from a recount", "set to the recount"),
    "accounts-unknown": Kind("note", "too much changes: the accounts could not be compared", ""),
    "lease-no-ttl": Kind("fault", "a lease that never ends", "gets a TTL"),
    "unreadable-object": Kind("fault", "the archive lists an object and does not give it, or refuses to delete it", ""),
    "orphan-object": Kind("fault", "an object that no record knows of", "adopted"),
    "unreadable-name": Kind("fault", "the archive has objects whose directory is no module id", ""),
    "wrong-type": Kind("note", f"its object is not served as {names.CONTENT_TYPE}", ""),
    "not-reconciled": Kind("note", "Redis was lost and this is not adopted yet; reads do it", "adopted"),
    "unneeded-objects": Kind("note", "objects that nobody needs any more", "swept"),
    "lone-sidecar": Kind("note", "a description without its content", ""),
    "foreign-object": Kind("note", "an object that distier never named", ""),
    "foreign-key": Kind("note", "a key in this namespace that distier never wrote", ""),
}
"""Everything that can be found. `what` describes it, `repair` is what `repair=True` does about it, empty for nothing."""
EXAMPLES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    `id` is the module, if it is about one; `key` a Redis key or archive key; `detail` what distinguishes it. `repaired`:
    this run repaired it.
    """

    kind: str
    id: str = ""
    key: str = ""
    detail: str = ""
    repaired: bool = False

    @property
    def level(self) -> Level:
        return KINDS[self.kind].level

    @property
    def what(self) -> str:
        return KINDS[self.kind].what

    @property
    def repair(self) -> str:
        return KINDS[self.kind].repair


@dataclass
class Findings:
    """What fsck saw, in numbers. `found` and `repaired` are by kind; `listed` holds the first thousand findings."""

    objects: int = 0
    records: int = 0
    contents: int = 0
    found: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    listed: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.found[finding.kind] = self.found.get(finding.kind, 0) + 1
        if finding.repaired:
            self.repaired[finding.kind] = self.repaired.get(finding.kind, 0) + 1
        if len(self.listed) < EXAMPLES_MAX:
            self.listed.append(finding)

    def count(self, level: Level) -> int:
        """Return how many findings of a level there were."""
        return sum(n for kind, n in self.found.items() if KINDS[kind].level == level)

    @property
    def remaining(self) -> int:
        """The faults that are still there."""
        return self.count("fault") - sum(n for kind, n in self.repaired.items() if KINDS[kind].level == "fault")


@dataclass
class Run:
    """The state of one run."""

    space: Namespace
    repair: bool
    share: float
    salt: bytes
    now_ms: int
    findings: Findings = field(default_factory=Findings)
    skipped: Skipped = field(default_factory=Skipped)
    present: array[int] = field(default_factory=lambda: array("q"))
    """Hashes of (id, position) of every content object, sorted after the walk through the archive."""
    _unreported: list[Finding] = field(default_factory=list)

    def found(self, kind: str, id: str = "", key: str = "", detail: str = "", *, repaired: bool = False) -> None:
        finding = Finding(kind, id, key, detail, repaired)
        self.findings.add(finding)
        self._unreported.append(finding)

    def report(self) -> Plan[None]:
        """Report the findings since the last report, and the numbers so far, as progress."""
        findings, self._unreported = self._unreported, []
        for finding in findings:
            yield Progress(finding)
        yield Progress(self.findings)

    def is_archived(self, id: str, position: Position) -> bool:
        wanted = hash((id, *position))
        at = bisect_left(self.present, wanted)
        return at < len(self.present) and self.present[at] == wanted

    def is_sampled(self, id: str) -> bool:
        """Return whether the module is in the sample, which is another one in each run."""
        digest = hashlib.blake2b(self.salt + id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64


def each(run: Run, id: str, plan: Plan[object]) -> Plan[None]:
    """Run what is done with one module. An object that the archive does not return is reported, and affects nothing else."""
    try:
        yield from plan
        run.skipped.went_well()
    except DistierError as e:
        run.skipped.add(id, e)
        run.found("unreadable-object", id, detail=str(e))
