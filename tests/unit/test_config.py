"""Configuration: three layers, one validation, errors that name the key and its source, and no secret in any output."""

from __future__ import annotations

import os
import re
import traceback
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from distier.config import (
    Config,
    TransformName,
    format_duration,
    format_size,
    load_config,
    mask_url,
    parse_cluster_url,
    parse_duration_ms,
    parse_sentinel_url,
    parse_size_bytes,
)
from distier.errors import ConfigError
from distier.policy.transform import TRANSFORMS
from distier.stores.redis import AsyncRedisExchange, RedisExchange
from distier.stores.redis.aio_cluster import AsyncClusterExchange
from distier.stores.redis.cluster import ClusterExchange
from docs.generate.config import render


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("DISTIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "distier.yaml"
    path.write_text(text)
    return path


def refused(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


def test_defaults_describe_the_embedded_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTIER_HOME", str(tmp_path / "d"))
    config = load_config()
    assert config.embedded and config.home == tmp_path / "d" and config.archive_directory == tmp_path / "d/cold"
    tiers = config.storage_tiers
    assert (tiers.hot.max_size, tiers.hot.max_bytes, tiers.warm.ttl_ms) == (50_000, 256 * 1024**2, 86_400_000)
    assert (tiers.cold.archive_after_ms, tiers.demotion_threshold_ms) == (60_000, 3_600_000)
    assert (config.deadline_ms, config.worker.tombstone_grace_ms) == (5000, 7 * 86_400_000)
    assert config.sources()["namespace"] == "default" and not config.explicit("namespace")


def test_example_of_the_design_loads(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            """
redis: {url: "redis://localhost:6379/0"}
namespace: team
storage_tiers:
  hot:  {max_size: 50000, max_bytes: 256MiB, eviction_policy: lru}
  warm: {placement: redis, ttl: 24h, max_modules: 100, max_bytes: 1GiB, directory: storage/warm, compression: lz4}
  cold: {url: "s3://bucket/a/prefix/", compression: lzma, compression_level: 9, archive_after: 60s}
  promotion_threshold: 5
  demotion_threshold: 3600
""",
        )
    )
    assert config.storage_tiers.demotion_threshold_ms == 3_600_000
    assert (config.storage_tiers.cold.bucket, config.storage_tiers.cold.prefix) == ("bucket", "a/prefix")
    assert config.storage_tiers.warm.directory == tmp_path / "storage/warm"
    assert config.archive_directory is None and not config.embedded


def test_environment_overrides_file_and_arguments_override_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "namespace: file\nshards: 2\ndeadline: 1s\nstorage_tiers:\n  hot: {max_size: 1}\n")
    monkeypatch.setenv("DISTIER_SHARDS", "3")
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__HOT__MAX_SIZE", "1000")
    monkeypatch.setenv("DISTIER_DEADLINE", "2s")
    monkeypatch.setenv("DISTIER_COUNTER", "")  # empty counts as unset
    monkeypatch.setenv("DISTIER_TRANSFORMS", '{"application/json": "json-whitespace"}')
    config = load_config(deadline="3s", worker={"interval": "2s"}, events__max_length=7, home=None)
    assert (config.namespace, config.shards, config.deadline_ms) == ("file", 3, 3000)
    assert (config.storage_tiers.hot.max_size, config.worker.interval_ms, config.events.max_length) == (
        1000,
        2000,
        7,
    )
    assert config.transforms == {"application/json": "json-whitespace"}
    where = config.sources()
    assert where["namespace"] == "file distier.yaml:1"
    assert where["shards"] == "environment DISTIER_SHARDS"
    assert where["deadline"] == where["events.max_length"] == "argument"
    assert where["counter"] == "default"
    assert config.explicit("storage_tiers.hot") and not config.explicit("storage_tiers.warm")


def test_short_variables_and_named_file_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "other.yaml"
    path.write_text("storage_tiers: {cold: {directory: archive}}\n")
    monkeypatch.setenv("DISTIER_CONFIG", str(path))
    monkeypatch.setenv("DISTIER_REDIS_URL", "redis://h")
    monkeypatch.setenv("DISTIER_NAMESPACE", "n")
    config = load_config()
    assert (config.redis.url, config.namespace) == ("redis://h", "n")
    assert config.archive_directory == tmp_path / "sub" / "archive"  # relative to its file
    monkeypatch.setenv("DISTIER_CONFIG", str(tmp_path / "gone.yaml"))
    assert "gone.yaml" in refused()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("namespase: x\n", ["namespase: unknown key", "distier.yaml:1", "did you mean namespace?"]),
        ("\nstorage_tiers:\n  hot:\n    max_sise: 4\n", [":4", "did you mean storage_tiers.hot.max_size?"]),
        ("max_size: 4\n", ["did you mean storage_tiers.hot.max_size?"]),
        ("storage_tiers: {hot: {max_bytes: 3XB}}\n", ["storage_tiers.hot.max_bytes = '3XB'", "'XB'", ":1"]),
        ("deadline: 1h\n", ["deadline = '1h'", "50ms to 120s"]),
        ("deadline: -5\n", ["deadline = -5", "duration"]),
        ("shards: yes\n", ["shards = True"]),
        ("shards: 0\n", ["shards = 0", "1"]),
        ("shards: 16385\n", ["shards = 16385"]),
        ("namespace: A b\n", ["namespace = 'A b'"]),
        ("namespace: 5\n", ["namespace = 5"]),
        ("max_module_bytes: 257MiB\n", ["max_module_bytes", "256MiB"]),
        ("durability: maybe\n", ["durability = 'maybe': must be redis or replicated or archived"]),
        ("storage_tiers: {warm: {placement: disk}}\n", ["warm.placement", "redis or local or both"]),
        ("storage_tiers: {warm: {placement: local, max_bytes: 9TiB}}\n", ["storage_tiers.warm", "at most 8TiB"]),
        ("node: web1\n", ["storage_tiers.warm.placement to local or both"]),
        ("storage_tiers: {warm: {placement: local}}\nnode: a b\n", ["node", "1 to 64"]),
        ("storage_tiers: {warm: {compression: zip}}\n", ["must be lz4 or none"]),
        (
            "storage_tiers: {cold: {url: 's3://bucket/p', directory: d}}\n",
            ["storage_tiers.cold: url cannot be combined with directory"],
        ),
        ("storage_tiers: {cold: {url: /tmp/x}}\n", ["s3://bucket/prefix", "directory"]),
        ("storage_tiers: {cold: {access_key: a}}\n", ["access_key and secret_key must be set together"]),
        ("redis: {url: 'redis://h'}\n", ["an archive is required", "storage_tiers.cold.url"]),
        ("redis: {url: 'http://h'}\n", ["redis.url", "rediss://"]),
        ("redis: {url: 'redis://h', ca_file: ca.pem}\n", ["rediss://"]),
        ("redis: redis://h\n", ["a section with the keys url"]),
        ("transforms: {application/json: gzip}\n", ["json-whitespace or python-minify"]),
        ("transforms: {json: json-whitespace}\n", ["content type"]),
        ("shards: 1\nshards: 2\n", ["shards: given twice", ":2"]),
        (
            "storage_tiers:\n  hot:\n    max_size: 1\n    max_size: 1\n",
            ["storage_tiers.hot.max_size: given twice", ":4"],
        ),
        ("- a\n", ["must be a mapping", "list"]),
        ("a: [\n", ["not valid YAML", ":2"]),
        ("a: b: c\n", ["not valid YAML", ":1"]),
        ("a: !!python/object:os.system x\n", ["not valid YAML"]),
        ("a: &x {b: *x}\n", ["too deep"]),
        ("a: 2024-13-45\n", ["not valid YAML"]),
    ],
)
def test_invalid_file_error_names_the_key_and_the_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refused(write(tmp_path, text))
    assert [p for p in parts if p not in message] == [], message


def test_all_wrong_values_are_reported_at_once(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "shards: 0\nnamespace: A\n"), deadline="x")
    assert len(message.splitlines()) == 3 and "(argument)" in message


def test_empty_files_and_sections_give_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")).dump() == load_config(write(tmp_path, "redis:\nworker:\n")).dump()


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    assert "nothere" in refused(tmp_path / "nothere")
    assert "cannot read" in refused(tmp_path)
    (tmp_path / "latin").write_bytes(b"namespace: \xe9")
    assert "UTF-8" in refused(str(tmp_path / "latin"))
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    assert "larger" in refused(tmp_path / "large")


def test_unknown_variables_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__HOT__MAX_SISE", "1")
    assert "environment DISTIER_STORAGE_TIERS__HOT__MAX_SISE); did you mean" in refused()


def test_variable_with_invalid_yaml_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_TRANSFORMS", "{a: [")
    assert "DISTIER_TRANSFORMS" in refused()


SECRET = "hunter2-\u00e9"  # must not appear in any message


@pytest.mark.parametrize(
    "arguments",
    [
        {"redis": {"password": [SECRET]}},
        {"redis": {"password": {"a": SECRET}}},
        {"redis": {"passwrod": SECRET}},
        {"redis": f"redis://:{SECRET}@h"},
        {"redis": {"url": f"http://u:{SECRET}@h"}},
        {"redis": {"url": f"http://u:p@{SECRET}/@h"}},
        {"redis": {"url": f"x://h?password={SECRET}"}},
        {"namespace": f"redis://:{SECRET}@h"},
        {"storage_tiers": {"cold": {"secret_key": SECRET, "url": "s3://bucket"}}},
        {"storage_tiers": {"cold": {"session_token": [SECRET], "url": "s3://bucket"}}},
        {"redis": {"url": "redis://h", "password": SECRET}},
    ],
)
def test_no_error_shows_a_secret(arguments: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(**arguments)
    # without source lines, which are lines of this test
    shown = "".join(traceback.TracebackException.from_exception(caught.value).format_exception_only())
    assert SECRET not in shown and SECRET not in repr(caught.value)
    # pydantic's error would print its input below ours
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_syntax_error_does_not_show_a_secret(tmp_path: Path) -> None:
    assert SECRET not in refused(write(tmp_path, f"redis: {{password: {SECRET}: ]\n"))


def test_repr_and_dump_hide_secrets_and_the_config_keeps_them() -> None:
    config = load_config(
        redis={"url": f"redis://u:{SECRET}@h", "password": SECRET},
        storage_tiers={"cold": {"directory": "d", "access_key": "a", "secret_key": SECRET}},
    )
    for shown in (repr(config), str(config), repr(config.redis), str(config.dump()), str(config.sources())):
        assert SECRET not in shown
    assert config.redis.url == f"redis://u:{SECRET}@h"
    assert isinstance(config.redis.password, SecretStr) and config.redis.password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@h:1/0", "redis://:***@h:1/0"),
        ("rediss://u:p@w/x@h:1", "rediss://u:***@h:1"),
        ("unix:///tmp/s.sock?db=1&password=pw", "unix:///tmp/s.sock?db=1&password=***"),
        ("cannot reach redis://a:b@h now", "cannot reach redis://a:***@h now"),
    ],
)
def test_mask_url_hides_the_password(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        redis={"url": "rediss://u:p@h", "ca_file": "ca.pem"},
        storage_tiers={"cold": {"directory": "arch"}, "warm": {"ttl": "90s", "max_bytes": "10MB"}},
        transforms={"text/x-python": "python-minify"},
        outline=["text/markdown"],
    )
    path = write(tmp_path, yaml.safe_dump(config.dump(secrets=True)))
    assert load_config(path).model_dump() == config.model_dump()
    assert yaml.safe_load(path.read_text())["storage_tiers"]["warm"]["max_bytes"] == "10MB"


def test_overrides_keep_other_values_and_their_sources(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "namespace: a\nstorage_tiers: {hot: {max_size: 9, max_bytes: 1KiB}}\n"))
    other = config.with_overrides(shards=4, storage_tiers={"hot": {"max_size": 5}})
    assert (other.namespace, other.shards, other.storage_tiers.hot.max_size) == ("a", 4, 5)
    assert other.storage_tiers.hot.max_bytes == 1024
    assert other.sources()["namespace"] == "file " + str(tmp_path / "distier.yaml") + ":1"
    assert other.sources()["shards"] == "argument"
    assert load_config(config) is config and load_config(config, shards=2).shards == 2
    with pytest.raises(ConfigError):
        config.with_overrides(shards=0)


def test_mapping_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_NAMESPACE", "env")
    monkeypatch.setenv("DISTIER_SHARDS", "2")
    config = load_config({"namespace": "map", "redis": {"url": None}})
    assert (config.namespace, config.shards) == ("map", 2)


def test_config_is_immutable() -> None:
    with pytest.raises(ValidationError):
        Config().namespace = "x"


def test_transform_names_match_the_transforms() -> None:
    assert set(get_args(get_args(TransformName)[0])) == set(TRANSFORMS)


@given(st.integers(0, 10**15))
def test_formatted_units_parse_back(number: int) -> None:
    assert parse_duration_ms(format_duration(number)) == number
    assert parse_size_bytes(format_size(number)) == number


@pytest.mark.parametrize(
    ("text", "ms"),
    [("500ms", 500), ("1.5h", 5_400_000), ("7d", 604_800_000), (60, 60_000), ("60", 60_000), (0.25, 250)],
)
def test_durations_are_parsed(text: object, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "size"), [("1KiB", 1024), ("10MB", 10**7), ("0.5GiB", 2**29), (7, 7), ("1 tib", 2**40)]
)
def test_sizes_are_parsed(text: object, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "s", "5 parsecs", "-1s", True, None, [], float("nan"), 1e300, "9" * 18 + "d", "١s"]
)
def test_impossible_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError):
        parse_duration_ms(text)


# -- sentinel:// -----------------------------------------------------------------------------------------------------


def test_sentinel_url_is_parsed() -> None:
    url = "sentinel://ann:p%40ss%2Fw@h1:26380,[::1]:5,h-2.example/my.master/3"
    found = parse_sentinel_url(url)
    assert found.sentinels == (("h1", 26380), ("::1", 5), ("h-2.example", 26379))
    assert (found.master, found.db, found.username, found.password) == ("my.master", 3, "ann", "p@ss/w")
    plain = parse_sentinel_url("sentinel://h1:1/m")
    assert (plain.sentinels, plain.master, plain.db, plain.username, plain.password) == (
        (("h1", 1),),
        "m",
        0,
        None,
        None,
    )
    assert parse_sentinel_url("sentinel://:pw@h/m").password == "pw"
    assert parse_sentinel_url(url.replace("sentinel:", "sentinels:")) == replace(found, tls=True)


@pytest.mark.parametrize(
    "url",
    ["sentinel://", "sentinel://h:1", "sentinel://h:1/", "sentinel:///m", "sentinel://h:1,/m", "sentinel://h:70000/m",
     "sentinel://h:0/m", "sentinel://h:1/m/x", "sentinel://h:1/m/1/2", "sentinel://h i:1/m", "sentinels://h:1"],
)  # fmt: skip
def test_incomplete_sentinel_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="sentinel://"):
        load_config({"redis": {"url": url}, "storage_tiers": {"cold": {"directory": "d"}}})


def test_password_of_a_sentinel_url_is_never_shown() -> None:
    url = f"sentinel://ann:{SECRET}@h1:1,h2:2/m/0"
    config = load_config(redis={"url": url}, storage_tiers={"cold": {"directory": "d"}})
    exchanges = (RedisExchange(config, url), AsyncRedisExchange(config, url))
    for shown in (
        *map(repr, exchanges),
        repr(config),
        str(config.dump()),
        repr(parse_sentinel_url(url)),
        mask_url(url),
    ):
        assert SECRET not in shown
    assert "sentinel://ann:***@h1:1,h2:2/m/0" in repr(exchanges[0])
    with pytest.raises(ConfigError) as refused:
        load_config(redis={"url": f"sentinel://ann:{SECRET}@h1:1"}, storage_tiers={"cold": {"directory": "d"}})
    assert SECRET not in str(refused.value)


# -- cluster:// ------------------------------------------------------------------------------------------------------


def test_cluster_url_is_parsed() -> None:
    url = "cluster://ann:p%40ss%2Fw@h1:7000,[::1]:5,h-2.example"
    found = parse_cluster_url(url)
    assert found.nodes == (("h1", 7000), ("::1", 5), ("h-2.example", 6379))
    assert (found.username, found.password, found.tls) == ("ann", "p@ss/w", False)
    assert parse_cluster_url(url.replace("cluster:", "clusters:")) == replace(found, tls=True)
    assert parse_cluster_url("cluster://h:1/").nodes == (("h", 1),)


@pytest.mark.parametrize(
    "url", ["cluster://", "cluster:///", "cluster://h:1,", "cluster://h:70000", "cluster://h:0", "cluster://h i:1",
            "cluster://h:1/x", "cluster://h:1?db=1", "clusters://u:p@"],
)  # fmt: skip
def test_cluster_url_without_a_valid_node_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="cluster://"):
        load_config({"redis": {"url": url}, "storage_tiers": {"cold": {"directory": "d"}}})


def test_cluster_has_no_numbered_databases() -> None:
    assert "no numbered databases" in refused(
        redis={"url": "cluster://h:1/0"}, storage_tiers={"cold": {"directory": "d"}}
    )


def test_certificates_require_a_scheme_with_tls() -> None:
    for url in ("rediss://h", "sentinels://h/m", "clusters://h"):
        load_config(redis={"url": url, "ca_file": "ca.pem"}, storage_tiers={"cold": {"directory": "d"}})
    for url in ("redis://h", "sentinel://h/m", "cluster://h"):
        message = refused(redis={"url": url, "ca_file": "ca.pem"}, storage_tiers={"cold": {"directory": "d"}})
        assert "clusters://" in message and "sentinels://" in message


def test_password_of_a_cluster_url_is_never_shown() -> None:
    url = f"cluster://ann:{SECRET}@h1:1,h2:2"
    config = load_config(redis={"url": url}, storage_tiers={"cold": {"directory": "d"}})
    exchanges = (ClusterExchange(config, url), AsyncClusterExchange(config, url))
    shown = (*map(repr, exchanges), repr(config), str(config.dump()), repr(parse_cluster_url(url)), mask_url(url),
             mask_url(exchanges[0].nodes.url_of(("h3", 3))))  # fmt: skip
    assert not [text for text in shown if SECRET in text]
    assert "cluster://ann:***@h1:1,h2:2" in repr(exchanges[0])
    assert SECRET not in refused(
        redis={"url": f"cluster://ann:{SECRET}@h1:x"}, storage_tiers={"cold": {"directory": "d"}}
    )


@pytest.mark.parametrize("key", ["headroom", "cpu_share", "archive_requests_per_second"])
@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", float("nan"), float("inf")], ids=repr)
def test_infinite_and_nan_numbers_are_refused(key: str, value: object) -> None:
    message = refused(None, worker={key: value})
    assert f"worker.{key}" in message and "must be a finite number" in message


# -- docs/CONFIG.md -----------------------------------------------------------------------------------------------------------


def test_config_page_is_generated_from_the_model() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "CONFIG.md"
    assert page.read_text("utf-8") == render(), "run `make docs`"


def test_config_page_describes_every_setting() -> None:
    rows = [line.strip("| ").split(" | ") for line in render().splitlines() if line.startswith("| `")]
    described = {cells[0].strip("`"): cells[-1].strip() for cells in rows}
    assert described.keys() == Config().sources().keys()
    assert all(described.values()), [key for key, what in described.items() if not what]


def test_config_page_shows_the_ranges_that_are_enforced() -> None:
    """The ends of each range of durations or sizes on the page are accepted, and a value above it is refused."""
    found = re.findall(r"^\| `([a-z_.]+)` \| [^|]* \| ([0-9]\w* to [0-9]\w*) \|", render(), re.MULTILINE)
    assert len(found) > 15
    for key, values in found:
        least, most = values.split(" to ")
        name = key.replace(".", "__")
        load_config(None, **{name: least}), load_config(None, **{name: most})
        assert key in refused(None, **{name: f"9{most}"}), key


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user without an entry in the password file, as in many containers."""

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
def test_missing_home_directory_is_an_error_only_if_needed(tmp_path: Path) -> None:
    elsewhere = {"redis__url": "redis://h", "storage_tiers__cold__url": "s3://bucket/x"}
    assert not load_config({}, **elsewhere).embedded
    warm = {"storage_tiers__warm__placement": "local"}
    assert load_config({}, **elsewhere, **warm, storage_tiers__warm__directory=tmp_path).warm_directory == tmp_path
    assert load_config({}, home=tmp_path).home == tmp_path
    for needs_one in ({}, elsewhere | warm):
        with pytest.raises(ConfigError, match="no home directory"):
            load_config({}, **needs_one)
    with pytest.raises(ConfigError, match="no home directory for '~/x'"):
        load_config({}, home="~/x")
