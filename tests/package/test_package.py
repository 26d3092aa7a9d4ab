"""The release works without the source tree: the wheel, the sdist, and the installed command."""

from __future__ import annotations

import json
import re
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import PurePosixPath

import pytest

import distier

from .conftest import ROOT, Built, Installed

pytestmark = pytest.mark.timeout(900)

SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "distier").rglob("*") if path.is_file()}
SHIPPED = {name for name in SOURCES if not name.endswith(".pyc")}


def wheel_names(built: Built) -> set[str]:
    with zipfile.ZipFile(built.wheel) as wheel:
        return set(wheel.namelist())


def sdist_names(built: Built) -> set[str]:
    """The names without their common top directory."""
    with tarfile.open(built.sdist) as sdist:
        return {PurePosixPath(*PurePosixPath(m.name).parts[1:]).as_posix() for m in sdist.getmembers() if m.isfile()}


def test_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    names = wheel_names(built)
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == SHIPPED
    assert {name.split("/", 1)[1] for name in info} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_sdist_holds_what_the_wheel_is_built_from(built: Built) -> None:
    others = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert sdist_names(built) == SHIPPED | others


def test_scripts_and_type_marker_are_shipped(built: Built) -> None:
    scripts = {name for name in SHIPPED if name.endswith(".lua")}
    assert len(scripts) > 20
    for names in (wheel_names(built), sdist_names(built)):
        assert scripts <= names and "distier/py.typed" in names


def test_version_is_written_once() -> None:
    """`distier.__version__` is the source: the build reads it, and the installed metadata gets it from there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "distier/__init__.py"
    assert metadata.version("distier") == distier.__version__, "installed from another version: run `make` again"


def test_metadata_names_version_license_and_supported_pythons(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        found = Parser().parsestr(wheel.read(name).decode())
    assert found["Version"] == distier.__version__
    assert (found["License-Expression"], found["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert {"tokens", "minify"} <= set(found.get_all("Provides-Extra", []))


def test_installed_command_reports_its_version(installed: Installed) -> None:
    done = installed.run("distier", "--version")
    assert (done.returncode, done.stdout) == (0, f"distier {distier.__version__}\n"), done.stderr


def test_installed_package_is_imported_from_its_environment(installed: Installed) -> None:
    done = installed.run("python", "-c", "import distier; print(distier.__file__)")
    assert done.stdout.startswith(str(installed.venv)), done.stdout + done.stderr


def test_installed_command_keeps_a_module_in_an_embedded_server(installed: Installed) -> None:
    text = "# PDF\n\nHow to fill forms.\n"
    put = installed.run("distier", "put", "skills/pdf", "-", stdin=text)
    assert put.returncode == 0, put.stderr
    got = installed.run("distier", "get", "skills/pdf")
    assert (got.returncode, got.stdout) == (0, text), got.stderr
    missing = installed.run("distier", "get", "skills/none")
    assert missing.returncode == 3 and re.search(r"skills/none", missing.stderr)


def test_installed_demo_passes_its_own_checks(installed: Installed) -> None:
    done = installed.run("distier", "demo", "--seconds", "1", "--modules", "60", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["good"] is True and report["modules"] == 60
