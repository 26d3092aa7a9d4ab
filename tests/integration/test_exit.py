"""Interpreter exit, and a process that cannot start more threads: the store still works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_reentrance import run
from tests.servers import TestServer

BEGIN = """
import asyncio, atexit, sys, threading, _thread, traceback, os
import distier
distier.connect, distier.connect_async  # loaded; the standard library has modules that cannot be loaded at exit
url, directory = sys.argv[1:]
url = url.replace("127.0.0.1", "localhost")
settings = dict(redis__url=url, namespace="exit" + directory[-12:].replace("/", "-").replace("_", "-"), counter="estimate",
    deadline="60s", storage_tiers__cold__directory=directory)

def reported(function):
    def run():
        try:
            print(function.__name__, function(), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    return run

def all_of_it():
    assert store.put("durable", "d", durability="archived").tier
    store.put_many([distier.Item(f"m{i}", str(i)) for i in range(20)])
    n = store.archive_now()
    assert n >= 20, n
    ids = [f"m{i}" for i in range(20)]
    assert all(moved.tier == "cold" for moved in store.demote_many(ids, to="cold"))
    assert store.get("m0").text == "0"
    assert all(moved.tier == "hot" for moved in store.promote_many(ids))
    assert store.get_many(ids)["m7"].text == "7"
    store.close()
    return "done"

async def all_of_it_awaited(store):
    assert (await store.put("durable", "d", durability="archived")).tier
    await store.put_many([distier.Item(f"m{i}", str(i)) for i in range(20)])
    n = await store.archive_now()
    assert n >= 20, n
    assert (await store.demote("m1", to="cold")).tier == "cold"
    assert (await store.get("m1")).text == "1"
    await store.on("tier_change", print)
    await store.close()
    return "done"

async def opened_and_used():
    return await all_of_it_awaited(await distier.connect_async(**settings))

def in_a_new_loop():
    return asyncio.run(all_of_it_awaited(store))

def from_nothing():
    return asyncio.run(opened_and_used())
"""

AT_EXIT = {
    "sync, never used": "store = distier.connect(**settings); atexit.register(reported(all_of_it))",
    "sync, used": """
store = distier.connect(**settings)
store.put("a", "a", durability="archived")
atexit.register(reported(all_of_it))
""",
    "sync, registered before it was opened": """
atexit.register(reported(all_of_it))
store = distier.connect(**settings)
store.put("a", "a", durability="archived")
""",
    "sync, in a thread that outlives main": """
store = distier.connect(**settings)
def late():
    threading.main_thread().join()
    reported(all_of_it)()
threading.Thread(target=late).start()
""",
    "opened at exit": """
def open_and_use():
    global store
    store = distier.connect(**settings)
    return all_of_it()
atexit.register(reported(open_and_use))
""",
    "async": """
store = asyncio.run(distier.connect_async(**settings))
atexit.register(reported(in_a_new_loop))
""",
    "async, opened at exit": "atexit.register(reported(from_nothing))",
}

NO_THREADS = """
def refuse(*_, **__):
    raise RuntimeError("can't start new thread")
_thread.start_new_thread = threading._start_new_thread = refuse
if hasattr(_thread, "start_joinable_thread"):
    _thread.start_joinable_thread = threading._start_joinable_thread = refuse
"""

WITHOUT = {
    "sync": "store = distier.connect(**settings); reported(all_of_it)()",
    "async": "reported(from_nothing)()",
    "async, opened before": "reported(in_a_new_loop)()",
}


@pytest.mark.parametrize("what", AT_EXIT)
def test_store_works_during_interpreter_exit(valkey_server: TestServer, tmp_path: Path, what: str) -> None:
    out = run(BEGIN + AT_EXIT[what], valkey_server.url, tmp_path)
    assert out.rstrip().endswith("done")


@pytest.mark.parametrize("what", WITHOUT)
@pytest.mark.parametrize("placement", ["redis", "local"])
def test_store_works_without_new_threads(valkey_server: TestServer, tmp_path: Path, what: str, placement: str) -> None:
    before = "store = asyncio.run(distier.connect_async(**settings))\n" if "before" in what else ""
    local = f'settings |= dict(storage_tiers__warm__placement="{placement}", storage_tiers__warm__directory=directory + "/w")\n'
    out = run(BEGIN + local + before + NO_THREADS + WITHOUT[what], valkey_server.url, tmp_path)
    assert out.rstrip().endswith("done")
