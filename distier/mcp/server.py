"""The server: what it answers to each request of the protocol."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from distier.client import AsyncStore
from distier.domain.described import Described
from distier.domain.module import Module
from distier.domain.skill import is_skill_file
from distier.errors import DistierError, Invalid
from distier.mcp.changes import SUBSCRIBED_MAX, Changes
from distier.mcp.skills import Broken, Catalogue, Skill, children
from distier.mcp.tools import Refused, Tools
from distier.mcp.uris import MODULE, SKILL, id_of, module_uri, skill_uri

SKILLS = "io.modelcontextprotocol/skills"
PAGE = 100
SKILLS_PAGE = 50
COMPLETIONS = 100
FRESH = CacheHint(ttl_ms=2_000)
"""How long a client may use an answer without asking: as long as a near cache may. Changes are pushed to who listens."""
STABLE = CacheHint(ttl_ms=3_600_000, scope="public")
DIRECTORY = "inode/directory"
PROMPTS = "prompts/"
"""Modules with this prefix are prompts."""
INSTRUCTIONS = (
    "A shared cache of modules: skills, prompts, documents, code and memories, each with an id such as skills/pdf/SKILL.md. "
    "Find them with search_modules or list_modules, read them with read_module, and read a skill with read_skill before you do "
    "what it is for. fit_modules chooses what fits into a budget of tokens. What you write, every other agent can read."
)
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


class SkillsParams(types.PaginatedRequestParams):
    """Parameters of `skills/list`."""


class SkillParams(types.RequestParams):
    """Parameters of `skills/get`."""

    uri: str


class DirectoryParams(types.PaginatedRequestParams):
    """Parameters of `resources/directory/read`."""

    uri: str


class Served:
    """An MCP server of a namespace. `start` and `stop` begin and end the notifications."""

    def __init__(self, store: AsyncStore, *, write: bool) -> None:
        self._store = store
        self._skills = Catalogue(store)
        self._tools = Tools(store, self._skills, write=write)
        self._changes = Changes(store)
        self._listen = ListenHandler(self._changes.bus)
        self.server: Server[Any] = Server(
            "distier", version=version("distier"), title="distier", instructions=INSTRUCTIONS,
            cache_hints={
                "tools/list": STABLE, "resources/templates/list": STABLE, "resources/list": FRESH, "resources/read": FRESH,
                "prompts/list": FRESH,
            },
            on_list_tools=self._list_tools, on_call_tool=self._call_tool, on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates, on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe, on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._listen, on_list_prompts=self._list_prompts, on_get_prompt=self._get_prompt,
            on_completion=self._complete,
        )  # fmt: skip
        self.server.extensions[SKILLS] = {"directoryRead": True}
        self.server.add_request_handler("skills/list", SkillsParams, self._list_skills)
        self.server.add_request_handler("skills/get", SkillParams, self._get_skill)
        self.server.add_request_handler("resources/directory/read", DirectoryParams, self._read_directory)

    def options(self) -> Any:
        """Return the options with which a client of an older revision is greeted."""
        return self.server.create_initialization_options(NotificationOptions(resources_changed=True))

    async def start(self) -> None:
        """Begin to notify clients of changes."""
        await self._changes.start()

    def stop(self) -> None:
        """End all streams of notifications."""
        self._changes.stop()
        self._listen.close()

    # -- tools ---------------------------------------------------------------------------------------------------------

    async def _list_tools(self, ctx: Any, params: Any) -> types.ListToolsResult:
        self._meet(ctx)
        return types.ListToolsResult(tools=[
            types.Tool(
                name=tool.name, title=tool.title, description=tool.description, input_schema=tool.schema,
                annotations=types.ToolAnnotations(
                    title=tool.title, read_only_hint=not tool.writes, destructive_hint=tool.destroys,
                    idempotent_hint=not tool.writes, open_world_hint=False,
                ),
            )
            for tool in self._tools.by_name.values()
        ])  # fmt: skip

    async def _call_tool(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        self._meet(ctx)
        try:
            output = await self._tools.call(params.name, params.arguments or {})
        except KeyError:
            names = ", ".join(self._tools.by_name)
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name!r}; the tools are {names}") from None
        except Refused as e:
            return types.CallToolResult(content=[types.TextContent(type="text", text=str(e))], is_error=True)
        told = json.dumps(output.data, ensure_ascii=False)
        texts = [told] if output.text is None else [output.text, told]
        content: list[Any] = [types.TextContent(type="text", text=text) for text in texts]
        return types.CallToolResult(content=content, structured_content=dict(output.data))

    # -- resources -----------------------------------------------------------------------------------------------------

    async def _list_resources(self, ctx: Any, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        self._meet(ctx)
        page = await self._page("", params)
        return types.ListResourcesResult(
            resources=[_resource(module, module_uri(module.id)) for module in page.modules], next_cursor=page.after
        )

    async def _page(self, prefix: str, params: Any, limit: int = PAGE) -> Any:
        cursor = getattr(params, "cursor", None) or ""
        try:
            return await self._store.page(prefix, after=cursor, limit=limit)
        except Invalid as e:
            raise MCPError(types.INVALID_PARAMS, f"the cursor is not one of this server: {e}") from e
        except DistierError as e:
            raise _failed(e) from e

    async def _list_templates(self, ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=[
            types.ResourceTemplate(name="module", title="A module by its id", uri_template=MODULE + "{+id}",
                                   description="The content of a module."),
            types.ResourceTemplate(name="skill", title="A file of a skill", uri_template=SKILL + "{+path}",
                                   description="A file of a skill: its SKILL.md, or another file in its directory."),
        ])  # fmt: skip

    async def _read_resource(self, ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        self._meet(ctx)
        uri = str(params.uri)
        id = id_of(uri)
        if id is None:
            raise MCPError(types.INVALID_PARAMS, f"{uri!r} is not a URI of this server: {MODULE}<id> or {SKILL}<path>")
        try:
            module = await self._store.get(id)
        except Invalid as e:
            raise MCPError(types.INVALID_PARAMS, str(e)) from e
        except DistierError as e:
            raise _failed(e) from e
        if module is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no module {id!r}", {"uri": uri})
        return types.ReadResourceResult(contents=[_contents(module, uri)])

    async def _subscribe(self, ctx: Any, params: types.SubscribeRequestParams) -> types.EmptyResult:
        uris = self._changes.meet(ctx.session)
        if len(uris) >= SUBSCRIBED_MAX:
            raise MCPError(types.INVALID_PARAMS, f"a session may subscribe to {SUBSCRIBED_MAX:,} resources")
        uris.add(str(params.uri))
        return types.EmptyResult()

    async def _unsubscribe(self, ctx: Any, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self._changes.meet(ctx.session).discard(str(params.uri))
        return types.EmptyResult()

    def _meet(self, ctx: Any) -> None:
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            self._changes.meet(ctx.session)

    # -- skills --------------------------------------------------------------------------------------------------------

    async def _list_skills(self, ctx: Any, params: SkillsParams) -> dict[str, Any]:
        try:
            found, after = await self._skills.page("", params.cursor or "", SKILLS_PAGE)
        except Invalid as e:
            raise MCPError(types.INVALID_PARAMS, f"the cursor is not one of this server: {e}") from e
        except DistierError as e:
            raise _failed(e) from e
        result: dict[str, Any] = {"skills": [_entry(skill) for skill in found if isinstance(skill, Skill)]}
        if after is not None:
            result["nextCursor"] = after
        return _whole(result)

    async def _get_skill(self, ctx: Any, params: SkillParams) -> dict[str, Any]:
        id = id_of(params.uri) if params.uri.startswith(SKILL) else None
        try:
            found = None if id is None or not is_skill_file(id) else await self._skills.get(id)
        except Invalid:
            found = None
        except DistierError as e:
            raise _failed(e) from e
        if isinstance(found, Skill):
            return _whole({"skill": _entry(found)})
        why = f": {found.why}" if isinstance(found, Broken) else ""
        raise MCPError(types.INVALID_PARAMS, f"no skill is served at {params.uri}{why}")

    async def _read_directory(self, ctx: Any, params: DirectoryParams) -> dict[str, Any]:
        id = id_of(params.uri)
        if id is None or id.endswith("/"):
            raise MCPError(types.INVALID_PARAMS, f"{params.uri} is not a directory resource")
        as_uri = skill_uri if params.uri.startswith(SKILL) else module_uri
        page = await self._page(f"{id}/", params, limit=1000)
        if not page.modules and not params.cursor:
            raise MCPError(types.INVALID_PARAMS, f"{params.uri} is not a directory resource")
        files, names = children(page.modules, f"{id}/")
        last = (params.cursor or "")[len(id) + 1 :].partition("/")
        found = [_resource(file, as_uri(file.id), file.id[len(id) + 1 :]) for file in files]
        found += [
            types.Resource(uri=as_uri(f"{id}/{name}"), name=name, mime_type=DIRECTORY)
            for name in names
            if not (last[1] and name == last[0])  # the page before has it
        ]
        found.sort(key=lambda resource: resource.uri.encode())
        result: dict[str, Any] = {
            "resources": [one.model_dump(by_alias=True, mode="json", exclude_none=True) for one in found]
        }
        if page.after is not None:
            result["nextCursor"] = page.after
        return _whole(result)

    # -- prompts and completion ----------------------------------------------------------------------------------------

    async def _list_prompts(self, ctx: Any, params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        self._meet(ctx)
        page = await self._page(PROMPTS, params)
        return types.ListPromptsResult(prompts=[_prompt(module) for module in page.modules], next_cursor=page.after)

    async def _get_prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        try:
            module = await self._store.get(params.name) if params.name.startswith(PROMPTS) else None
        except DistierError as e:
            raise _failed(e) from e
        if module is None:
            raise MCPError(
                types.INVALID_PARAMS, f"there is no prompt {params.name!r}: prompts are modules below {PROMPTS}"
            )
        given = params.arguments or {}
        try:
            text = module.content.decode()
        except UnicodeDecodeError as e:
            raise MCPError(types.INVALID_PARAMS, f"prompt {params.name!r} is not text") from e
        from distier.domain.frontmatter import split_front_matter

        _, body = split_front_matter(text)
        made = _VARIABLE.sub(lambda found: given.get(found[1], found[0]), body)
        message = types.PromptMessage(role="user", content=types.TextContent(type="text", text=made))
        description = module.meta.get("description")
        return types.GetPromptResult(
            description=description if isinstance(description, str) else None, messages=[message]
        )

    async def _complete(self, ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Complete ids. Everything else has no values."""
        value, known = params.argument.value, getattr(params.ref, "uri", "")
        if known not in (MODULE + "{+id}", SKILL + "{+path}") or params.argument.name not in ("id", "path"):
            return types.CompleteResult(completion=types.Completion(values=[], total=0, has_more=False))
        page = await self._page(value, None, COMPLETIONS)
        values = [module.id for module in page.modules]
        return types.CompleteResult(completion=types.Completion(values=values, has_more=page.after is not None))


def _whole(result: dict[str, Any]) -> dict[str, Any]:
    return {"resultType": "complete", **result, "ttlMs": FRESH.ttl_ms, "cacheScope": FRESH.scope}


def _failed(error: DistierError) -> MCPError:
    return MCPError(types.INTERNAL_ERROR, f"{type(error).__name__}: {error}")


def _entry(skill: Skill) -> Mapping[str, Any]:
    files = [{"uri": skill_uri(f.id), "digest": f"sha256:{f.sha256}", "size": f.size_bytes} for f in skill.files]
    return {"uri": skill_uri(skill.id), "frontmatter": skill.frontmatter, "resources": files}


def _resource(module: Described, uri: str, name: str | None = None) -> types.Resource:
    return types.Resource(
        uri=uri, name=name or module.id, title=module.name, description=module.description, mime_type=module.content_type,
        size=module.size_bytes,
    )  # fmt: skip


def _contents(module: Module, uri: str) -> Any:
    try:
        return types.TextResourceContents(uri=uri, mime_type=module.content_type, text=module.content.decode())
    except UnicodeDecodeError:
        blob = base64.b64encode(module.content).decode()
        return types.BlobResourceContents(uri=uri, mime_type=module.content_type, blob=blob)


def _prompt(module: Described) -> types.Prompt:
    wanted = module.meta.get("arguments")
    names = [str(name) for name in wanted] if isinstance(wanted, list | tuple) else []
    return types.Prompt(
        name=module.id, title=module.name, description=module.description or f"The prompt {module.id}",
        arguments=[types.PromptArgument(name=name, required=False) for name in names] or None,
    )  # fmt: skip
