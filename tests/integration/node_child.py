"""A node in its own process, for `test_nodes.py`: `node_child.py SETTINGS [die-before|die-after|second]`.

It puts `a0`..`a9`, holds them on its disk and otherwise only in the archive, prints `ready`, and runs until it is
killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from distier import connect
from distier.domain.module import Moved
from distier.plans.fleet import nodes as node_plans
from tests.integration.test_nodes import body, hasten

nodes: Any = node_plans
IDS = [f"a{i}" for i in range(10)]


def die(word: str) -> None:
    """Have the process killed while it serves a request to promote."""
    to_hot = nodes.to_hot

    def dying(*args: Any) -> Any:
        if word == "die-after":
            yield from to_hot(*args)
        os.kill(os.getpid(), signal.SIGKILL)
        yield from to_hot(*args)

    nodes.to_hot = dying


def main(settings: str, word: str = "") -> None:
    hasten(setattr)
    if word.startswith("die"):
        die(word)
    with connect({"counter": "estimate"}, **json.loads(settings)) as store:
        if word != "second":
            for id in IDS:
                store.put(id, body(id))
            store.archive_now()
            assert all(isinstance(m, Moved) and m.tier == "warm" for m in store.demote_many(IDS))
        print("ready", flush=True)
        sys.stdin.read()


main(*sys.argv[1:])
