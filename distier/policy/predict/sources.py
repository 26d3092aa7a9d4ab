"""The sources of guesses: what followed a module, what was used under a keyword, what is used at an hour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distier.policy.predict.counts import Counts
from distier.policy.predict.scores import Guess, Scores

WINDOW = 3
"""How many accesses of a session a module is expected to follow within."""
FOLLOWERS = 8
LEAST = 0.3
"""The least ratio of a guess from a sequence. Below it there is no point in scoring guesses."""
UNDER_KEYWORD = 24
AT_HOUR = 64
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


class Followers:
    """What followed what within `WINDOW` accesses of one session.

    A guess is a follower of the newest module. What is known of the modules before it makes a guess more probable (noisy-or),
    and adds none: their followers were guessed when they were the newest.
    """

    name = "sequence"
    HORIZON = 64

    def __init__(self, modules_max: int) -> None:
        self.counts = Counts(modules_max, FOLLOWERS)
        self.scores = Scores(self.HORIZON)

    def learn(self, recent: Sequence[str], id: str) -> None:
        """Learn that a session used `id` after `recent`, the modules before it."""
        for before in dict.fromkeys(recent):
            if before != id:
                self.counts.follow(before, id)
        self.counts.use(id)

    def guesses(self, recent: Sequence[str]) -> Iterator[Guess]:
        """Yield what may follow `recent`, whose last element is the newest module."""
        if not recent:
            return
        newest = self.counts.get(recent[-1])
        if newest is None or not newest.followers:
            return
        earlier = [entry for id in dict.fromkeys(recent[:-1]) if (entry := self.counts.get(id)) is not None]
        for id, seen in newest.followers.items():
            if id in recent:
                continue
            missing = 1 - min(1.0, seen / max(newest.uses, 1.0))
            for entry in earlier:
                count = entry.followers.get(id)
                if count is not None:
                    missing *= 1 - min(1.0, count / max(entry.uses, 1.0))
                    seen = max(seen, count)
            if 1 - missing >= LEAST:
                yield Guess(id, 1 - missing, seen)


class Keywords:
    """What sessions with a keyword used."""

    name = "context"
    HORIZON = 256
    LEAST = 0.2

    def __init__(self, keywords_max: int) -> None:
        self.counts = Counts(keywords_max, UNDER_KEYWORD)
        self.scores = Scores(self.HORIZON)

    def begin(self, keywords: Sequence[str]) -> None:
        """A session with these keywords begins."""
        for keyword in keywords:
            self.counts.use(keyword)

    def learn(self, keywords: Sequence[str], id: str) -> None:
        """Learn that a session with these keywords used `id`, for the first time in this session."""
        for keyword in keywords:
            self.counts.follow(keyword, id)

    def guesses(self, keywords: Sequence[str]) -> Iterator[Guess]:
        """Yield what a session with these keywords may use."""
        missing: dict[str, float] = {}
        seen: dict[str, float] = {}
        for keyword in keywords:
            entry = self.counts.get(keyword)
            if entry is None:
                continue
            for id, count in entry.followers.items():
                missing[id] = missing.get(id, 1.0) * (1 - min(1.0, count / max(entry.uses, 1.0)))
                seen[id] = max(seen.get(id, 0.0), count)
        for id, none in missing.items():
            if 1 - none >= self.LEAST:
                yield Guess(id, 1 - none, seen[id])


class Hours:
    """What is used at an hour of the day (UTC), as a share of the days on which anything was used at it."""

    name = "hour"
    HORIZON = 256
    LEAST = 0.5

    def __init__(self) -> None:
        self.counts = Counts(24, AT_HOUR)
        self.scores = Scores(self.HORIZON)
        self._day: dict[str, tuple[int, set[str]]] = {}

    @staticmethod
    def hour(now_s: float) -> str:
        return str(int(now_s % DAY_S // HOUR_S))

    def learn(self, id: str, now_s: float) -> None:
        """Learn that a module is used now. It counts once for each hour of a day."""
        hour, day = self.hour(now_s), int(now_s // DAY_S)
        last, used = self._day.get(hour, (None, set()))
        if last != day:
            used = set()
            self._day[hour] = (day, used)
            self.counts.use(hour)
        if id not in used and len(used) < 4 * AT_HOUR:
            used.add(id)
            self.counts.follow(hour, id)

    def guesses(self, now_s: float) -> Iterator[Guess]:
        """Yield what may be used in this hour."""
        entry = self.counts.get(self.hour(now_s))
        if entry is None:
            return
        for id, seen in entry.followers.items():
            ratio = min(1.0, seen / max(entry.uses, 1.0))
            if ratio >= self.LEAST and seen > 1.5:  # once a day is no habit
                yield Guess(id, ratio, seen)
