"""The tables of the token counter are loaded soon after `connect`, in the background."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distier import connect, connect_async
from distier.client import connect_once, preload, resolve
from distier.domain.tokens import O200k
from tests.servers import poll

pytest.importorskip("bpe_openai")


@pytest.fixture
def settings(valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(preload, "LOAD_AFTER_S", 0.02)
    return {
        "near__enabled": False,
        "deadline": "60s",
        "redis__url": valkey_url,
        "storage_tiers__cold__directory": tmp_path,
        "namespace": "t",
    }


def test_counter_is_loaded_without_a_put(settings: dict[str, Any]) -> None:
    counter = O200k()
    with connect({}, counter=counter, **settings):
        poll(lambda: counter.is_loaded, what="a loaded counter")


async def test_counter_of_an_asyncio_store_is_loaded_without_a_put(settings: dict[str, Any]) -> None:
    counter = O200k()
    async with await connect_async({}, counter=counter, **settings):
        poll(lambda: counter.is_loaded, what="a loaded counter")


@pytest.mark.parametrize("end", ["close", "drop"])
def test_store_that_ended_before_loads_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(preload, "LOAD_AFTER_S", 60.0)
    ended = _watch_thread(monkeypatch)
    counter = O200k()
    store = connect({}, counter=counter, **settings)
    if end == "close":
        store.close()
    del store
    poll(lambda: bool(ended), what="the end of the thread")
    assert not counter.is_loaded


def _watch_thread(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that is filled when the thread ends."""
    ended: list[None] = []
    load_later: Callable[..., None] = preload._load_later

    def watched(*args: Any) -> None:
        load_later(*args)
        ended.append(None)

    monkeypatch.setattr(preload, "_load_later", watched)
    return ended


def test_command_and_own_counter_are_not_loaded(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(preload, "_load_later", lambda *args: started.append(args))

    class Own:
        name = "own"

        def load(self) -> None:
            raise AssertionError("loaded")

        def count(self, content: bytes) -> int:
            return 1

    with connect({}, counter=Own(), **settings), connect_once(resolve({}, **settings)):
        assert started == []


def test_put_in_a_forked_child_counts(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has no thread that loads, and finds no lock of one."""
    monkeypatch.setattr(preload, "LOAD_AFTER_S", 60.0)
    with connect({}, counter=O200k(), **settings) as store:
        child = os.fork()
        if child == 0:
            os._exit(0 if store.put("a", "some text").tokens == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


_EXIT = """
import sys, distier
from distier.client import preload
preload.LOAD_AFTER_S = float(sys.argv[3])
store = distier.connect(sys.argv[1], storage_tiers__cold__directory=sys.argv[2], namespace="t")
store.put("a", "text", tokens=1)
"""


@pytest.mark.parametrize("delay_s", [0.0, 60.0])
def test_interpreter_exits_while_the_thread_waits_or_loads(settings: dict[str, Any], delay_s: float) -> None:
    url, directory = settings["redis__url"], str(settings["storage_tiers__cold__directory"])
    argv = [sys.executable, "-c", _EXIT, url, directory, str(delay_s)]
    found = subprocess.run(argv, capture_output=True, text=True, timeout=50)
    assert (found.returncode, found.stderr) == (0, "")


def test_tables_are_loaded_without_the_package(tmp_path: Path) -> None:
    """The package takes a second and 100 MB more. A program may import it afterwards."""
    program = (
        "import sys; from distier.domain.tokens import token_counter; n = token_counter('o200k').count(b'hello world')\n"
        "assert n == 2 and 'bpe_openai' not in sys.modules\n"
        "import bpe_openai; assert len(bpe_openai.get_encoding('o200k_base').encode('hello world')) == 2\n"
        "from bpe_openai import _bindings; assert _bindings.tokenizer_for_encoding('o200k_base').count('a b') == 2"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
