"""Masking of passwords and keys, which no output shows."""

from __future__ import annotations

import re

from pydantic import SecretStr

MASK = "***"
SECRET_KEYS = frozenset({"password", "secret_key", "session_token"})
# Greedy up to the last `@` of the word: the tail of a password with an unescaped `@` or `/` must not leak.
_URL_PASSWORD = re.compile(r"(://[^:@/\s]*):\S*@")
_BARE_PASSWORD = re.compile(r"""((?:^|[\s'"(=])[^:/\s'"(=]*):(?!/)\S*@""")  # user:password@host without a scheme
_QUERY_PASSWORD = re.compile(r"([?&][a-z_]*(?:password|secret|token)[a-z_]*=)[^&\s'\"]*", re.IGNORECASE)


def mask_url(text: str) -> str:
    """Return `text` with the passwords of all URLs in it replaced by `***`, for messages, logs and `repr`."""
    text = _BARE_PASSWORD.sub(rf"\1:{MASK}@", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))
    return _QUERY_PASSWORD.sub(rf"\1{MASK}", text)


def shown_value(key: str, value: object) -> str:
    """Return the value of a setting for messages: secrets are masked, and long values are shortened to 80 characters."""
    if SECRET_KEYS & set(key.split(".")) or isinstance(value, SecretStr):
        return MASK
    text = mask_url(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
