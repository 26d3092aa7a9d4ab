"""A signal handler or a finaliser calls the store while the same thread is in it, at any line: no call hangs, no result
is wrong, and every use is counted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import TestServer

PROGRAM = """
import faulthandler, gc, signal, sys, threading, time, traceback
import distier
from distier.errors import DistierError

faulthandler.dump_traceback_later(100, exit=True)  # a thread hangs
url, directory, near, placement, hooks = sys.argv[1:]
settings = dict(
    redis__url=url, namespace=f"t{near}{placement}{hooks}", counter="estimate", near__enabled=near == "near", deadline="60s",
    storage_tiers__warm__placement=placement, storage_tiers__warm__directory=directory + "/warm",
    storage_tiers__cold__directory=directory + "/cold",
)
wrong = []

class Hook:
    '''Holds a plain lock, as hooks do: a call inside another one would wait for itself.'''
    def __init__(self):
        self.lock, self.sums = threading.Lock(), {}
    def count(self, name, amount):
        if not self.lock.acquire(blocking=False):
            wrong.append(f"count({name!r}) inside another call")
            return
        self.sums[name] = self.sums.get(name, 0) + amount
        self.lock.release()
    def observe(self, name, seconds):
        self.count(name, 1)

hook = Hook()
store = distier.connect(**settings, metrics=[hook] if hooks == "hooks" else ())
for i in range(20):
    store.put(f"m{i}", f"{i}", durability="archived")

inside = set()
inner = 0

def call():
    '''What a user's handler does with the store, in turn. Once at a time in each thread.'''
    global inner
    if (me := threading.get_ident()) in inside:
        return
    inside.add(me)
    try:
        inner += 1
        id = f"m{inner % 20}"
        step = inner % 9
        if step == 0:
            own = f"own{me}"
            mine = str(inner)
            store.put(own, mine)
            found = store.get(own)
            assert found is not None and found.text == mine, (found and found.text, mine)
        elif step == 1:
            store.stats()
        elif step == 2:
            found = store.get_many([id, "none"])
            assert found[id].text == id[1:] and found["none"] is None
        elif step == 3 and inner % 4 == 3:
            store.demote(id, to="cold")
        else:
            assert store.get(id).text == id[1:]
    except DistierError as e:
        print("error", repr(e))
    except AssertionError:
        wrong.append(traceback.format_exc())
    finally:
        inside.discard(me)

class Noisy:
    def __init__(self):
        self.me = self
    def __del__(self):
        if not ended:
            call()

def handler(*_):
    call()
    if not ended:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)  # once: a handler does not interrupt itself

ended = False
signal.signal(signal.SIGALRM, handler)
gc.set_threshold(3, 3, 3)
signal.setitimer(signal.ITIMER_REAL, 0.0002)

def other_thread():
    i = 0
    while not ended:
        i += 1
        if i % 10 == 0:
            time.sleep(0.005)  # else it makes more of them than are collected
            Noisy()
        assert store.get(f"m{i % 20}").text == str(i % 20)

thread = threading.Thread(target=other_thread)
thread.start()
n = 0
try:
    while n < 120 or inner < 120:
        n += 1
        Noisy()
        id = f"m{n % 20}"
        if n % 10 == 0:
            store.put("outer", str(n))
            assert int(store.get("outer").text) >= n
        elif n % 50 == 1:
            store.stats()
        elif n % 50 == 2:
            assert store.demote(id, to="warm")
        else:
            assert store.get(id).text == id[1:]
finally:
    ended = True
    signal.setitimer(signal.ITIMER_REAL, 0)
gc.set_threshold(700, 10, 10)
thread.join()
store.close()
assert not wrong, wrong[0]
counted = store._driver.counters.snapshot()
assert hooks == "none" or {n: hook.sums.get(n) for n in counted} == counted, (hook.sums, counted)
print("done", n, inner)
"""


def run(program: str, *args: Any, timeout_s: float = 110) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize(
    ("near", "placement", "hooks"),
    [("near", "redis", "none"), ("far", "redis", "none"), ("near", "local", "none"), ("near", "local", "hooks")],
)
def test_store_can_be_called_within_its_own_calls(
    valkey_server: TestServer, tmp_path: Path, near: str, placement: str, hooks: str
) -> None:
    out = run(PROGRAM, valkey_server.url, tmp_path, near, placement, hooks)
    assert "done" in out and "error" not in out
