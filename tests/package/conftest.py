"""The built wheel and sdist, and virtual environments that contain only the wheel and its dependencies.

Each is made once per session. Building and installing need a package index. If none can be reached, the tests are
skipped with pip's own message.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import short_directory

ROOT = Path(__file__).parent.parent.parent


def _works(python: str) -> bool:
    """Return whether this Python creates virtual environments. A shim of pyenv is on PATH even if that Python is not
    installed.
    """
    return subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, timeout=60).returncode == 0


# This Python, and each other supported version on this machine.
PYTHONS = {f"{major}.{minor}": path for major, minor in ((3, 11), (3, 12), (3, 13), (3, 14))
           if (path := shutil.which(f"python{major}.{minor}")) and _works(path)}  # fmt: skip
PYTHONS |= {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
INSTALL_S_MAX = 500


@dataclass(frozen=True)
class Built:
    """The two files of a release."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Installed:
    """A virtual environment outside of the source tree. Commands run in their own directory and home."""

    venv: Path
    directory: Path

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "TMPDIR": str(self.directory)}
        env |= {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        program = self.venv / "bin" / words[0]
        return subprocess.run(
            [program, *words[1:]], cwd=self.directory, env=env, input=stdin, text=True, capture_output=True, timeout=300
        )


def pip(python: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pip with its configuration on this machine, but without the source tree's settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    argv = [str(python), "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(argv, cwd=ROOT, env=env, text=True, capture_output=True, timeout=INSTALL_S_MAX)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test if pip cannot get the build backend."""
    into = tmp_path_factory.mktemp("index")
    asked = pip(sys.executable, "download", "--quiet", "--no-deps", "--dest", str(into), "hatchling>=1.27")
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        pytest.skip(f"no package index is reachable: {last}")


@pytest.fixture(scope="session")
def built(index: None, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of this tree, and the wheel that is built from that sdist."""
    into = tmp_path_factory.mktemp("dist")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", into, ROOT], cwd=into, env=env, text=True, capture_output=True,
        timeout=INSTALL_S_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = into.glob("*.tar.gz"), into.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="session", params=PYTHONS)
def installed(request: pytest.FixtureRequest, built: Built) -> Iterator[Installed]:
    """The wheel in a clean environment of each supported Python that is on PATH."""
    python = PYTHONS[request.param]
    with short_directory() as directory:  # a server's socket will be below this directory
        venv = directory / "venv"
        subprocess.run([python, "-m", "venv", venv], check=True, timeout=120)
        _install(venv, built.wheel)
        here = Installed(venv, directory)
        yield here
        here.run("distier", "down")


def _install(venv: Path, wheel: Path) -> None:
    words: Sequence[str] = ("install", "--quiet", "-c", "constraints.txt", str(wheel))
    done = pip(venv / "bin" / "python", *words)
    assert done.returncode == 0, done.stderr
