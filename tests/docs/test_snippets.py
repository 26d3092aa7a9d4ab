"""The commands and programs of the tutorial and the how-to pages work and print the output that the pages show.

Each page runs from its first line to its last in an empty directory that is also the home, because a reader may start
with any page.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from distier import load_config
from tests.servers import available_kinds, running_server, short_directory

from .pages import ROOT, Block, blocks, matches

PAGES = [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """The bucket of the page, on moto's server. The page names AWS; the variables replace the network that is not
    there.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
        )
        client.create_bucket(Bucket="my-bucket")
        yield keys | {"DISTIER_STORAGE_TIERS__COLD__ENDPOINT_URL": url}
    finally:
        server.stop()


@contextmanager
def own_redis() -> Iterator[dict[str, str]]:
    """The Redis of the page, at a port that is free here."""
    kinds = available_kinds()
    kind = next((kind for kind, reason in kinds.items() if not reason), None)
    if kind is None:
        pytest.skip("; ".join(kinds.values()))
    with running_server(kind, tcp=True) as server:
        yield {"DISTIER_REDIS_URL": server.url}


NEEDS = {"use-s3.md": bucket, "use-your-redis.md": own_redis}


def environment(home: Path) -> dict[str, str]:
    """A reader's environment: the programs of this environment, and no setting of the person who runs the tests."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("DISTIER_", "AWS_", "PYTHON"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), mine["PATH"]])
    return mine | {"HOME": str(home), "PATH": path, "TMPDIR": str(home)}


def run(block: Block, home: Path, env: dict[str, str]) -> str:
    """Run a block and return its output. The block must succeed."""
    argv = ["bash", "-euo", "pipefail", "-c"] if block.kind == "sh" else [sys.executable, "-c"]
    done = subprocess.run([*argv, block.text], cwd=home, env=env, text=True, capture_output=True, timeout=100)
    assert done.returncode == 0, f"line {block.line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def read_through(page: Path, home: Path, env: dict[str, str]) -> int:
    """Follow the page; return the number of blocks that were run or compared."""
    printed: str | None = None
    done = 0
    for block in blocks(page):
        if block.reason:
            printed = None
        elif block.title:
            (home / block.title).write_text(block.text)
        elif block.kind == "yaml":
            assert load_config(yaml.safe_load(block.text)), block
        elif block.kind in ("sh", "python"):
            printed = run(block, home, env)
            done += 1
        else:
            assert printed is not None, f"{page.name}:{block.line}: no block before it was run"
            if not matches(block.text, printed):
                raise AssertionError(f"{page.name}:{block.line} shows\n{block.text}\nbut it prints\n{printed}")
            printed, done = None, done + 1
    return done


@pytest.mark.skipif(available_kinds()["valkey"] != "", reason=available_kinds()["valkey"])
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_works_as_written(page: Path) -> None:
    with short_directory() as home, ExitStack() as stack:
        env = environment(home)
        env |= stack.enter_context(NEEDS[page.name]()) if page.name in NEEDS else {}
        try:
            assert read_through(page, home, env) >= 2
        finally:
            if "DISTIER_REDIS_URL" not in env:
                subprocess.run([sys.executable, "-m", "distier", "down"], cwd=home, env=env, timeout=60)


def test_page_with_different_output_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\necho one\n```\n\n```text\ntwo\n```\n")
    with pytest.raises(AssertionError, match="shows\ntwo"):
        read_through(page, tmp_path, environment(tmp_path))


def test_page_with_a_failing_command_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nfalse\necho after\n```\n")
    with pytest.raises(AssertionError, match="line 1: exit code 1"):
        read_through(page, tmp_path, environment(tmp_path))


def test_page_with_an_unknown_setting_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```yaml\nworker:\n  pause: 1s\n```\n")
    with pytest.raises(ValueError, match="pause"):
        read_through(page, tmp_path, environment(tmp_path))


@pytest.mark.parametrize("text", ["```ruby\nputs\n```\n", "```sh\necho\n", "```sh extra\necho\n```\n"])
def test_unknown_fence_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        blocks(page)


def test_dots_match_variable_output() -> None:
    assert matches("a ... c\n...\nz\n", "a b c\nx\ny\nz\n")
    assert matches("a\n...\nz\n", "a\nz\n")
    assert not matches("a ... c\n", "a b\nc\n")
    assert not matches("a\n", "a\nb\n")
