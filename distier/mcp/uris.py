"""URIs of modules: `distier://<id>`, and `skill://<id>` for the files of skills. Ids are percent-encoded where URIs need it."""

from __future__ import annotations

from urllib.parse import quote, unquote

MODULE = "distier://"
SKILL = "skill://"
_SAFE = "/~!$&'()*+,;=:@"


def module_uri(id: str) -> str:
    return MODULE + quote(id, safe=_SAFE)


def skill_uri(id: str) -> str:
    return SKILL + quote(id, safe=_SAFE)


def id_of(uri: str) -> str | None:
    """Return the id in a URI of either kind; None for any other URI, and for one whose id is not UTF-8."""
    for scheme in (MODULE, SKILL):
        if uri.startswith(scheme) and len(uri) > len(scheme):
            try:
                return unquote(uri[len(scheme) :], errors="strict")
            except UnicodeDecodeError:
                return None
    return None
