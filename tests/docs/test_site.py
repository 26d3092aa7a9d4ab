"""The documentation site is built, and a broken link, a page outside of the menu or an unknown name in the API is an
error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .pages import ROOT

MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (`make site` does it)")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    # The variable silences an advertisement. `--quiet` is not used because warnings would not be counted.
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(argv, cwd=root, env=env, text=True, capture_output=True, timeout=100)


def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    store = (tmp_path / "reference" / "store" / "index.html").read_text("utf-8")
    for call in ("put_many", "promote", "if_version", ">NotFound<"):
        assert call in store
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize(
    ("page", "text", "message"),
    [
        ("index.md", "[x](nowhere.md)", "nowhere.md"),
        ("index.md", "[x](ERRORS.md#nowhere)", "nowhere"),
        ("lost.md", "# Lost", "lost.md"),
        ("reference/values.md", "::: distier.Nobody", "distier.Nobody"),
    ],
    ids=["link", "anchor", "page outside of the menu", "name"],
)
def test_site_with_a_broken_link_page_or_name_is_refused(tmp_path: Path, page: str, text: str, message: str) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "distier").symlink_to(ROOT / "distier")
    with (tmp_path / "docs" / page).open("a") as file:
        file.write(f"\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and message in done.stdout + done.stderr
