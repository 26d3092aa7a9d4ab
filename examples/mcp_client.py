"""An MCP client of `distier mcp`: it finds a skill, loads it, and writes with a version. Needs the extra `mcp`."""

import asyncio
import os
import sys

from mcp import Client
from mcp.client.stdio import StdioServerParameters

import distier

SERVER = StdioServerParameters(command=sys.executable, args=["-m", "distier", "mcp"], env=dict(os.environ))


async def main() -> None:
    async with Client(SERVER) as client:  # it starts the server, as Claude Code and other clients do
        found = (await client.call_tool("list_skills", {})).structured_content
        print(f"skills: {[skill['description'] for skill in found['skills']] if found else None}")
        skill = await client.call_tool("read_skill", {"id": "skills/pdf"})
        print(skill.content[0].text.splitlines()[-1])  # type: ignore[union-attr]

        note = {"id": "notes/forms", "text": "The tax form has 12 fields.\n", "if_version": "0"}
        made = await client.call_tool("write_module", note)
        print(f"written as version {made.structured_content['version'] if made.structured_content else None}")
        again = await client.call_tool("write_module", note)  # another agent would get the same
        print(f"a second write is refused: {again.is_error}")


SKILL = "---\nname: pdf\ndescription: Fill in PDF forms\n---\nRead the form first.\n"
with distier.connect() as store:
    store.put("skills/pdf/SKILL.md", SKILL)
    asyncio.run(main())
    module = store.get("notes/forms")
    print(f"as a module: {module.text.strip() if module else None}")
