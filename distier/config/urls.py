"""URLs of Redis, sentinels, a cluster and S3."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_SCHEMES = ("sentinel://", "sentinels://")
CLUSTER_SCHEMES = ("cluster://", "clusters://")
# Scheme names of other clients, and ours for the same.
_SCHEMES = {
    "valkey": "redis", "valkeys": "rediss", "redis+tls": "rediss", "redis+ssl": "rediss", "valkey+tls": "rediss",
    "redis+unix": "unix", "valkey+unix": "unix", "redis+socket": "unix",
    "redis+sentinel": "sentinel", "rediss+sentinel": "sentinels",
    "valkey+sentinel": "sentinel", "valkeys+sentinel": "sentinels",
    "redis-sentinel": "sentinel", "rediss-sentinel": "sentinels",
    "redis+cluster": "cluster", "rediss+cluster": "clusters", "valkey+cluster": "cluster", "valkeys+cluster": "clusters",
}  # fmt: skip
URL_SCHEMES = ("redis://", "rediss://", "unix://", *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)
TLS_SCHEMES = ("rediss://", "sentinels://", "clusters://")
SENTINEL_PORT = 26379
CLUSTER_PORT = 6379
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_SENTINEL_MASTER = re.compile(r"([A-Za-z0-9._-]+)(?:/([0-9]{1,5}))?/?")
_SENTINEL_FORM = "sentinel://[user:password@]host1:port1,host2:port2/name-of-the-master[/db], or sentinels:// with TLS"
_CLUSTER_FORM = "cluster://[user:password@]host1:port1,host2:port2, or clusters:// with TLS"
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`sentinel://[user:password@]host1:port1,host2:port2/mymaster[/db]`.

    User and password belong to the servers, not to the sentinels. `sentinels://` uses TLS for sentinels and servers.
    """

    sentinels: tuple[Address, ...]
    master: str
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """`cluster://[user:password@]host1:port1,host2:port2`: some nodes of a Redis Cluster.

    The client discovers the other nodes from them. `clusters://` uses TLS for all nodes.
    """

    nodes: tuple[Address, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False


def _parse_hosts(hosts: str, port: int) -> tuple[Address, ...] | None:
    """Parse `host1:port1,host2:port2`. Returns None if one host or port is invalid."""
    found = []
    for host in hosts.split(","):
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match[2] or port) < 65536:
            return None
        found.append((match[1].strip("[]"), int(match[2] or port)))
    return tuple(found)


def _parse_user(user: str) -> tuple[str | None, str | None]:
    name, _, password = user.partition(":")
    return unquote(name) or None, unquote(password) or None


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Parse a sentinel URL.

    Raises:
        ValueError: It is invalid. The message shows nothing of the URL, which may contain a password.
    """
    scheme, _, rest = url.partition("://")
    user, _, where = rest.rpartition("@")
    hosts, _, name = where.partition("/")
    sentinels, master = _parse_hosts(hosts, SENTINEL_PORT), _SENTINEL_MASTER.fullmatch(name)
    if f"{scheme}://" not in SENTINEL_SCHEMES or master is None or sentinels is None:
        raise ValueError(f"must be {_SENTINEL_FORM}")
    return SentinelUrl(sentinels, master[1], int(master[2] or 0), *_parse_user(user), tls=scheme == "sentinels")


def parse_cluster_url(url: str) -> ClusterUrl:
    """Parse a cluster URL.

    Raises:
        ValueError: It is invalid. The message shows nothing of the URL, which may contain a password.
    """
    scheme, _, rest = url.partition("://")
    user, _, hosts = rest.rpartition("@")
    if f"{scheme}://" in CLUSTER_SCHEMES and re.fullmatch(r"[^/?#]*/[0-9]+", hosts):
        raise ValueError(f"a cluster has no numbered databases: must be {_CLUSTER_FORM}")
    nodes = _parse_hosts(hosts.removesuffix("/"), CLUSTER_PORT)
    if f"{scheme}://" not in CLUSTER_SCHEMES or nodes is None:
        raise ValueError(f"must be {_CLUSTER_FORM}")
    return ClusterUrl(nodes, *_parse_user(user), tls=scheme == "clusters")


_CERT_REQS = ("none", "optional", "required")
_URL_SETTINGS: dict[str, Callable[[str], object]] = {
    "db": str.isdecimal, "username": bool, "password": bool, "client_name": bool,
    "ssl_cert_reqs": _CERT_REQS.__contains__, "ssl_check_hostname": ("true", "false", "True", "False", "1", "0").__contains__,
    "ssl_ca_certs": bool, "ssl_certfile": bool, "ssl_keyfile": bool,
}  # fmt: skip


def check_redis_url(given: str) -> str:
    """Return the URL with distier's own scheme name.

    Raises:
        ValueError: It is invalid. The message shows nothing of the URL, which may contain a password.
    """
    scheme, separator, rest = given.strip().partition("://")
    scheme = _SCHEMES.get(scheme.lower(), scheme.lower())
    url = f"{scheme}{separator}{rest}"
    if re.search(r"\s", url):
        raise ValueError("contains white space (in a password, write it as %20)")
    if url.startswith(SENTINEL_SCHEMES):
        parse_sentinel_url(url)
    elif url.startswith(CLUSTER_SCHEMES):
        parse_cluster_url(url)
    elif not url.startswith(URL_SCHEMES) or not rest:
        raise ValueError(
            "must be redis://host:port/db, rediss://host:port/db, unix:///path/to.sock, "
            "sentinel://host1:port1,host2:port2/name-of-the-master or cluster://host1:port1,host2:port2"
        )
    else:
        _check_server_url(url)
    return url


def _check_server_url(url: str) -> None:
    """Check a redis://, rediss:// or unix:// URL. redis-py would misread a wrong part, or fail only at the first connection."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("has an invalid host or port: a port is a number up to 65535; in a password, write / @ : # ? as "
                         "%2F %40 %3A %23 %3F") from None  # fmt: skip
    if parts.port == 0 or parts.fragment:
        raise ValueError("has port 0 or contains # (in a password, write it as %23)")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*/?", parts.path):
        raise ValueError("has a database that is not a number: must be redis://host:port/db")
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise ValueError("has no path: must be unix:///path/to.sock")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        known = _URL_SETTINGS.get(name)
        if name == "protocol":
            raise ValueError("has protocol=: remove it; distier always uses RESP3")
        if known is None:
            raise ValueError(
                f"has an unknown setting {name!r}; known settings: {', '.join(_URL_SETTINGS)}; for timeouts, set `deadline`"
            )
        if name.startswith("ssl_") and parts.scheme != "rediss":
            raise ValueError(f"has {name}, which needs rediss://")
        if not known(value):
            raise ValueError(f"has an invalid value for {name}")


ARCHIVES_GROUP = "distier.archives"
"""The group of entry points by which other packages add kinds of archives, named by the scheme of their URLs."""


def check_archive_url(url: str) -> str:
    scheme, found, _ = url.partition("://")
    if found and scheme != "s3" and entry_points(group=ARCHIVES_GROUP, name=scheme):
        return url
    if not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(?:/[^\s?#]*)?", url):
        raise ValueError("must be s3://bucket/prefix; for a local path, set `directory`")
    return url


def check_http_url(url: str) -> str:
    if not re.fullmatch(r"https?://\S+", url):
        raise ValueError("must be http://... or https://...")
    return url


def check_listen(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host) or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:8080")
    return address
