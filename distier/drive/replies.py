"""What replies mean: a value, an error of ours, or another try."""

from __future__ import annotations

from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from distier.drive.deadline import most
from distier.effects import Command, RunScript
from distier.errors import ConfigError, Corrupt, DistierError, Full, Invalid, RedisUnavailable

Call = Command[Any] | RunScript[Any]
SHORT = "UNREPLICATED"
# How servers say that the ACL forbids a command in a script: Redis 7.0, and those after it.
_ACL_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
# Replies that mean "not now": the server is starting, failing over, resharding, or a script runs too long.
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


def is_passing(reply: Any) -> bool:
    """Whether this reply is a refusal that is worth another try in a moment; nothing was executed."""
    return isinstance(reply, RedisError) and (
        _code(reply) in _PASSING or type(reply).__name__ in ("BusyLoadingError", "ReadOnlyError", "TryAgainError",
                                                             "MasterDownError", "ClusterDownError")
    )  # fmt: skip


def may_pass(reply: RedisError) -> bool:
    return is_passing(reply) or lacks_script(reply)


def is_redirection(reply: Any) -> bool:
    """Whether a node of a cluster says that another one serves this key."""
    return isinstance(reply, RedisError) and _code(reply) in ("MOVED", "ASK")


def _code(error: RedisError) -> str:
    return str(error).partition(" ")[0].lstrip("-").rstrip(":")


def outcome(call: Call, reply: Any) -> Any:
    """The value of a reply, or the `DistierError` that it means, as a value."""
    if isinstance(reply, RedisError):
        return error_of(reply)
    try:
        return understood(call, reply)
    except DistierError as e:
        return e


def understood(call: Call, reply: Any) -> Any:
    """The value of a reply. Raises `Corrupt` where it is none that distier's own data can give."""
    try:
        return call.parse(reply)
    except DistierError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as e:
        raise Corrupt(
            f"a key of namespace {call.shard.namespace!r} holds what distier never wrote there ({e!s:.100}); did something "
            "else write here? Run `distier fsck`"
        ) from e


def error_of(error: RedisError) -> DistierError:
    """Our error for an error reply, with Redis' own words chained."""
    code, text = _code(error), str(error)
    made: DistierError
    if code == "TRYAGAIN":
        made = RedisUnavailable(
            f"the slot of this shard is on its way to another master: its writes and misses wait until it has arrived ({text})"
        )
    elif lacks_script(error):
        made = RedisUnavailable(
            f"Redis forgets scripts as soon as they are loaded: does something call SCRIPT FLUSH all the time? ({text})"
        )
    elif is_passing(error):
        made = RedisUnavailable(f"Redis cannot answer now: {text}")
    elif is_redirection(error):
        made = ConfigError("this server is a node of a Redis Cluster: write redis.url as cluster://host:port,host:port")
    elif "cluster support disabled" in text:
        made = ConfigError("this server is no node of a Redis Cluster: write redis.url as redis://host:port/db")
    elif type(error).__name__ == "OutOfMemoryError" or code == "OOM" or "OOM command not allowed" in text:
        made = Full(
            "Redis is at its maxmemory: writes are refused, reads and everything that frees memory work. "
            "Raise maxmemory, or lower the budgets of distier (`distier doctor`)"
        )
    elif code == SHORT:
        made = RedisUnavailable(
            f"the write was applied, but is not replicated: {text.removeprefix(SHORT).strip()}; it can still be lost "
            "with the primary"
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
        made = Corrupt(f"a key of this namespace has a foreign type; did something else write here? ({text})")
    elif "user_script" in text and "attempt to" in text:  # Lua met no number where there should be one
        made = Corrupt(f"a key of this namespace holds what distier never wrote there; run `distier fsck` ({text})")
    else:
        made = Invalid(f"Redis refused a command: {text}")
    made.__cause__ = error
    return made


def lost(error: Exception, end_s: float = 0.0) -> DistierError:
    """No answer. Also where the two sides cannot agree on TLS: that a server shows a wrong certificate will not pass."""
    made: DistierError
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        made = ConfigError(
            f"the server's certificate is not trusted: {error}. Check redis.ca_file and the host in redis.url"
        )
    elif "unknown command 'SENTINEL'" in str(error):
        made = ConfigError(
            "this server is no sentinel: name sentinels (their port is 26379 by default), or write redis.url as "
            "redis://host:port/db"
        )
    else:
        made = RedisUnavailable(
            f"Redis did not answer within the deadline: {type(error).__name__}: {error}{most(end_s)}"
        )
    made.__cause__ = error
    return made
