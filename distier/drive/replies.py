"""The meaning of replies: a value, a `DistierError`, or a reason to try again."""

from __future__ import annotations

from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from distier.drive.deadline import main_cost
from distier.effects import Command, RunScript
from distier.errors import ConfigError, Corrupt, DistierError, Full, Invalid, RedisUnavailable

Call = Command[Any] | RunScript[Any]
SHORT = "UNREPLICATED"
# How servers report that the ACL forbids a command in a script: Redis 7.0, and later versions.
_ACL_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
# Temporary refusals: the server is starting, failing over or resharding, or a script runs too long.
_PASSING = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "READONLY",
    "UNBLOCKED",
    "UNKILLABLE",
    "NOREPLICAS",
)


def lacks_script(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and (
        type(reply).__name__ == "NoScriptError" or str(reply).startswith("NOSCRIPT")
    )


_PASSING_TYPES = ("BusyLoadingError", "ReadOnlyError", "TryAgainError", "MasterDownError", "ClusterDownError")
# A script met a key that it does not declare and that has left with its slot. Scripts look at such keys before they write.
_MOVING_KEY = "Script attempted to access a non local key"


def is_passing(reply: Any) -> bool:
    """Return whether this reply is a temporary refusal; the server executed nothing."""
    if not isinstance(reply, RedisError):
        return False
    return _code(reply) in _PASSING or type(reply).__name__ in _PASSING_TYPES or _MOVING_KEY in str(reply)


def may_pass(reply: RedisError) -> bool:
    return is_passing(reply) or lacks_script(reply)


def is_redirection(reply: Any) -> bool:
    """Return whether this reply says that another node of the cluster serves the key."""
    return isinstance(reply, RedisError) and _code(reply) in ("MOVED", "ASK")


def _code(error: RedisError) -> str:
    return str(error).partition(" ")[0].lstrip("-").rstrip(":")


def outcome(call: Call, reply: Any) -> Any:
    """Return the value of a reply, or the `DistierError` that it means, as a value."""
    if isinstance(reply, RedisError):
        return error_of(reply)
    try:
        return parse_reply(call, reply)
    except DistierError as e:
        return e


def parse_reply(call: Call, reply: Any) -> Any:
    """Return the value of a reply. Raises `Corrupt` for a reply that distier's own data cannot give."""
    try:
        return call.parse(reply)
    except DistierError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as e:
        raise Corrupt(
            f"a key of namespace {call.shard.namespace!r} holds a value that distier never writes there ({e!s:.100}); did "
            "another program write to it? Run `distier fsck`"
        ) from e


def error_of(error: RedisError) -> DistierError:
    """Return the `DistierError` for an error reply; Redis' own error is its cause."""
    code, text = _code(error), str(error)
    made: DistierError
    if code == "TRYAGAIN":
        made = RedisUnavailable(
            f"the slot of this shard is moving to another master; its writes and misses work again after the move ({text})"
        )
    elif lacks_script(error):
        made = RedisUnavailable(
            f"Redis forgets scripts as soon as they are loaded; does a program call SCRIPT FLUSH all the time? ({text})"
        )
    elif is_passing(error):
        made = RedisUnavailable(f"Redis cannot answer now: {text}")
    elif is_redirection(error):
        made = ConfigError("this server is a node of a Redis Cluster; write redis.url as cluster://host:port,host:port")
    elif "cluster support disabled" in text:
        made = ConfigError("this server is not a node of a Redis Cluster; write redis.url as redis://host:port/db")
    elif type(error).__name__ == "OutOfMemoryError" or code == "OOM" or "OOM command not allowed" in text:
        made = Full(
            "Redis has reached its maxmemory: it refuses writes; reads and calls that free memory work. "
            "Raise maxmemory, or lower the budgets of distier (`distier doctor`)"
        )
    elif code == SHORT:
        made = RedisUnavailable(
            f"the write was applied, but is not replicated: {text.removeprefix(SHORT).strip()}; it is lost if the primary "
            "fails now"
        )
    elif code == "MISCONF":
        made = RedisUnavailable(f"Redis refuses writes because it cannot persist them: {text}")
    elif (
        isinstance(error, AuthenticationError | NoPermissionError)
        or code
        in (
            "NOAUTH",
            "WRONGPASS",
            "NOPERM",
        )
        or any(command_of in text for command_of in _ACL_IN_SCRIPT)
    ):
        made = ConfigError(f"Redis refuses this user: {text}. Check redis.username and redis.password, or the ACL")
    elif code == "WRONGTYPE" or "WRONGTYPE" in text:
        made = Corrupt(f"a key of this namespace has a foreign type; did another program write to it? ({text})")
    elif "user_script" in text and "attempt to" in text:  # Lua found something else where a number should be
        made = Corrupt(
            f"a key of this namespace holds a value that distier never writes there; run `distier fsck` ({text})"
        )
    else:
        made = Invalid(f"Redis refused a command: {text}")
    made.__cause__ = error
    return made


def lost(error: Exception, end_s: float = 0.0) -> DistierError:
    """Return the `DistierError` for a call without an answer.

    A wrong certificate and a server that is not a sentinel are `ConfigError`, because waiting does not help.
    """
    made: DistierError
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        made = ConfigError(
            f"the server's certificate is not trusted: {error}. Check redis.ca_file, and the host in redis.url"
        )
    elif "unknown command 'SENTINEL'" in str(error):
        made = ConfigError(
            "this server is not a sentinel; name sentinels (their default port is 26379), or write redis.url as "
            "redis://host:port/db"
        )
    else:
        made = RedisUnavailable(
            f"Redis did not answer within the deadline: {type(error).__name__}: {error}{main_cost(end_s)}"
        )
    made.__cause__ = error
    return made
