"""The files of deploy/, docker-compose.yml and .env.example are parsed and compared with the code. If the program that reads a
file is installed, the test runs it."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from distier.config import Config, load_config
from distier.lua import VERBS, script
from distier.observe.metrics import METRICS, Metric
from tests.servers import KINDS, Kind, available_kinds, binary, poll, short_directory

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
COMPOSE = TOP / "docker-compose.yml"
PINNED = re.compile(r"[a-z0-9./_-]+:v?[0-9]+\.[0-9]+[a-z0-9.-]*")


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


YAML_FILES = [COMPOSE, *sorted(p for p in DEPLOY.rglob("*.y*ml"))]
OVERLAY = DEPLOY / "k8s" / "overlays" / "example"
MANIFESTS = sorted((DEPLOY / "k8s").rglob("*.yaml")) + sorted(DEPLOY.glob("*/kustomization.yaml"))


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda p: str(p.relative_to(TOP)))
def test_yaml_parses_without_duplicate_keys(path: Path) -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [k.value for k, _ in node.value if k.value != "<<"]
        assert len(keys) == len(set(keys)), f"{path}: a key twice in line {node.start_mark.line + 1}: {keys}"
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    assert list(yaml.load_all(path.read_text(), Strict))


# -- compose -----------------------------------------------------------------------------------------------------------


def test_compose_has_the_services_and_profiles() -> None:
    services = compose()["services"]
    assert set(services) == {"redis", "valkey", "s3", "bucket", "worker", "redis-exporter", "prometheus", "grafana"}
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert {name for name, wanted in profiles.items() if not wanted} == {"redis", "s3", "bucket", "worker"}
    assert {p for wanted in profiles.values() for p in wanted} == {"valkey", "observability"}


def test_compose_services_are_pinned_local_and_restarted() -> None:
    found = compose()
    services, volumes = found["services"], set(found["volumes"])
    used = set()
    for name, service in services.items():
        assert PINNED.fullmatch(service["image"]), f"{name}: {service['image']} is not pinned"
        for other in service.get("depends_on", ()):
            assert other in services, f"{name} depends on {other}"
        for other, how in _conditions(service).items():
            assert how != "service_healthy" or "healthcheck" in services[other], f"{name} waits for {other}'s health"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (TOP / source).exists(), f"{name} mounts {source}"
            else:
                used.add(source)
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens at {port}"
        assert service.get("restart") in ("unless-stopped", "no"), name
        assert "no-new-privileges:true" in service.get("security_opt", ()) or name == "bucket", name
    assert used == volumes
    assert all("healthcheck" in services[name] for name in set(services) - {"bucket"})
    for name, service in services.items():
        asked = re.findall(r"127\.0\.0\.1[: ]([0-9]+)", str(service.get("healthcheck", {}).get("test")))
        listening = {p.split(":")[2] for p in service.get("ports", ())} | set(service.get("expose", ()))
        assert set(asked) <= listening and (asked or name in ("redis", "valkey", "bucket")), f"{name}: {asked}"
    ports = [p.split(":")[1] for s in services.values() for p in s.get("ports", ())]
    assert len(ports) == len(set(ports))


def _conditions(service: dict[str, Any]) -> dict[str, str]:
    wanted = service.get("depends_on", {})
    return {name: how["condition"] for name, how in wanted.items()} if isinstance(wanted, dict) else {}


def test_compose_has_no_secret_and_the_example_has_all_variables() -> None:
    text = COMPOSE.read_text()
    variables = set(re.findall(r"\$\{([A-Z0-9_]+)", text))
    example = dict(line.split("=", 1) for line in _lines(TOP / ".env.example"))
    assert variables - {"REDIS_HOST"} <= set(example), variables - set(example)
    assert set(example) <= variables, set(example) - variables
    for name, value in example.items():
        if "PASSWORD" in name or "SECRET" in name:
            assert value == "change-me", name
    for name, service in compose()["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if "PASSWORD" in key or "SECRET" in key:
                assert str(value).startswith("${"), f"{name}: {key}"
    assert ".env" in _lines(TOP / ".gitignore") and "env_file" not in text


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


WORDS, DURATION = re.compile(r"[a-zA-Z0-9._-]+"), re.compile(r"([0-9]+(us|ms|s|m|h))+")


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str | int) for k, v in value.items())


def _is_duration(value: Any) -> bool:
    return isinstance(value, str) and DURATION.fullmatch(value) is not None


def _is_build(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"context", "dockerfile"} and (TOP / value["dockerfile"]).is_file()


def _is_healthcheck(value: Any) -> bool:
    durations = {"interval", "timeout", "start_period"}
    if not isinstance(value, dict) or set(value) - durations - {"test", "retries"}:
        return False
    test = value["test"]
    return (
        _is_words(test) and test[0] in ("CMD", "CMD-SHELL") and (test[0] == "CMD" or len(test) == 2) and len(test) > 1
        and all(_is_duration(value[name]) for name in durations & set(value)) and isinstance(value["retries"], int)
    )  # fmt: skip


def _is_dependence(value: Any) -> bool:
    conditions = {"service_started", "service_healthy", "service_completed_successfully"}
    return _is_words(value) or all(
        set(how) <= {"condition", "required"} and how["condition"] in conditions for how in value.values()
    )


# The keys of the compose specification that we use. Any other key is a mistake, or must be added here.
SERVICE: dict[str, Callable[[Any], bool]] = {
    "image": lambda v: isinstance(v, str), "build": _is_build, "user": lambda v: isinstance(v, str),
    "entrypoint": _is_words, "command": _is_words, "environment": _is_map, "volumes": _is_words, "ports": _is_words,
    "expose": lambda v: _is_words(v) and all(port.isdecimal() for port in v), "profiles": _is_words, "tmpfs": _is_words,
    "security_opt": _is_words, "cap_drop": _is_words, "depends_on": _is_dependence, "healthcheck": _is_healthcheck,
    "restart": lambda v: v in ("no", "always", "on-failure", "unless-stopped"), "stop_grace_period": _is_duration,
    "read_only": lambda v: isinstance(v, bool),
}  # fmt: skip


def test_compose_follows_the_specification() -> None:
    found = compose()
    assert {key for key in found if not key.startswith("x-")} == {"name", "services", "volumes"}
    assert WORDS.fullmatch(found["name"]) and all(WORDS.fullmatch(name) for name in found["services"])
    assert all(value is None for value in found["volumes"].values())
    for name, service in found["services"].items():
        assert set(service) <= set(SERVICE), f"{name}: {set(service) - set(SERVICE)}"
        for key, value in service.items():
            assert SERVICE[key](value), f"{name}: {key} is {value!r}"
        for port in service.get("ports", ()):
            assert re.fullmatch(r"[0-9.]+:[0-9]+:[0-9]+", port), port
        for volume in service.get("volumes", ()):
            assert re.fullmatch(r"[^:]+:/[^:]+(:ro)?", volume), volume


def test_checks_of_the_compose_specification_find_mistakes() -> None:
    assert not _is_healthcheck({"test": "curl", "retries": 1}) and not _is_healthcheck(
        {"test": ["CMD", "a"], "retry": 1}
    )
    assert not _is_duration("5 s") and not _is_duration(5) and not _is_words("a") and not _is_map(["A=b"])
    assert not _is_dependence({"redis": {"condition": "healthy"}})


def _interpolated(environment: dict[str, Any]) -> dict[str, str]:
    """Expand `${X:-y}` as compose does, with a placeholder for variables without a default."""
    return {k: re.sub(r"\$\{[A-Z0-9_]+(?::-([^}]*)|[^}]*)\}", lambda m: m[1] or "word", str(v))
            for k, v in environment.items()}  # fmt: skip


def _only(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], at: Path) -> None:
    for name in os.environ:
        if name.startswith("DISTIER_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(at)


@pytest.mark.parametrize("service", ["worker", "bucket"])
def test_the_environment_of_compose_is_a_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: str
) -> None:
    _only(monkeypatch, _interpolated(compose()["services"][service]["environment"]), tmp_path)
    config = load_config()
    assert config.redis.url == "redis://redis:6379/0" and config.redis.username == "worker"
    assert config.storage_tiers.cold.endpoint_url == "http://s3:8333" and config.storage_tiers.cold.bucket
    assert config.namespace == Config().namespace == "default"


# -- the configuration file ----------------------------------------------------------------------------------------------


def test_distier_yaml_has_the_defaults_except_marked_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _only(monkeypatch, {}, tmp_path)
    config = load_config(DEPLOY / "worker" / "distier.yaml")
    default, found = _flat(Config().dump()), _flat(config.dump())
    marked = {"redis.url", "redis.username", "storage_tiers.cold.url"}
    assert {key for key in found if found[key] != default[key]} == marked


def _flat(data: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


# -- Redis ---------------------------------------------------------------------------------------------------------------


def settings_of(path: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _lines(path))


def test_redis_conf_has_the_settings_that_distier_needs() -> None:
    found = settings_of(DEPLOY / "redis" / "redis.conf")
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "protected-mode": "yes",
              "aclfile": "/etc/distier/users.acl", "enable-debug-command": "no", "save": '""'}  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["bind"].startswith("127.0.0.1")
    budgets = Config().storage_tiers
    assert found["maxmemory"] == "2gb" and budgets.hot.max_bytes + budgets.warm.max_bytes < 2 << 30


class _Started:
    """A server started by deploy/redis/entrypoint.sh."""

    def __init__(self, kind: Kind, at: Path, **passwords: str) -> None:
        program = binary(kind)
        assert program
        tools = at / "bin"
        tools.mkdir()
        (tools / f"{kind}-server").symlink_to(program)
        for tool in ("cp", "chmod", "sed", "sha256sum", "cut", "mv", "sh"):
            (tools / tool).symlink_to(shutil.which(tool) or "")
        environment = {
            "PATH": str(tools),
            "REDIS_CONFIG_DIR": str(DEPLOY / "redis"),
            "REDIS_ACL_FILE": str(at / "users.acl"),
        }
        self.socket = at / "s.sock"
        own = ["--dir", str(at), "--port", "0", "--unixsocket", str(self.socket), "--logfile", str(at / "log")]
        self.at = at
        self.process = subprocess.Popen([DEPLOY / "redis" / "entrypoint.sh", *own], env=environment | passwords)
        poll(self._replies, what=f"{kind} with redis.conf and users.acl")

    def client(self, user: str | None = None, password: str | None = None) -> redis.Redis:
        never = Retry(NoBackoff(), 0)  # redis-py treats a refused password as a lost connection
        return redis.Redis(
            unix_socket_path=str(self.socket), username=user, password=password, socket_timeout=5, retry=never
        )

    def _replies(self) -> bool:
        assert self.process.poll() is None, (self.at / "log").read_text() if (self.at / "log").exists() else "no log"
        try:
            return bool(self.client("health", "any").ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(params=KINDS)
def started(request: pytest.FixtureRequest) -> Iterator[_Started]:
    if reason := available_kinds()[request.param]:
        pytest.skip(reason)
    with short_directory() as at:
        server = _Started(request.param, at, AGENT_PASSWORD="a&b/c\\1'\"", OPERATOR_PASSWORD="op")
        yield server
        server.stop()


def test_real_servers_start_with_our_configuration_and_roles(started: _Started) -> None:
    agent = started.client("agent", "a&b/c\\1'\"")
    assert agent.hset("distier:{t}:module:a", "tier", "hot") == 1
    info = agent.info()
    assert info["maxmemory"] == 2 << 30 and info["maxmemory_policy"] == "noeviction" and info["aof_enabled"] == 1
    for user, password in ((None, None), ("agent", "wrong"), ("worker", ""), ("worker", "0" * 64), ("default", "")):
        with pytest.raises((redis.AuthenticationError, redis.ResponseError)):
            started.client(user, password).get("distier:{t}:x")
    with pytest.raises(redis.exceptions.NoPermissionError):
        started.client("health", "any").get("distier:{t}:x")
    environment = Path(f"/proc/{started.process.pid}/cmdline")
    if environment.exists():
        assert b"a&b" not in environment.read_bytes()
    assert (started.at / "users.acl").stat().st_mode & 0o077 == 0
    text = (started.at / "users.acl").read_text()
    assert hashlib.sha256(b"op").hexdigest() in text and "a&b" not in text


def test_acl_file_has_no_password_and_covers_what_the_scripts_call() -> None:
    users = {line.split()[1]: line.split()[2:] for line in (DEPLOY / "redis" / "users.acl").read_text().splitlines()}
    assert users.pop("admin") == ["on", "#" + "0" * 64, "allchannels", "allkeys", "+@all"]  # for people
    assert set(users) == {"default", "health", "agent", "worker", "operator", "deployer", "exporter"}
    for user, words in users.items():
        assert "-@all" in words and "resetchannels" in words, user
        assert not [w for w in words if w.startswith("+@") or w in ("allkeys", "allcommands", "~*", "+@all")], user
        hashes = [w for w in words if w.startswith(("#", ">", "<"))]
        assert hashes == [] if user in ("default", "health") else hashes == ["#" + "0" * 64], user
        assert ("nopass" in words) == (user == "health")
    assert users["default"][0] == "off"
    assert _called() - {w[1:] for w in users["worker"]} == set(), "the role worker lacks commands of scripts"
    assert _called() - {w[1:] for w in users["agent"]} == set()
    writes = {"set", "del", "unlink", "hset", "hsetnx", "hdel", "hincrby", "zadd", "zrem", "xadd", "pexpire", "persist"}
    assert not writes & {w[1:] for w in users["operator"] + users["exporter"]}


def test_every_role_gets_its_password_and_no_service_gets_admin() -> None:
    users = {line.split()[1] for line in (DEPLOY / "redis" / "users.acl").read_text().splitlines()}
    entrypoint = (DEPLOY / "redis" / "entrypoint.sh").read_text()
    passwords = {f"{user.upper()}_PASSWORD" for user in users - {"default", "health"}}
    assert set(re.findall(r"\$\{([A-Z]+_PASSWORD)", entrypoint)) == passwords
    assert set(re.findall(r"\bunset (.*)", entrypoint)[0].split()) == passwords
    assert set(_variables(OVERLAY / "redis-passwords.env.example")) == passwords
    services = compose()["services"]
    assert passwords <= set(services["redis"]["environment"]) and passwords <= set(_variables(TOP / ".env.example"))
    having = {name for name, service in services.items() if "{ADMIN_PASSWORD" in str(service)}
    assert having == {"redis", "valkey"}


def _variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in _lines(path))


def test_page_uses_redis_cli_with_a_role() -> None:
    """The default user is off: commands that change servers need `admin`, and no argument contains a password."""
    page = (TOP / "docs" / "OPERATIONS.md").read_text()
    commands = re.findall(r"`((?:redis|valkey)-cli [^`]+)`|^    ((?:redis|valkey)-cli .*)$", page, re.M)
    assert len(commands) >= 8
    for command in ("".join(pair).replace("\n", " ") for pair in commands):
        assert re.match(r"[a-z]+-cli --user (admin|operator) ", command + " "), command
        assert not re.search(r" (-a|--pass|-u) ", command), command
        if re.search(r"--cluster|CLUSTER|ACL|CONFIG|--memkeys", command):
            assert " --user admin " in command, command


def _called() -> set[str]:
    found: set[str] = set()
    for verb in VERBS:
        source = script(verb).source.decode()
        found |= {name.lower() for name in re.findall(r"call\(\s*'([A-Z]+)'", source)}
    assert len(found) > 20
    return found


# -- images, units, manifests ----------------------------------------------------------------------------------------------


def test_dockerfile_pins_its_images() -> None:
    lines = _lines(DEPLOY / "Dockerfile")
    words = [line.split() for line in lines]
    froms = [w[1] for w in words if w[0] == "FROM"]
    assert froms and all(PINNED.fullmatch(image) for image in froms), froms
    last = max(i for i, w in enumerate(words) if w[0] == "FROM")
    users = [w[1] for w in words[last:] if w[0] == "USER"]
    assert users and users[-1].split(":")[0] not in ("root", "0")
    copied = [source for w in words if w[0] == "COPY" and not w[1].startswith("--") for source in w[1:-1]]
    assert copied and all((TOP / source).exists() for source in copied)
    ignored = _lines(TOP / ".dockerignore")
    assert all(f"!{source}" in ignored for source in copied)
    assert 'ENTRYPOINT ["distier"]' in lines


def test_shell_scripts_parse_and_are_executable() -> None:
    for path in sorted(DEPLOY.rglob("*.sh")):
        assert os.access(path, os.X_OK), path
        assert subprocess.run(["sh", "-n", path], check=False).returncode == 0
        assert "set -eu" in path.read_text()


def test_systemd_unit_is_hardened_and_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = DEPLOY / "systemd" / "distier-worker.service"
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    service = parser["Service"]
    hardened = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
                "PrivateDevices": "yes", "User": "distier", "CapabilityBoundingSet": ""}  # fmt: skip
    assert {name: service.get(name) for name in hardened} == hardened
    assert service["ExecStart"].endswith("distier worker")
    sources = "".join(path.read_text() for path in (TOP / "distier").rglob("*.py"))
    read = {path.split("/")[2] for path in re.findall(r'"(/proc/[^"]+)"', sources)}
    assert "sys" in read and service.get("ProcSubset", "all") == "all", f"ProcSubset=pid hides {read - {'self'}}"
    _only(monkeypatch, {}, tmp_path)
    named = re.findall(r"DISTIER_[A-Z_]+", path.read_text())
    _only(monkeypatch, {name: "word" for name in named if name != "DISTIER_CONFIG"}, tmp_path)
    assert load_config(DEPLOY / "worker" / "distier.yaml", storage_tiers__cold__access_key="a").redis.password


def test_systemd_accepts_the_unit() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    unit = DEPLOY / "systemd" / "distier-worker.service"
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    complaints = [
        line for line in done.stderr.splitlines() if "is not executable" not in line and str(unit.name) in line
    ]
    assert not complaints, done.stderr


def test_kustomizations_name_existing_files() -> None:
    for path in sorted(DEPLOY.rglob("kustomization.yaml")):
        (found,) = documents(path)
        for resource in found.get("resources", ()):
            target = (path.parent / resource).resolve()
            assert target.is_file() or (target / "kustomization.yaml").is_file(), f"{path}: {resource}"
        for generator in found.get("configMapGenerator", ()):
            assert all((path.parent / file).is_file() for file in generator["files"])
    base = DEPLOY / "k8s" / "base"
    listed = set(documents(base / "kustomization.yaml")[0]["resources"])
    assert {p.name for p in base.glob("*.yaml")} - {"kustomization.yaml"} <= listed


# The fields that we use. Any other field is a mistake, or must be added here. (kubectl, if installed, knows all fields.)
KUSTOMIZATION = {"apiVersion", "kind", "labels", "resources", "namespace", "images", "patches", "configMapGenerator",
                 "secretGenerator"}  # fmt: skip


def slips(document: dict[str, Any]) -> None:
    """Raise the errors that the schemas of Kubernetes find in a document, unknown fields included."""
    kubernetes_validate.validate(document, "1.33", strict=True)
    if document["kind"] == "PodDisruptionBudget":  # the schema accepts any text
        assert re.fullmatch(r"[0-9]+%?", str(document["spec"]["minAvailable"])), document["spec"]


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("Deployment", "terminationGracePeriodSeconds:", "terminationGracePeriodSecond:"),
        ("Deployment", "replicas: 2", "replica: 2"),
        ("Deployment", "replicas: 2", "replicas: two"),
        ("StatefulSet", "mountPath: /data", "mountpath: /data"),
        ("StatefulSet", "requests: {storage: 10Gi}", "request: {storage: 10Gi}"),
        ("PodDisruptionBudget", "minAvailable: 1", "minAvailable: one"),
        ("PodDisruptionBudget", "minAvailable: 1", "minAvailble: 1"),
        ("NetworkPolicy", "policyTypes:", "policyType:"),
        ("Service", "clusterIP:", "clusterIp:"),
    ],
)
def test_checks_of_manifests_find_mistakes(kind: str, right: str, wrong: str) -> None:
    texts = [p.read_text() for p in MANIFESTS if f"kind: {kind}\n" in p.read_text() and right in p.read_text()]
    assert texts
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        for document in yaml.safe_load_all(texts[0].replace(right, wrong)):
            slips(document)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: str(p.relative_to(DEPLOY)))
def test_manifests_follow_the_schemas(path: Path) -> None:
    for document in documents(path):
        assert document["apiVersion"] and document["kind"]
        if document["kind"] == "Kustomization":
            assert set(document) <= KUSTOMIZATION, set(document) - KUSTOMIZATION
            continue
        assert document["kind"] != "Secret", "no secret in a file"
        assert document["metadata"]["name"].startswith("distier-") or document["kind"] == "Namespace"
        slips(document)


def _pods() -> dict[str, dict[str, Any]]:
    found = {}
    for path in (DEPLOY / "k8s" / "base").glob("*.yaml"):
        for document in documents(path):
            if document["kind"] in ("StatefulSet", "Deployment"):
                assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]
                found[document["metadata"]["name"]] = document["spec"]["template"]["spec"]
    return found


def test_pods_are_restricted_and_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pods = _pods()
    assert set(pods) == {"distier-redis", "distier-worker"}
    for name, pod in pods.items():
        (container,) = pod["containers"]
        assert PINNED.fullmatch(container["image"]), name
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        fence = container["securityContext"]
        assert fence["readOnlyRootFilesystem"] and not fence["allowPrivilegeEscalation"]
        assert fence["capabilities"]["drop"] == ["ALL"] and container["resources"]["limits"]["memory"]
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert {v["name"] for v in pod["volumes"]} <= mounted
    worker = pods["distier-worker"]["containers"][0]
    names = [e["name"] for e in worker["env"]] + list(_variables(OVERLAY / "archive.env.example"))
    environment = {name: "word" for name in names if name.startswith("DISTIER_") and name != "DISTIER_CONFIG"}
    assert len(environment) == 3
    _only(monkeypatch, environment, tmp_path)
    assert load_config(DEPLOY / "worker" / "distier.yaml").redis.password


def test_overlay_creates_its_namespace_and_secrets() -> None:
    (overlay,) = documents(OVERLAY / "kustomization.yaml")
    (namespace,) = documents(OVERLAY / "namespace.yaml")
    assert "namespace.yaml" in overlay["resources"] and namespace["metadata"]["name"] == overlay["namespace"]
    generated = {secret["name"]: secret["envs"] for secret in overlay["secretGenerator"]}
    used = set()
    for pod in _pods().values():
        (container,) = pod["containers"]
        used |= {source["secretRef"]["name"] for source in container.get("envFrom", ())}
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                used.add(reference["name"])
                (file,) = generated[reference["name"]]
                assert reference["key"] in _variables(OVERLAY / f"{file}.example")
    assert used == set(generated)
    files = [file for envs in generated.values() for file in envs]
    page = (TOP / "docs" / "OPERATIONS.md").read_text()
    for file in files:
        assert not any(_variables(OVERLAY / f"{file}.example").values()), "no secret in a file"
        assert f"{file}.example" in page and not (OVERLAY / file).exists()
    assert "deploy/k8s/overlays/*/*.env" in _lines(TOP / ".gitignore") and all(f.endswith(".env") for f in files)


def test_kubectl_builds_the_overlay(tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    overlay = tmp_path / "deploy" / "k8s" / "overlays" / "ours"
    (tmp_path / "deploy" / "k8s" / "overlays" / "example").rename(overlay)
    command: list[str | Path] = ["kubectl", "kustomize", overlay]  # only reads files, and connects to no cluster
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0 and ".env" in done.stderr, "without passwords nothing is built"
    for example in overlay.glob("*.example"):
        example.with_suffix("").write_text(re.sub("=$", "=word", example.read_text(), flags=re.M))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert sorted({d["kind"] for d in built}) == ["ConfigMap", "Deployment", "Namespace", "NetworkPolicy",
                                                  "PodDisruptionBudget", "Secret", "Service", "StatefulSet"]  # fmt: skip
    for document in built:
        slips(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "distier"
    secrets = {d["metadata"]["name"] for d in built if d["kind"] == "Secret"}
    pods = str([d for d in built if d["kind"] in ("StatefulSet", "Deployment")])
    assert len(secrets) == 2 and all(name in pods for name in secrets)
    assert "0" * 64 in done.stdout and "noeviction" in done.stdout


# -- monitoring --------------------------------------------------------------------------------------------------------------


def test_exporter_has_the_metrics_of_prometheus_and_grafana() -> None:
    (scrape,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    targets = [t for job in scrape["scrape_configs"] for c in job.get("static_configs", ()) for t in c["targets"]]
    assert [t.split(":")[0] for t in targets] == ["redis-exporter"] and "redis-exporter" in compose()["services"]
    (workers,) = (c for job in scrape["scrape_configs"] for c in job.get("dns_sd_configs", ()))
    assert workers["names"] == ["worker"] and str(workers["port"]) in compose()["services"]["worker"]["expose"]
    assert all((DEPLOY / "prometheus" / file).is_file() for file in scrape["rule_files"])
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "distier.json").read_text())
    asked = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    (alerts,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    asked += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    source = (DEPLOY / "prometheus" / "distier.lua").read_text()
    lua = script("put").source.decode()
    for name in {n for e in asked for n in re.findall(r"(?:usage|limits)\[\.\](\w+)", e)}:
        tier, _, what = name.partition("_")
        assert f"'{name}'" in lua or (tier in ("hot", "warm", "cold") and f"'_{what}'" in lua), name
    for name in ("dirty_oldest_seconds", "epoch"):
        assert f"'{name}'" in source and any(name in e for e in asked)
    panels = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]}
    assert len(panels) == len(dashboard["panels"])


# The metrics of redis_exporter that the alerts and the dashboard use; its list of metrics has them (v1.78).
EXPORTER = {
    "redis_up", "redis_script_values", "redis_memory_used_bytes", "redis_memory_max_bytes", "redis_aof_enabled",
    "redis_aof_last_write_status", "redis_evicted_keys_total", "redis_slowlog_last_id", "redis_commands_total",
}  # fmt: skip
PROMETHEUS = {"global", "rule_files", "scrape_configs"}
JOB = {"job_name", "static_configs", "dns_sd_configs"}
PROMETHEUS_DURATION = re.compile(r"([0-9]+(ms|s|m|h|d))+")


def rules() -> list[dict[str, Any]]:
    (alerts,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    assert set(alerts) == {"groups"} and all(set(group) == {"name", "rules"} for group in alerts["groups"])
    return [rule for group in alerts["groups"] for rule in group["rules"]]


def check_rule(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}, rule
    assert PROMETHEUS_DURATION.fullmatch(rule.get("for", "1m")), rule
    assert set(rule["annotations"]) == {"summary", "runbook"} and rule["labels"]["severity"] in ("page", "warn")
    assert len(rule["labels"]) == 1
    check_query(rule["expr"])


def check_query(text: str) -> None:
    """Check a PromQL query: its metrics must exist."""
    parsed = promql_parser.parse(text)
    names = set(re.findall(r"\b(?:redis|distier)_\w+", parsed.prettify()))
    assert names and names <= EXPORTER | {metric.name + suffix for metric in METRICS for suffix in suffixes(metric)}, (
        names
    )


def suffixes(metric: Metric) -> tuple[str, ...]:
    """Return the suffixes of the names of a metric's samples."""
    return ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)


def test_prometheus_files_follow_its_schema() -> None:
    for rule in rules():
        check_rule(rule)
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "distier.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            check_query(target["expr"])
    (settings,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    assert set(settings) == PROMETHEUS and set(settings["global"]) == {"scrape_interval", "evaluation_interval"}
    assert all(PROMETHEUS_DURATION.fullmatch(value) for value in settings["global"].values())
    for job in settings["scrape_configs"]:
        assert set(job) <= JOB, job
        assert all(set(found) == {"targets"} for found in job.get("static_configs", ()))
        assert all(set(found) == {"names", "type", "port"} for found in job.get("dns_sd_configs", ()))
        assert len(job) == 2 and all(found["type"] == "A" for found in job.get("dns_sd_configs", ()))


@pytest.mark.parametrize(
    "slip",
    [{"for": "fivem"}, {"expr": "redis_up == "}, {"expr": "redis_upp == 0"}, {"fore": "5m"}, {"labels": {"severity": "x"}},
     {"expr": "sum by (namespace (distier_shards) > 1"}, {"annotations": {"summery": "x"}}],
)  # fmt: skip
def test_checks_of_alerts_find_mistakes(slip: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_rule(rules()[0] | slip)


def test_page_has_a_row_for_each_alert() -> None:
    page = (TOP / "docs" / "OPERATIONS.md").read_text()
    table = page[page.index("## What to alarm on") :].split("\n\n")[2].splitlines()
    assert table[0].endswith("| alert |")
    cells = [row.split(" | ")[-1].removesuffix(" |") for row in table[2:]]
    named = [name for cell in cells for name in re.findall(r"Distier\w+", cell)]
    assert sorted(named) == sorted(rule["alert"] for rule in rules())
    assert all(re.fullmatch(r"Distier\w+(, Distier\w+)*", cell) or cell.startswith("none: ") for cell in cells), cells
    assert [cell for cell in cells if cell.startswith("none: ")] == [cells[-1]] and table[-1].startswith("| damage")


def test_sizes_on_the_pages_equal_the_measurement() -> None:
    """The page of operators and the page of measurements have the same sizes of a record without its content."""
    scale = (TOP / "docs" / "SCALE.md").read_text()
    measured = {}
    for kind in ("valkey", "redis"):
        table = scale[scale.index(f"| {kind}: tier |") :].split("\n\n")[0]
        rows = [list(map(str.strip, row.strip("|").split("|"))) for row in table.splitlines()[2:]]
        measured[kind] = {tier: int(whole) - int(content) for tier, whole, content in rows}
    page = (TOP / "docs" / "OPERATIONS.md").read_text()
    for tier in ("cold", "warm", "hot"):
        sizes = re.search(rf"([0-9]+)(?: bytes of Redis)? {tier} \(([0-9]+)", page)
        assert sizes, tier
        for kind, text in zip(("valkey", "redis"), sizes.groups(), strict=True):
            assert abs(int(text) - measured[kind][tier]) <= 0.02 * measured[kind][tier], (tier, kind, measured[kind])
    assert max(measured["redis"].values()) <= 1700 and measured["redis"]["cold"] <= 530
    assert "0.5 kB (hot: 1.7) a module" in (DEPLOY / "redis" / "redis.conf").read_text()


def test_metrics_of_workers_are_used_and_documented_as_exported() -> None:
    """Alerts, dashboard and the page of operators name existing metrics."""
    known = {metric.name: metric.kind for metric in METRICS}
    (alerts,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "distier.json").read_text())
    asked = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    asked += [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    samples = {metric.name + suffix: metric.kind for metric in METRICS for suffix in suffixes(metric)}
    names = {name for expr in asked for name in re.findall(r"\bdistier_\w+", expr)}
    assert names <= set(samples) and len(names) >= 4, names - set(samples)
    for expr in asked:
        for counted in re.findall(r"(?:rate|increase)\((distier_\w+)", expr):
            assert samples[counted] in ("counter", "histogram"), expr
    page = (TOP / "docs" / "OPERATIONS.md").read_text()
    documented = set(re.findall(r"\| `(distier_\w+)", page))
    assert documented == set(known), documented ^ set(known)
    for name, kind in known.items():
        assert re.fullmatch(r"distier_[a-z_]+", name) and name.endswith("_total") == (kind == "counter"), name


def test_probes_use_existing_endpoints() -> None:
    service = compose()["services"]["worker"]
    assert service["command"][1:] == ["--health", "0.0.0.0:8080"] and "/readyz" in service["healthcheck"]["test"][-1]
    container = _pods()["distier-worker"]["containers"][0]
    assert container["args"] == service["command"] and container["ports"] == [{"name": "health", "containerPort": 8080}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}


def test_compose_creates_a_missing_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compose's one-shot service creates the bucket on moto's server."""
    import sys

    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DISTIER_", "AWS_"))}
        environment |= _interpolated(compose()["services"]["bucket"]["environment"])
        environment["DISTIER_STORAGE_TIERS__COLD__ENDPOINT_URL"] = f"http://{host}:{port}"
        for _ in range(2):
            began_s = time.monotonic()
            done = subprocess.run([sys.executable, DEPLOY / "s3" / "create_bucket.py"], env=environment, cwd=tmp_path,
                                  capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "is there" in done.stdout and time.monotonic() - began_s < 30
    finally:
        server.stop()
