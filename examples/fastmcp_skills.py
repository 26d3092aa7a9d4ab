"""FastMCP: its clients get skills from modules, which any process may change. Needs the package `fastmcp`."""

import asyncio

from fastmcp import Client, FastMCP
from fastmcp.skills import SkillsClientExtension

import distier
from distier.integrations.fastmcp import DistierSkillProvider

TEXT = "---\nname: pdf\ndescription: {0}\n---\nRead forms.md first.\n"
URI = "skill://pdf/SKILL.md"


async def put(store: distier.AsyncStore, description: str) -> None:
    """Write the skill. `distier put skills/` does the same for a directory: the front matter goes into the record."""
    meta = {"name": "pdf", "description": description}
    await store.put("skills/pdf/SKILL.md", TEXT.format(description), meta=meta)


async def main() -> None:
    async with await distier.connect_async() as store:
        await put(store, "Fill in PDF forms")
        await store.put("skills/pdf/forms.md", "# Fields\n")

        server = FastMCP("skills", providers=[DistierSkillProvider(store)])
        server.provider_error_strategy = "raise"  # a server that is down is an error, and not an empty list
        async with Client(server, extensions=[SkillsClientExtension()]) as client:
            for skill in await client.list_skills():
                print(f"{skill.uri}: {skill.frontmatter.description}, {len(skill.resources)} files")
            skill = await client.read_skill(URI)  # it verifies the digest of each file
            print(f"forms.md has {skill.files['forms.md']!r}")
            await put(store, "Fill in and sign PDF forms")
            print(f"changed: {(await client.read_skill(URI)).description}")


asyncio.run(main())
