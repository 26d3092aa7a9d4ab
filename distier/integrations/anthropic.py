"""Claude's memory tool in distier: `DistierMemoryTool` and `AsyncDistierMemoryTool`. Needs the extra `anthropic`.

    client.beta.messages.run_tools(model=..., messages=[...], tools=[DistierMemoryTool(distier.connect())]).until_done()

The file `/memories/notes.txt` is the module `memories/notes.txt`. A directory exists while a file is in it. Results and errors
have the words of Anthropic's own tool for local files, which Claude knows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from anthropic.lib.tools import ToolError
from anthropic.tools.memory import BetaAbstractMemoryTool, BetaAsyncAbstractMemoryTool
from anthropic.types.beta import (
    BetaCacheControlEphemeralParam,
    BetaMemoryTool20250818CreateCommand,
    BetaMemoryTool20250818DeleteCommand,
    BetaMemoryTool20250818InsertCommand,
    BetaMemoryTool20250818RenameCommand,
    BetaMemoryTool20250818StrReplaceCommand,
    BetaMemoryTool20250818ViewCommand,
)

from distier.client import AsyncStore, Store
from distier.domain.module import Landed, Module
from distier.errors import Conflict, DistierError
from distier.integrations.memory_text import TOP, Path, inserted, listing, numbered, parsed, replaced, text_of
from distier.integrations.shared import Bridge, Ids, Steps, delete, delete_all, get_all, list_files, put_all
from distier.plans.put.prepare import Expected


class _Memories:
    """The commands, for both kinds of tool."""

    def __init__(self, store: Store | AsyncStore, root: str) -> None:
        self._bridge, self._ids = Bridge(store), Ids(root)

    def run(self, steps: Steps[str]) -> str:
        try:
            return self._bridge.run(steps)
        except DistierError as e:
            raise ToolError(str(e)) from e

    async def arun(self, steps: Steps[str]) -> str:
        try:
            return await self._bridge.arun(steps)
        except DistierError as e:
            raise ToolError(str(e)) from e

    def view(self, command: BetaMemoryTool20250818ViewCommand) -> Steps[str]:
        path = parsed(command.path)
        if module := (yield from self._get(path)):
            return numbered(command.path, text_of(module, command.path), command.view_range)
        below = yield from self._below(path)
        if path and not below:
            raise ToolError(f"The path {command.path} does not exist. Please provide a valid path.")
        return listing(command.path, {each[len(path) :]: size for each, (_, size) in below.items()})

    def create(self, command: BetaMemoryTool20250818CreateCommand) -> Steps[str]:
        path = parsed(command.path)
        if not path or (yield from self._below(path)):
            raise ToolError(f"File {command.path} already exists")
        try:
            yield from put_all([self._ids.item(path, command.file_text, None, if_version=0)])
        except Conflict as e:
            raise ToolError(f"File {command.path} already exists") from e
        return f"File created successfully at: {command.path}"

    def str_replace(self, command: BetaMemoryTool20250818StrReplaceCommand) -> Steps[str]:
        text = yield from self._edit(
            command.path, lambda text: replaced(command.path, text, command.old_str, command.new_str)
        )
        return text

    def insert(self, command: BetaMemoryTool20250818InsertCommand) -> Steps[str]:
        text = yield from self._edit(
            command.path, lambda text: inserted(command.path, text, command.insert_line, command.insert_text)
        )
        return text

    def delete(self, command: BetaMemoryTool20250818DeleteCommand) -> Steps[str]:
        path = parsed(command.path)
        if not path:
            raise ToolError(f"Cannot delete the {TOP} directory itself")
        if not (yield from delete(self._ids.id(path))):
            below = yield from self._below(path)
            if not (yield from delete_all([id for id, _ in below.values()])):
                raise ToolError(f"The path {command.path} does not exist")
        return f"Successfully deleted {command.path}"

    def rename(self, command: BetaMemoryTool20250818RenameCommand) -> Steps[str]:
        old, new = parsed(command.old_path), parsed(command.new_path)
        if not old:
            raise ToolError(f"Cannot rename the {TOP} directory itself")
        if not new or (yield from self._get(new)) or (yield from self._below(new)):
            raise ToolError(f"The destination {command.new_path} already exists")
        if new[: len(old)] == old:
            raise ToolError(f"Cannot rename {command.old_path} to {command.new_path}, which is inside it")
        moved = yield from self._move(old, new)
        if not moved:
            for each in (yield from self._below(old)):
                moved |= yield from self._move(each, new + each[len(old) :])
        if not moved:
            raise ToolError(f"The path {command.old_path} does not exist")
        return f"Successfully renamed {command.old_path} to {command.new_path}"

    def clear(self) -> Steps[str]:
        below = yield from self._below(())
        yield from delete_all([id for id, _ in below.values()])
        return "All memory cleared"

    def _get(self, path: Path) -> Steps[Module | None]:
        id = self._ids.id(path)
        return (yield from get_all([id]))[id] if path else None

    def _below(self, path: Path) -> Steps[dict[Path, tuple[str, int]]]:
        """Return the id and size of each file below a directory, by its path."""
        files = yield from list_files(self._ids, path)
        return {found: (row.id, row.size_bytes) for found, row in files.items() if len(found) > len(path)}

    def _edit(self, name: str, change: Callable[[str], tuple[str, str]]) -> Steps[str]:
        """Change a file, again from its new content if another agent wrote it meanwhile."""
        path = parsed(name)
        while True:
            module = yield from self._get(path)
            if module is None:
                if not path or (yield from self._below(path)):
                    raise ToolError(f"The path {name} is not a file.")
                raise ToolError(f"The path {name} does not exist. Please provide a valid path.")
            text, result = change(text_of(module, name))
            with suppress(Conflict):
                yield from self._put(path, text.encode(), module, if_version=module.version)
                return result

    def _put(self, path: Path, content: bytes, like: Module, *, if_version: Expected) -> Steps[Landed]:
        return (yield from put_all([self._ids.item_like(path, content, like, if_version=if_version)]))[0]

    def _move(self, old: Path, new: Path) -> Steps[bool]:
        """Write the new file, then delete the old one, if it still has what was written."""
        module = yield from self._get(old)
        if module is None:
            return False
        try:
            landed = yield from self._put(new, module.content, module, if_version=0)
        except Conflict as e:
            raise ToolError(f"The destination {TOP}/{'/'.join(new)} already exists") from e
        try:
            yield from delete(self._ids.id(old), module.version)
        except Conflict as e:
            with suppress(Conflict):
                yield from delete(self._ids.id(new), landed.version)
            raise ToolError(f"{TOP}/{'/'.join(old)} was changed by another agent meanwhile: rename it again") from e
        return True


class DistierMemoryTool(BetaAbstractMemoryTool):
    """The memory tool with its files in distier, for `Anthropic`.

    Args:
        store: what `distier.connect()` returned.
        root: the first segments of the ids. Agents with the same root share their memories.
        cache_control: as for the tools of the SDK.
    """

    def __init__(
        self, store: Store, *, root: str = "memories", cache_control: BetaCacheControlEphemeralParam | None = None
    ) -> None:
        super().__init__(cache_control=cache_control)
        self._memories = _Memories(store, root)

    def view(self, command: BetaMemoryTool20250818ViewCommand) -> str:
        """Show a file with line numbers, or the files of a directory."""
        return self._memories.run(self._memories.view(command))

    def create(self, command: BetaMemoryTool20250818CreateCommand) -> str:
        """Create a file. Only one of several agents creates it."""
        return self._memories.run(self._memories.create(command))

    def str_replace(self, command: BetaMemoryTool20250818StrReplaceCommand) -> str:
        """Replace a text that occurs once."""
        return self._memories.run(self._memories.str_replace(command))

    def insert(self, command: BetaMemoryTool20250818InsertCommand) -> str:
        """Insert text after a line."""
        return self._memories.run(self._memories.insert(command))

    def delete(self, command: BetaMemoryTool20250818DeleteCommand) -> str:
        """Delete a file, or a directory with its files."""
        return self._memories.run(self._memories.delete(command))

    def rename(self, command: BetaMemoryTool20250818RenameCommand) -> str:
        """Rename a file, or a directory file by file."""
        return self._memories.run(self._memories.rename(command))

    def clear_all_memory(self) -> str:
        """Delete all files of this root."""
        return self._memories.run(self._memories.clear())


class AsyncDistierMemoryTool(BetaAsyncAbstractMemoryTool):
    """The memory tool with its files in distier, for `AsyncAnthropic`. As `DistierMemoryTool`; also takes an `AsyncStore`."""

    def __init__(
        self, store: Store | AsyncStore, *, root: str = "memories",
        cache_control: BetaCacheControlEphemeralParam | None = None,
    ) -> None:  # fmt: skip
        super().__init__(cache_control=cache_control)
        self._memories = _Memories(store, root)

    async def view(self, command: BetaMemoryTool20250818ViewCommand) -> str:
        return await self._memories.arun(self._memories.view(command))

    async def create(self, command: BetaMemoryTool20250818CreateCommand) -> str:
        return await self._memories.arun(self._memories.create(command))

    async def str_replace(self, command: BetaMemoryTool20250818StrReplaceCommand) -> str:
        return await self._memories.arun(self._memories.str_replace(command))

    async def insert(self, command: BetaMemoryTool20250818InsertCommand) -> str:
        return await self._memories.arun(self._memories.insert(command))

    async def delete(self, command: BetaMemoryTool20250818DeleteCommand) -> str:
        return await self._memories.arun(self._memories.delete(command))

    async def rename(self, command: BetaMemoryTool20250818RenameCommand) -> str:
        return await self._memories.arun(self._memories.rename(command))

    async def clear_all_memory(self) -> str:
        return await self._memories.arun(self._memories.clear())
