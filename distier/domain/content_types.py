"""Content types: what a module's bytes are, and which extension its archive object gets.

The archive must be readable without distier. So an object is named `....md.xz`, not `....bin.xz`: the file that
`xz -d` writes then opens in the right program. Types and extensions map one to one, so an archive that lost its
metadata still has the types. Python's `mimetypes` is not used: its table depends on the machine (it reads
/etc/mime.types), is many to many, and lacks Markdown, YAML and TOML in older versions.
"""

from __future__ import annotations

import re

from distier.errors import Invalid

TEXT = "text/plain"
BINARY = "application/octet-stream"
MAX_TYPE_CHARS = 127

EXTENSIONS = {
    "text/markdown": "md",
    "text/x-python": "py",
    "application/json": "json",
    "application/jsonl": "jsonl",
    "application/yaml": "yaml",
    "application/toml": "toml",
    "application/xml": "xml",
    "application/sql": "sql",
    "application/pdf": "pdf",
    "application/zip": "zip",
    "application/gzip": "gz",
    "application/wasm": "wasm",
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
    "text/html": "html",
    "text/css": "css",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "text/javascript": "js",
    "text/typescript": "ts",
    "text/tsx": "tsx",
    "text/jsx": "jsx",
    "text/x-rst": "rst",
    "text/x-mdc": "mdc",
    "text/x-mdx": "mdx",
    "text/x-prompty": "prompty",
    "application/x-ipynb+json": "ipynb",
    "text/x-org": "org",
    "text/x-tex": "tex",
    "text/x-diff": "diff",
    "text/x-ini": "ini",
    "text/x-jinja": "j2",
    "text/x-log": "log",
    "text/x-shellscript": "sh",
    "text/x-powershell": "ps1",
    "text/x-c": "c",
    "text/x-c-header": "h",
    "text/x-c++": "cpp",
    "text/x-csharp": "cs",
    "text/x-rust": "rs",
    "text/x-go": "go",
    "text/x-java": "java",
    "text/x-kotlin": "kt",
    "text/x-swift": "swift",
    "text/x-scala": "scala",
    "text/x-ruby": "rb",
    "text/x-php": "php",
    "text/x-perl": "pl",
    "text/x-lua": "lua",
    "text/x-r": "r",
    "text/x-haskell": "hs",
    "text/x-elixir": "ex",
    "text/x-vue": "vue",
    TEXT: "txt",
    BINARY: "bin",
}
# Other names for the same types: distier reads them and never writes them.
TYPE_ALIASES = {
    "text/json": "application/json",
    "application/x-ndjson": "application/jsonl",
    "text/yaml": "application/yaml",
    "text/x-yaml": "application/yaml",
    "application/x-yaml": "application/yaml",
    "text/xml": "application/xml",
    "application/javascript": "text/javascript",
    "application/x-javascript": "text/javascript",
    "application/typescript": "text/typescript",
    "application/x-python": "text/x-python",
    "text/python": "text/x-python",
    "text/x-markdown": "text/markdown",
    "application/x-sh": "text/x-shellscript",
}
EXTENSION_ALIASES = {
    "markdown": "md",
    "pyi": "py",
    "yml": "yaml",
    "htm": "html",
    "mjs": "js",
    "cjs": "js",
    "ndjson": "jsonl",
    "jpeg": "jpg",
    "bash": "sh",
    "patch": "diff",
    "cc": "cpp",
    "hpp": "cpp",
    "jinja": "j2",
    "jinja2": "j2",
    "text": "txt",
    "cfg": "ini",
    "exs": "ex",
}
_TYPES = {extension: content_type for content_type, extension in EXTENSIONS.items()}

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - RFC 9110's term for a name, not a password
_TYPE = re.compile(rf'{_TOKEN}/{_TOKEN}(?: ?; ?{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))*', re.ASCII)


def check_content_type(text: str) -> str:
    """Return `text` if it is `type/subtype` with optional parameters, in ASCII, of at most 127 characters.

    Raises:
        Invalid: it is anything else.
    """
    if not isinstance(text, str) or len(text) > MAX_TYPE_CHARS or not _TYPE.fullmatch(text):
        raise Invalid(
            f"not a content type: {str(text)[:60]!r}; use ASCII such as text/markdown or "
            f"text/plain; charset=utf-8, at most {MAX_TYPE_CHARS} characters"
        )
    return text


def base_type(content_type: str) -> str:
    """Return `content_type` without parameters, in lower case, by the name that distier uses for it."""
    base = content_type.partition(";")[0].strip().lower()
    return TYPE_ALIASES.get(base, base)


KNOWN_EXTENSIONS = frozenset(EXTENSIONS.values()) | {"txt", "bin"}


def extension_for(content_type: str) -> str:
    """Return the extension for a content type, 1 to 8 of `[a-z0-9]`: `txt` for unknown text, `bin` for other types."""
    base = base_type(content_type)
    known = EXTENSIONS.get(base)
    if known:
        return known
    if base.endswith("+json"):
        return "json"
    if base.endswith("+xml"):
        return "xml"
    return "txt" if base.startswith("text/") else "bin"


def type_for_extension(extension: str) -> str:
    """Return the content type for an extension (with or without its dot); octet-stream for an unknown one."""
    name = extension.removeprefix(".").lower()
    return _TYPES.get(EXTENSION_ALIASES.get(name, name), BINARY)


def guess_content_type(path_or_id: str, content: bytes) -> str:
    """Guess the type from the suffix if it is known; otherwise text/plain for UTF-8 without NUL, or octet-stream.

    A suffix alone does not make a text: bytes that are not UTF-8 are octet-stream.
    """
    name = path_or_id.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    known = type_for_extension(suffix) if dot and stem else BINARY
    if known != BINARY and not _is_textual(known):
        return known
    try:
        content.decode()
    except UnicodeDecodeError:
        return BINARY
    if known != BINARY:
        return known
    return BINARY if b"\0" in content or suffix.lower() == "bin" else TEXT


def _is_textual(content_type: str) -> bool:
    return (
        content_type.startswith("text/")
        or content_type.endswith(("+json", "+xml"))
        or content_type
        in (
            "application/json",
            "application/jsonl",
            "application/yaml",
            "application/toml",
            "application/xml",
            "application/sql",
        )
    )
