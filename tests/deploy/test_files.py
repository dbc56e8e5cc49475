"""deploy/: the files parse, and every flag, key, port and path in them is real."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.cli import main
from api.config import ChatConfig, ServerConfig
from api.options import build, parse_bytes
from api.stopping import stop_limit_s
from engine.client import EngineConfig
from tests.deploy.promql import DEPLOY

ROOT = DEPLOY.parent
STRUCTS = (EngineConfig, ServerConfig, ChatConfig)


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """The options that `winnow serve --help` shows."""
    import contextlib
    import io

    text = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(text):
        main(["--help"])
    return set(re.findall(r"--[a-z0-9-]+", text.getvalue()))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    return loaded


def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "winnow.yaml").read_text())
    return {document["kind"]: document for document in documents}


def unit() -> dict[str, str]:
    lines = (DEPLOY / "systemd" / "winnow.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w*=", line))


def entrypoint() -> list[str]:
    (found,) = re.findall(r"^ENTRYPOINT (\[.*\])$", containerfile(), re.M)
    words: list[str] = yaml.safe_load(found)
    return words


def containerfile() -> str:
    return (DEPLOY / "Containerfile").read_text()


def settings(text: str) -> dict[str, Any]:
    """What a config file says, by field; every key must be one."""
    known = {name for struct in STRUCTS for name in struct.__struct_fields__}
    values = {key.replace("-", "_"): value for key, value in tomllib.loads(text).items()}
    assert values.keys() <= known
    values = {
        key: parse_bytes(value) if key.endswith("_bytes") and isinstance(value, str) else value
        for key, value in values.items()
    }
    for struct in STRUCTS:
        build(struct, values)
    return values


def stop_seconds(values: dict[str, Any]) -> float:
    """The longest that a server with these settings takes to stop."""
    return stop_limit_s(build(ServerConfig, values))


def test_every_yaml_file_parses() -> None:
    files = [file for kind in ("*.yml", "*.yaml") for file in DEPLOY.rglob(kind)]
    assert len(files) >= 9
    for file in files:
        assert list(yaml.safe_load_all(file.read_text()))


def test_flags_are_real(flags: set[str]) -> None:
    commands = [
        entrypoint(),
        compose()["services"]["winnow"]["command"],
        kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"],
        shlex.split(unit()["ExecStart"]),
    ]
    used = {word for command in commands for word in command if word.startswith("--")}
    assert {"--config", "--metrics-port", "--host"} <= used <= flags


def test_config_files_hold_real_keys() -> None:
    assert settings((DEPLOY / "serve.toml").read_text())["log_format"] == "json"
    assert settings(kubernetes()["ConfigMap"]["data"]["serve.toml"])["kv_cache_bytes"] == 2**31


def test_whoever_stops_the_server_waits_long_enough() -> None:
    shipped = stop_seconds(settings((DEPLOY / "serve.toml").read_text()))
    grace = compose()["services"]["winnow"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > shipped
    assert float(unit()["TimeoutStopSec"]) > shipped
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    own = stop_seconds(settings(kubernetes()["ConfigMap"]["data"]["serve.toml"]))
    assert pod["terminationGracePeriodSeconds"] > own


def test_the_container_serves_on_the_ports_it_exposes() -> None:
    words = entrypoint()
    ports = [words[words.index(flag) + 1] for flag in ("--port", "--metrics-port")]
    (exposed,) = re.findall(r"^EXPOSE (.*)$", containerfile(), re.M)
    assert exposed.split() == ports
    assert f"127.0.0.1:{ports[0]}/health" in containerfile()
    for source in re.findall(r"^COPY (?!--from)(\S+) ", containerfile(), re.M):
        assert (ROOT / source).exists()


def test_prometheus_scrapes_the_port_of_the_metrics() -> None:
    words = entrypoint()
    port = words[words.index("--metrics-port") + 1]
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "winnow"
    assert job["static_configs"][0]["targets"] == [f"winnow:{port}"]
    assert compose()["services"]["winnow"]["expose"] == [port]
    pod = kubernetes()["Deployment"]["spec"]["template"]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == port
    (container,) = pod["spec"]["containers"]
    assert {str(one["containerPort"]) for one in container["ports"]} == {"8000", port}


def test_what_compose_mounts_exists() -> None:
    services = compose()["services"]
    volumes = compose()["volumes"]
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source in volumes or (DEPLOY / source).exists(), mount
    assert (DEPLOY / services["winnow"]["build"]["context"] / "deploy/Containerfile").exists()


def test_grafana_finds_prometheus_and_the_boards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (datasource,) = source["datasources"]
    assert datasource["url"] == "http://prometheus:9090"
    # $__rate_interval is reckoned from it: a longer one would make empty panels.
    assert datasource["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    provider = yaml.safe_load((provisioning / "dashboards" / "winnow.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    mounts = dict(m.split(":")[:2] for m in compose()["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == path
    home = compose()["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert (DEPLOY / "grafana" / "dashboards" / Path(home).name).exists()


def test_probes_ask_routes_that_exist() -> None:
    from api.backend import Backend
    from api.server import create_app

    (container,) = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    app = create_app(Backend(("model",)), ServerConfig())
    assert {probe["path"] for probe in probes} <= {getattr(r, "path", "") for r in app.routes}
    named = {port["name"] for port in container["ports"]}
    assert {probe["port"] for probe in probes} <= named
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    service = kubernetes()["Service"]["spec"]
    assert {port["targetPort"] for port in service["ports"]} <= named
    labels = kubernetes()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
