"""Skills: distier's catalogue and its provider for FastMCP next to FastMCP's loader of directories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import distier
from benchmarks.ratios import AsyncDo, arace, race
from benchmarks.stores.opened import FAR, HEAD, NEAR, Absent, Effort, add_race, connected, package, settings, text
from benchmarks.table import Table
from distier import Item
from distier.client.skills import list_skills
from distier.domain.frontmatter import described
from tests.servers import TestServer, running_server

SKILLS = 100
ONCE, EACH_TIME = "SkillsDirectoryProvider", "SkillsDirectoryProvider, reload=True"
READ = "skills/skill-042/SKILL.md"


def write_skills(home: Path, skills: int = SKILLS) -> Path:
    """Write skills of two files, and return their directory."""
    for n in range(skills):
        name = f"skill-{n:03}"
        directory = home / "skills" / name
        (directory / "references").mkdir(parents=True)
        (directory / "SKILL.md").write_text(f"---\nname: {name}\ndescription: Does step {n}\n---\n{text(n)}")
        (directory / "references" / "MORE.md").write_text(text(n + skills))
    return home / "skills"


def store_skills(store: distier.Store, directory: Path) -> None:
    """Put the files as `distier put` does: what describes a skill is in the record of its `SKILL.md`."""
    items = []
    for path in sorted(directory.rglob("*.md")):
        content = path.read_text()
        keywords, meta = described(content) if path.name == "SKILL.md" else ((), {})
        items.append(Item(f"skills/{path.relative_to(directory).as_posix()}", content, keywords=keywords, meta=meta))
    store.put_many(items)


@asynccontextmanager
async def of_distier(server: TestServer, home: Path, near: bool) -> AsyncIterator[Any]:
    made = package("distier.integrations.fastmcp").DistierSkillProvider
    async with await distier.connect_async({}, **settings(server, home, near=near)) as store:
        yield made(store)


def scan(directory: Path, reload: bool = False) -> Any:
    return package("fastmcp.skills.provider").SkillsDirectoryProvider(directory, reload=reload)


@asynccontextmanager
async def client_of(provider: Any) -> AsyncIterator[Any]:
    """A server of FastMCP with one provider, and a client of it in this process."""
    fastmcp, skills = package("fastmcp"), package("fastmcp.skills")
    server = fastmcp.FastMCP("skills", providers=[provider])
    server.provider_error_strategy = "raise"
    async with fastmcp.Client(server, extensions=[skills.SkillsClientExtension()]) as client:
        yield client


def skill_loaders(effort: Effort, left_out: dict[str, str]) -> Table:
    table = Table(f"Skills: {SKILLS} of two files", HEAD)
    with running_server("valkey") as server, TemporaryDirectory() as tmp:
        home = Path(tmp)
        directory = write_skills(home)
        for near in (True, False):
            with connected(server, home, near=near) as store:
                store_skills(store, directory)
        catalogue(table, server, home, effort, left_out)
        try:
            asyncio.run(served(table, server, home, effort))
        except Absent as e:
            left_out["FastMCP's client and server"] = str(e)
    table.notes = (
        "The catalogue is what `list_skills` returns, and what FastMCP's loader reads from the directory when it starts. The "
        "others are requests of FastMCP's client to a server in the same process, whose provider is distier's or FastMCP's. "
        "Without `reload=True` FastMCP's loader keeps in memory what it read at its start. distier's provider lists the "
        "records of all skills for each request, also to read one file, so that the next request sees a change by any process."
    )
    return table


def catalogue(table: Table, server: TestServer, home: Path, effort: Effort, left_out: dict[str, str]) -> None:
    with connected(server, home, near=True) as store:
        assert len([each for each in list_skills(store, "skills/") if not each.problem]) == SKILLS
        contenders: dict[str, Callable[[], object]] = {"distier": lambda: list(list_skills(store, "skills/"))}
        try:
            scan(home / "skills")
            contenders[ONCE] = lambda: scan(home / "skills")
        except Absent as e:
            left_out[ONCE] = str(e)
            print(f"   {ONCE} is not measured: {e}", flush=True)
        found = race(contenders, rounds=effort.rounds, calls=effort.calls)
        add_race(table, f"catalogue of {SKILLS}", found)


async def served(table: Table, server: TestServer, home: Path, effort: Effort) -> None:
    async with AsyncExitStack() as stack:
        providers: dict[str, Any] = {
            NEAR: await stack.enter_async_context(of_distier(server, home, True)),
            FAR: await stack.enter_async_context(of_distier(server, home, False)),
            ONCE: scan(home / "skills"), EACH_TIME: scan(home / "skills", reload=True),
        }  # fmt: skip
        clients = {name: await stack.enter_async_context(client_of(each)) for name, each in providers.items()}

        async def listed(client: Any) -> int:
            return len(await client.list_skills(cache_mode="refresh"))

        async def read(client: Any) -> str:
            [content] = await client.read_resource(f"skill://{READ.removeprefix('skills/')}")
            return str(content.text)

        wanted = (home / READ).read_text()
        for name, client in clients.items():
            assert (await listed(client), await read(client)) == (SKILLS, wanted), name
        requests: dict[str, Callable[[Any], Awaitable[object]]] = {
            f"list {SKILLS} through FastMCP": listed, "read one through FastMCP": read,
        }  # fmt: skip
        for operation, request in requests.items():
            contenders: dict[str, AsyncDo] = {name: partial(request, client) for name, client in clients.items()}
            add_race(table, operation, await arace(contenders, rounds=effort.rounds, calls=effort.calls))
