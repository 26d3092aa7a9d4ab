"""The tools: what a model can do with a namespace. Many clients know tools and nothing else, so there is one for everything.

Arguments are validated against the schema before a tool runs. What went wrong comes back as a result that the model can act on.
Results are in a stable order, and stay below `RESULT_TOKENS` unless the model asks for more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from distier.client import AsyncStore
from distier.domain.described import Described
from distier.domain.module import Module
from distier.domain.skill import FILE, is_skill_file
from distier.errors import Conflict, DistierError, NotFound
from distier.mcp.skills import Broken, Catalogue
from distier.mcp.uris import module_uri
from distier.plans.put.prepare import MAX_TTL_S
from distier.views import explained_text

RESULT_TOKENS = 20_000
"""How many tokens of content a result has, if the model does not ask for another number."""
TOKENS_MAX = 1_000_000
LIST_MAX = 200
BEGINNING_CHARS_MIN = 3
"""A shorter word of a search is a whole word."""
CANDIDATES_MAX = 1000

ID = {"type": "string", "minLength": 1, "description": "The id of a module, such as skills/pdf/SKILL.md."}
CURSOR = {"type": "string", "description": "`next` of an earlier result, to continue it."}
VERSION = {
    "type": "string",
    "description": "Only if the module is at this version of an earlier result, such as 1-41; 0: only if there is none.",
}
OLDER = {"type": "string", "minLength": 3, "description": "A version, such as 1-41."}
Arguments = Mapping[str, Any]


class Refused(Exception):
    """A tool cannot do what was asked. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a tool returns: data, and the text of a module where it read one."""

    data: Mapping[str, Any]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    title: str
    description: str
    properties: Mapping[str, Any]
    required: Sequence[str]
    run: Callable[[Tools, Arguments], Awaitable[Output]]
    writes: bool = False
    destroys: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": dict(self.properties), "required": list(self.required),
                "additionalProperties": False}  # fmt: skip


class Tools:
    """The tools of one server."""

    def __init__(self, store: AsyncStore, skills: Catalogue, *, write: bool) -> None:
        self.store = store
        self.skills = skills
        self.by_name = {tool.name: tool for tool in TOOLS if write or not tool.writes}

    async def call(self, name: str, arguments: Arguments) -> Output:
        """Run a tool.

        Raises:
            KeyError: there is no such tool.
            Refused: the arguments are invalid, or the store cannot do it. The message is for the model.
        """
        tool = self.by_name[name]
        wrong = sorted(Draft202012Validator(tool.schema).iter_errors(arguments), key=lambda e: list(map(str, e.path)))
        if wrong:
            raise Refused(
                "; ".join(f"{'.'.join(map(str, error.path)) or 'arguments'}: {error.message}" for error in wrong[:5])
            )
        try:
            return await tool.run(self, arguments)
        except Conflict as e:
            raise Refused(
                f"{type(e).__name__}: {e}. Read the module again, and write with its version as if_version"
            ) from e
        except DistierError as e:
            raise Refused(f"{type(e).__name__}: {e}") from e

    async def list(self, arguments: Arguments) -> Output:
        page = await self.store.page(
            arguments.get("prefix", ""), after=arguments.get("cursor", ""), limit=arguments.get("limit", 50)
        )
        return Output({"modules": [about(module) for module in page.modules], "next": page.after})

    async def search(self, arguments: Arguments) -> Output:
        start, limit = _offset(arguments.get("cursor", "")), arguments.get("limit", 20)
        found = await self.store.search(_query(arguments), prefix=arguments.get("prefix", ""), start=start, limit=limit)
        following = str(start + limit) if start + limit < found.total else None
        return Output({"modules": [about(one) for one in found.modules], "total": found.total, "next": following})

    async def read(self, arguments: Arguments) -> Output:
        id, version = arguments["id"], arguments.get("version")
        module = await (self.store.get(id) if version is None else self.store.get(id, version=version))
        if module is None and version is not None:
            raise Refused(f"NotFound: module {id!r} has no version {version}; module_history lists its versions")
        if module is None:
            raise Refused(await self._missing(id))
        return cut(module, arguments)

    async def history(self, arguments: Arguments) -> Output:
        entries = await self.store.history(arguments["id"], limit=arguments.get("limit", 20))
        if not entries:
            raise Refused(await self._missing(arguments["id"]))
        versions = [
            {"version": str(one.version), "current": one.current, "deleted": one.deleted, "tokens": one.tokens,
             "bytes": one.size_bytes, "sha256": one.sha256, "updated_ms": one.updated_ms}
            for one in entries
        ]  # fmt: skip
        return Output({"id": arguments["id"], "versions": versions})

    async def rollback(self, arguments: Arguments) -> Output:
        id = arguments["id"]
        landed = await self.store.rollback(id, arguments["version"], if_version=_expected(arguments))
        return Output({"id": id, "version": str(landed.version), "tier": landed.tier})

    async def _missing(self, id: str) -> str:
        near = (await self.store.page(id.rpartition("/")[0], limit=5)).modules
        known = f"; ids with this prefix: {', '.join(one.id for one in near)}" if near else ""
        return f"NotFound: there is no module {id!r}{known}. search_modules and list_modules find ids"

    async def write(self, arguments: Arguments) -> Output:
        landed = await self.store.put(
            arguments["id"], arguments["text"], content_type=arguments.get("content_type"),
            keywords=arguments.get("keywords", ()), meta=arguments.get("meta"), if_version=_expected(arguments),
            ttl=arguments.get("ttl_s"),
        )  # fmt: skip
        return Output({"id": arguments["id"], "version": str(landed.version), "tier": landed.tier})

    async def edit(self, arguments: Arguments) -> Output:
        id, old, new = arguments["id"], arguments["old"], arguments["new"]
        module = await self.store.get(id)
        if module is None:
            raise Refused(await self._missing(id))
        text = _text(module)
        if (n := text.count(old)) != 1:
            raise Refused(f"`old` is in {id!r} {n} times and must be there once: give more of the text around it")
        landed = await self.store.put(
            id, text.replace(old, new), content_type=module.content_type, keywords=module.keywords, meta=module.meta,
            if_version=_expected(arguments) or module.version,
        )  # fmt: skip
        return Output({"id": id, "version": str(landed.version), "tier": landed.tier})

    async def rename(self, arguments: Arguments) -> Output:
        try:
            landed = await self.store.rename(arguments["id"], arguments["new_id"], if_version=_expected(arguments))
        except NotFound:
            raise Refused(await self._missing(arguments["id"])) from None
        return Output({"id": landed.id, "version": str(landed.version), "tier": landed.tier})

    async def delete(self, arguments: Arguments) -> Output:
        existed = await self.store.delete(arguments["id"], if_version=_expected(arguments))
        if not existed:
            raise Refused(await self._missing(arguments["id"]))
        return Output({"id": arguments["id"], "deleted": True})

    async def fit(self, arguments: Arguments) -> Output:
        ids, prefix = arguments.get("ids"), arguments.get("prefix")
        if (ids is None) == (prefix is None):
            raise Refused("give `ids` or `prefix`, one of them")
        try:
            fitted = await self.store.fit(
                prefix or "" if ids is None else ids, arguments["budget_tokens"], required=arguments.get("required", ())
            )
        except NotFound as e:
            raise Refused(f"NotFound: {e}") from e
        left = [{"id": choice.id, "reason": choice.reason, "tokens": choice.whole_tokens} for choice in fitted.left_out]
        chosen = [{"id": choice.id, "form": choice.form, "tokens": choice.tokens} for choice in fitted]
        parts = [
            f'<module id="{choice.id}" form="{choice.form}">\n{choice.content.decode(errors="replace")}\n</module>'
            for choice in fitted
        ]
        data = {"chosen": chosen, "left_out": left[:LIST_MAX], "tokens": fitted.tokens}
        return Output(data, "\n".join(parts) or "nothing fits into this budget")

    async def explain(self, arguments: Arguments) -> Output:
        found = await self.store.explain(arguments["id"])
        if found is None:
            raise Refused(await self._missing(arguments["id"]))
        return Output(
            {"id": found.id, "tier": found.tier, "uses": found.uses, "clean": found.clean}, explained_text(found)
        )

    async def list_skills(self, arguments: Arguments) -> Output:
        found, after = await self.skills.page(
            arguments.get("prefix", ""), arguments.get("cursor", ""), arguments.get("limit", 50)
        )
        good = [
            {"id": one.id, "name": one.frontmatter["name"], "description": one.frontmatter["description"]}
            for one in found
            if not isinstance(one, Broken)
        ]
        broken = [{"id": one.id, "why": one.why} for one in found if isinstance(one, Broken)]
        return Output({"skills": good, "invalid": broken, "next": after})

    async def read_skill(self, arguments: Arguments) -> Output:
        id = arguments["id"] if is_skill_file(arguments["id"]) else f"{arguments['id'].rstrip('/')}/{FILE}"
        found = await self.skills.get(id)
        if found is None:
            raise Refused(f"NotFound: there is no skill {id!r}; list_skills lists them")
        if isinstance(found, Broken):
            raise Refused(f"{id!r} is not a valid skill: {found.why}. read_module reads it all the same")
        module = await self.store.get(id)
        if module is None:
            raise Refused(f"NotFound: there is no skill {id!r}; list_skills lists them")
        read = cut(module, arguments)
        return Output({**read.data, "files": [file.id for file in found.files]}, read.text)


def about(module: Described) -> dict[str, Any]:
    """Return what a list says of a module."""
    found: dict[str, Any] = {
        "id": module.id, "tokens": module.tokens, "bytes": module.size_bytes, "type": module.content_type,
        "version": str(module.version), "tier": module.tier,
    }  # fmt: skip
    if module.keywords:
        found["keywords"] = list(module.keywords)
    if module.expires_ms is not None:
        found["expires_ms"] = module.expires_ms
    for name in ("name", "description"):
        if text := getattr(module, name):
            found[name] = text if len(text) <= 300 else text[:299] + "…"
    return found


def _query(arguments: Arguments) -> str:
    """Return the query of a search. Plain words are beginnings, because agents seldom know the exact ones."""
    words = [
        word
        if len(word) < BEGINNING_CHARS_MIN or set('-:"*') & {word[0], word[-1], *(":" * (":" in word))}
        else f"{word}*"
        for word in arguments["query"].split()
    ]
    keywords = [f'keyword:"{keyword}"' for keyword in arguments.get("keywords", ())]
    return " ".join([*words, *keywords])


def _offset(cursor: str) -> int:
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise Refused(f"Invalid: {cursor[:40]!r} is no `next` of a search")
    return int(cursor or 0)


def cut(module: Module, arguments: Arguments) -> Output:
    """Return a module's text, or the lines of it that fit. What was left out is said, never silent."""
    data: dict[str, Any] = {
        "id": module.id, "uri": module_uri(module.id), "version": str(module.version), "tokens": module.tokens,
        "type": module.content_type,
    }  # fmt: skip
    if module.keywords:
        data["keywords"] = list(module.keywords)
    if arguments.get("outline"):
        if module.outline is None:
            raise Refused(f"module {module.id!r} has no outline; read it without `outline`")
        return Output(data | {"form": "outline"}, module.outline)
    text = _text(module)
    lines = text.splitlines(keepends=True)
    first = min(arguments.get("first_line", 1), max(len(lines), 1))
    last = min(arguments.get("last_line", len(lines)), len(lines))
    if last < first - 1:
        raise Refused(f"last_line {last} is before first_line {first}")
    allowed = arguments.get("max_tokens", RESULT_TOKENS)
    chars = int(len(text) * min(1.0, allowed / max(module.tokens, 1)))
    end, used = first - 1, 0
    while end < last and (used + len(lines[end]) <= chars or end == first - 1):
        used += len(lines[end])
        end += 1
    data |= {
        "first_line": first,
        "last_line": end,
        "lines": len(lines),
        "form": "whole" if end - first + 1 == len(lines) else "part",
    }
    shown = "".join(lines[first - 1 : end])
    if len(shown) > max(chars, 1) and allowed < module.tokens:
        shown, data["line_cut_at"] = shown[:chars], chars  # one line that is larger than what may be returned
    if end < last:
        data["next_line"] = end + 1
    return Output(data, shown)


def _text(module: Module) -> str:
    try:
        return module.content.decode()
    except UnicodeDecodeError:
        raise Refused(
            f"module {module.id!r} is {module.content_type} with {len(module.content):,} bytes, not text; read the resource "
            f"{module_uri(module.id)}"
        ) from None


def _expected(arguments: Arguments) -> Any:
    version = arguments.get("if_version")
    return 0 if version == "0" else version


PREFIX = {"type": "string", "description": "Only ids that begin with this."}


def _limit(default: int) -> dict[str, Any]:
    return {
        "type": "integer",
        "minimum": 1,
        "maximum": LIST_MAX,
        "description": f"How many, at most; {default} by default.",
    }


READ = {
    "first_line": {"type": "integer", "minimum": 1, "description": "The first line to return, from 1."},
    "last_line": {"type": "integer", "minimum": 1, "description": "The last line to return."},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": TOKENS_MAX, "description": "About how many tokens, at most; "
                   f"{RESULT_TOKENS:,} by default. `next_line` of the result says where the rest begins."},
}  # fmt: skip
TOOLS: tuple[Tool, ...] = (
    Tool("search_modules", "Search modules",
         "Find modules whose id, name, description or keywords have all words of a query, the best ones first. Returns ids and "
         "descriptions, not contents.",
         {"query": {"type": "string", "description": "Words or beginnings of words, all of which must occur; case does not "
                    "matter. -word excludes, and keyword:word is a whole keyword."},
          "keywords": {"type": "array", "items": {"type": "string"}, "description": "Keywords that the module must have."},
          "prefix": PREFIX, "limit": _limit(20), "cursor": CURSOR}, ("query",), Tools.search),
    Tool("list_modules", "List modules",
         "List modules in the order of their ids, with sizes in tokens, versions and descriptions, not contents.",
         {"prefix": PREFIX, "limit": _limit(50), "cursor": CURSOR}, (), Tools.list),
    Tool("read_module", "Read a module",
         "Read a module's text, whole or some of its lines, or its outline. The result says which part of how much it is.",
         {"id": ID, **READ, "outline": {"type": "boolean", "description": "Return the outline instead, if it has one."},
          "version": {**OLDER, "description": "An older version, as module_history lists them."}}, ("id",), Tools.read),
    Tool("module_history", "List versions",
         "List the versions of a module that are kept, the newest first. read_module reads one of them.",
         {"id": ID, "limit": _limit(20)}, ("id",), Tools.history),
    Tool("list_skills", "List skills",
         "List the skills: directories with a SKILL.md, with their names and descriptions.",
         {"prefix": PREFIX, "limit": _limit(50), "cursor": CURSOR}, (), Tools.list_skills),
    Tool("read_skill", "Read a skill",
         "Read the SKILL.md of a skill, and list its files. Read the files with read_module when the instructions need them.",
         {"id": {**ID, "description": "The skill's directory, or the id of its SKILL.md."}, **READ}, ("id",), Tools.read_skill),
    Tool("fit_modules", "Fit modules into a budget",
         "Read the modules with the most value that fit into a budget of tokens: by uses, recency and what is required. What "
         "does not fit whole comes as its outline or is left out, and the result says so.",
         {"budget_tokens": {"type": "integer", "minimum": 0, "maximum": TOKENS_MAX},
          "ids": {"type": "array", "items": {"type": "string"}, "maxItems": CANDIDATES_MAX, "description": "The candidates."},
          "prefix": {**PREFIX, "description": "Instead of `ids`: all modules whose ids begin with this."},
          "required": {"type": "array", "items": {"type": "string"}, "description": "Ids that must be in the result."}},
         ("budget_tokens",), Tools.fit),
    Tool("explain_module", "Explain where a module is",
         "Say in which tier a module is and why, how much it is used, and what would be evicted before it.",
         {"id": ID}, ("id",), Tools.explain),
    Tool("write_module", "Write a module",
         "Write a module's text, new or instead of what it has. With if_version nothing is overwritten that you have not read.",
         {"id": ID, "text": {"type": "string"}, "if_version": VERSION,
          "keywords": {"type": "array", "items": {"type": "string"}},
          "meta": {"type": "object", "description": "Fields to keep with it, such as name and description."},
          "content_type": {"type": "string", "description": "Its media type; by default that of the id's extension."},
          "ttl_s": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TTL_S,
                    "description": "Seconds after which the module expires; never by default."}},
         ("id", "text"), Tools.write, writes=True, destroys=True),
    Tool("edit_module", "Edit a module",
         "Replace one passage of a module's text. The passage must occur once.",
         {"id": ID, "old": {"type": "string", "minLength": 1}, "new": {"type": "string"}, "if_version": VERSION},
         ("id", "old", "new"), Tools.edit, writes=True, destroys=True),
    Tool("rollback_module", "Go back to a version",
         "Write an older version of a module again, as a new version. Also brings a deleted module back.",
         {"id": ID, "version": OLDER, "if_version": VERSION}, ("id", "version"), Tools.rollback, writes=True, destroys=True),
    Tool("rename_module", "Rename a module",
         "Give a module another id, which must not exist. Its older versions keep the old id.",
         {"id": ID, "new_id": ID, "if_version": VERSION}, ("id", "new_id"), Tools.rename, writes=True, destroys=True),
    Tool("delete_module", "Delete a module", "Delete a module.",
         {"id": ID, "if_version": VERSION}, ("id",), Tools.delete, writes=True, destroys=True),
)  # fmt: skip
