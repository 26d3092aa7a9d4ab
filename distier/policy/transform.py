"""Opt-in transforms of content, and outlines that are stored in addition to it.

By default a module reads back as the exact bytes that were put. A transform gives that up for fewer tokens, so each result
is verified: it is kept only if a *check that shares no code with the transform* finds the same meaning, and only if it is
smaller. Otherwise the content stays unchanged. A transform never fails; it declines.

    json-whitespace   drops the whitespace between JSON tokens. Number spellings, key order, duplicate keys and string
                      escapes stay (`dumps(loads(x))` would change all four)
    python-minify     drops comments and layout of Python. The syntax tree stays the same, including docstrings, names and
                      annotations. Modules with meaningful comments stay unchanged

An outline helps readers to skim: it has headings with first sentences, or signatures with first docstring lines. It is
stored in addition to the text, never instead of it.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from distier.domain.content_types import base_type
from distier.domain.frontmatter import split_front_matter

# The parsers build trees about a hundred times as large as the text. Above these sizes the saving is not worth the memory.
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_PYTHON_BYTES = 512 * 1024
MAX_OUTLINE_CHARS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Transformed:
    """The result of a transform, verified to have the same meaning as the original and to be smaller."""

    name: str
    content: bytes
    saved_bytes: int


# --- json-whitespace ----------------------------------------------------------------------------------------

# A whole string, or a run of whitespace. The closing quote is optional so that a broken string matches too, which the check
# then rejects: scanning from each of its quotes would be quadratic.
_JSON_PIECE = re.compile(r'("(?:[^"\\]|\\.)*+"?)|[ \t\n\r]++', re.DOTALL)


def _json_whitespace(text: str) -> str:
    return _JSON_PIECE.sub(r"\1", text)


def _json_meaning(text: str) -> object:
    """Return the parsed value with all details that `loads` loses: spellings of numbers, and pairs in order.

    Raises:
        ValueError: The text is not JSON. NaN and Infinity are not JSON either.
    """

    def refuse(name: str) -> object:
        raise ValueError(name)

    return json.loads(
        text,
        parse_int=lambda s: ("number", s),
        parse_float=lambda s: ("number", s),
        parse_constant=refuse,
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


# --- python-minify ------------------------------------------------------------------------------------------

# Comments that the interpreter or the program's tools read. `noqa`, `pragma` and formatter marks concern only development
# tools, but a type comment is part of the program.
_MEANINGFUL_COMMENT = re.compile(r"#\s*(?:type:|-\*-|///)|#.*?coding[:=]")


# All options of python-minifier that would change the syntax tree.
_CHANGES = (
    "remove_annotations",
    "remove_pass",
    "remove_literal_statements",
    "combine_imports",
    "hoist_literals",
    "rename_locals",
    "rename_globals",
    "remove_object_base",
    "convert_posargs_to_args",
    "remove_asserts",
    "remove_debug",
    "remove_explicit_return_none",
    "remove_builtin_exception_brackets",
    "constant_folding",
    "remove_dead_branches",
)


def _python_minify(text: str) -> str:
    import python_minifier  # a large import, and an optional dependency

    if _has_meaningful_comment(text):
        return text
    off: dict[str, Any] = dict.fromkeys(_CHANGES, False)
    try:
        return str(python_minifier.minify(text, preserve_shebang=True, **off))
    except Exception as e:
        # python-minifier may raise any exception on unusual syntax trees; in each case there is no result.
        raise ValueError("python-minifier has no result") from e


def _has_meaningful_comment(text: str) -> bool:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return any(t.type == tokenize.COMMENT and _MEANINGFUL_COMMENT.match(t.string) for t in tokens)


def _python_meaning(text: str) -> object:
    """Return the syntax tree without line numbers, and the shebang."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in a module must not print a warning
        tree = ast.parse(text, type_comments=True)
    shebang = re.match(r"#!.*", text)
    return ast.dump(tree), shebang and shebang[0]


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform and its check. `make` proposes a result, and `meaning`, which shares no code with it, must return equal
    values for both texts. Both may raise the exceptions in `DECLINES`."""

    make: Callable[[str], str]
    meaning: Callable[[str], object]
    bytes_max: int


TRANSFORMS = {
    "json-whitespace": Transform(_json_whitespace, _json_meaning, MAX_JSON_BYTES),
    "python-minify": Transform(_python_minify, _python_meaning, MAX_PYTHON_BYTES),
}


# The exceptions of parsers: not UTF-8, a syntax error, nested too deep, or the extra is not installed.
DECLINES = (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, ImportError)


def apply_transform(name: str, content: bytes) -> Transformed | None:
    """Apply the transform `name` to `content`.

    Returns:
        The result, or None to keep the content unchanged. That is the case if the result is empty, not smaller or not
        provably equal; if the content is too large or not valid UTF-8 of that language; or if the extra is not installed.

    Raises:
        KeyError: There is no transform of that name.
    """
    steps = transform_steps(name, content)
    try:
        step = next(steps)
        while True:
            step = steps.send(step())
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def transform_steps(name: str, content: bytes) -> Generator[Callable[[], Any], Any, Transformed | None]:
    """Run `apply_transform` in steps, so that a caller can stop at its deadline. Each step may take a second.

    Yields functions; the caller runs each and sends its result back.
    """
    transform = TRANSFORMS[name]
    if not content or len(content) > transform.bytes_max:
        return None
    try:
        before = content.decode()
    except ValueError:
        return None
    after = yield _or_none(lambda: transform.make(before))
    if after is None:
        return None
    made = after.encode()
    if not 0 < len(made) < len(content):
        return None
    meant = yield _or_none(lambda: (transform.meaning(before),))
    found = (yield _or_none(lambda: (transform.meaning(after),))) if meant else None
    if meant is None or found is None or not (yield _or_none(lambda: meant == found)):
        return None
    return Transformed(name, made, len(content) - len(made))


def _or_none(function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        try:
            return function()
        except DECLINES:
            return None

    return run


# --- outlines -----------------------------------------------------------------------------------------------

_ITEM = re.compile(r"\s{0,8}(?:[-*+]|\d{1,9}[.)])\s+\S")
# A list marker is part of the sentence, and its dot does not end the sentence.
_SENTENCE = re.compile(r"(?:\d{1,9}[.)]\s+)?+.+?[.!?:。！？](?=\s|$)|.+", re.DOTALL)
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_MARKUP = ("<!--", "![", "|", "---", "***", "[//]")
_LINE_CHARS = 200


def outline(content: bytes, content_type: str, *, max_chars: int = 2000) -> str | None:
    """Return an outline of `content`: headings and first sentences of Markdown and plain text, signatures and first
    docstring lines of Python. Never raises.

    Args:
        content: The content of a module.
        content_type: Its content type.
        max_chars: Maximum length in characters.

    Returns:
        The outline, or None for other types, invalid UTF-8, and an outline that is empty or not shorter than the text.
    """
    make = _OUTLINES.get(base_type(content_type))
    try:
        text = content.decode()
        lines = make(text) if make else iter(())
        made = _join(lines, max_chars)
    except DECLINES:
        return None
    return made if made and len(made) < len(text) else None


def _join(lines: Iterator[str], max_chars: int) -> str:
    """Join as many whole lines as fit. Each line is shortened to 200 characters."""
    kept: list[str] = []
    left = max_chars
    for line in lines:
        cut = line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…"
        left -= len(cut) + bool(kept)
        if left < 0:
            break
        kept.append(cut)
    return "\n".join(kept)


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Yield the paragraphs outside code fences. A heading or list item starts a new paragraph."""
    paragraph: list[str] = []
    fence = ""
    for line in text[:MAX_OUTLINE_CHARS].splitlines():
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
            continue
        if mark or not line.strip() or _HEADING.match(line):
            if paragraph:
                yield paragraph
            paragraph = []
            fence = mark[1] if mark else ""
            if not mark and line.strip():
                yield [line]
            continue
        if paragraph and _ITEM.match(line):
            yield paragraph
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield paragraph


def _sentence(lines: list[str]) -> str:
    joined = " ".join(line.strip() for line in lines[:20])[:1000]
    match = _SENTENCE.match(joined)
    return " ".join(match[0].split()) if match else ""


def _outline_markdown(text: str) -> Iterator[str]:
    """Yield every heading and the first sentence after it."""
    fields, text = split_front_matter(text)
    if isinstance(description := fields.get("description"), str) and description.strip():
        yield " ".join(description.split())[:1000]
    wants_sentence = True
    for paragraph in _paragraphs(text):
        if _HEADING.match(paragraph[0]):
            yield paragraph[0].strip()
            wants_sentence = True
        elif len(paragraph) > 1 and _UNDERLINE.fullmatch(paragraph[1]):
            yield ("# " if "=" in paragraph[1] else "## ") + paragraph[0].strip()
            wants_sentence = len(paragraph) == 2
            if not wants_sentence:
                yield _sentence(paragraph[2:])
        elif wants_sentence and not paragraph[0].lstrip().startswith(_MARKUP):
            yield _sentence(paragraph)
            wants_sentence = False


def _outline_text(text: str) -> Iterator[str]:
    """Yield the first sentence of every paragraph."""
    for paragraph in _paragraphs(text.removeprefix("\ufeff")):
        yield _sentence(paragraph)


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _outline_python(text: str) -> Iterator[str]:
    """Yield the first docstring line of the module, then signatures with theirs, without functions inside functions."""
    if len(text) > MAX_PYTHON_BYTES:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    if doc := _first_line(tree):
        yield f'"""{doc}"""'
    for node in tree.body:
        if isinstance(node, _Definition):
            yield from _outline_definition(node, "")


def _outline_definition(node: _Definition, indent: str) -> Iterator[str]:
    doc = _first_line(node)
    yield indent + _signature(node) + (f"  # {doc}" if doc else "")
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Definition):
                yield from _outline_definition(child, indent + "    ")


def _signature(node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(b) for b in [*node.bases, *node.keywords])
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}:"


def _first_line(node: ast.Module | _Definition) -> str:
    return next((line.strip() for line in (ast.get_docstring(node) or "").splitlines() if line.strip()), "")


_OUTLINES: dict[str, Callable[[str], Iterator[str]]] = {
    "text/markdown": _outline_markdown,
    "text/x-mdc": _outline_markdown,
    "text/x-mdx": _outline_markdown,
    "text/plain": _outline_text,
    "text/x-python": _outline_python,
}
