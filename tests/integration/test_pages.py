"""Commands of the documentation, run exactly as the pages show them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from distier import Store, connect
from distier.plans.fleet.packing import pack_all

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(shutil.which("xz") is None, reason="there is no xz")
def test_shell_loop_of_the_archive_page_restores_every_module(redis_url: str, tmp_path: Path):
    ids = ["same", "a/same", "b/same", "a", "meta.json", "a b/\u00fc", "x" * 230, "@odd/@"]
    with connect({"counter": "estimate"}, redis__url=redis_url, namespace="team", near__enabled=False,
                 storage_tiers__cold__directory=tmp_path / "archive") as store:  # fmt: skip
        put(store, ids, "old")
        store.put("gone", b"x", content_type="text/markdown")
        store.archive_now()
        put(store, ids[2:], "new")
        store.delete("gone")
        store.archive_now()
        packed = pack_all(store.space, min_age_ms=-(10**15), everything=True)
        assert store.run(packed, deadline_s=60).members == len(ids)
        put(store, ids[:2], "new")  # their last versions are objects, and there are older ones in the pack
        store.archive_now()
    page = (ROOT / "docs" / "ARCHIVE.md").read_text("utf-8")
    loop = "\n".join(re.findall(r"^    ((?:out=|all=| *cd | *cp | *find |    |done).*)$", page, re.MULTILINE))
    assert loop.startswith("out=") and loop.endswith("done")
    subprocess.run(["sh", "-eu", "-c", loop], cwd=tmp_path, check=True, timeout=60)
    found = sorted(path.read_bytes() for path in (tmp_path / "out").rglob("@.md"))
    assert found == sorted(f"new {id}".encode() for id in ids)
    assert (tmp_path / "out" / "a" / "same" / "@.md").read_bytes() == b"new a/same"


def put(store: Store, ids: list[str], age: str) -> None:
    for id in ids:
        store.put(id, f"{age} {id}".encode(), content_type="text/markdown")
