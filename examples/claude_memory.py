"""Claude's memory tool with its files in distier: what one agent notes, another one reads. Needs the extra `anthropic`."""

import asyncio

from anthropic.lib.tools import ToolError

import distier
from distier.integrations.anthropic import AsyncDistierMemoryTool, DistierMemoryTool


async def other_agent() -> None:
    async with await distier.connect_async() as store:
        tool = AsyncDistierMemoryTool(store)  # tools=[tool] of AsyncAnthropic().beta.messages.tool_runner
        await tool.call(
            {"command": "insert", "path": "/memories/ada.md", "insert_line": 1, "insert_text": "- likes fado"}
        )


with distier.connect() as store:
    tool = DistierMemoryTool(
        store
    )  # tools=[tool] of Anthropic().beta.messages.tool_runner; the calls below are Claude's
    tool.clear_all_memory()
    print(tool.call({"command": "create", "path": "/memories/ada.md", "file_text": "# Ada\n- likes figs\n"}))
    asyncio.run(other_agent())
    print(tool.call({"command": "view", "path": "/memories/ada.md", "view_range": [1, 3]}))
    print(tool.call({"command": "view", "path": "/memories"}))
    try:
        tool.call({"command": "create", "path": "/memories/ada.md", "file_text": ""})
    except ToolError as e:  # Claude gets it as the result of the call
        print(f"refused: {e}")
    module = store.get("memories/ada.md")
    print(f"as a module: {module.text.splitlines() if module else None}")
