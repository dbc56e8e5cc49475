"""deploy/ray/app.py and the files around it: arguments that are real, checked and explained."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from api.cli import main
from api.config import ServerConfig
from api.stopping import stop_limit_s
from tests.deploy.ray.live import PYTHON, ROOT

FOLDER = ROOT / "deploy" / "ray"
CHECK_BUILDS = """
import json, sys, yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
from ray.serve.schema import ServeDeploySchema
from deploy.ray.app import build

config = ServeDeploySchema.model_validate(yaml.safe_load(open("deploy/ray/serve.yaml")))
told = []
for arguments in (config.applications[0].args, *json.load(sys.stdin)):
    try:
        told.append(str(call(build, arguments)._bound_deployment.name))
    except ValidationError as error:
        told.append(str(error))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """The arguments in serve.yaml."""
    (application,) = yaml.safe_load((FOLDER / "serve.yaml").read_text())["applications"]
    arguments: dict[str, Any] = application["args"]
    return arguments


def fields() -> dict[str, float]:
    """Names of the arguments, and the defaults that are plain numbers."""
    tree = ast.parse((FOLDER / "app.py").read_text())
    (arguments,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Arguments"
    )
    found = {}
    for node in arguments.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.value.args[0] if isinstance(node.value, ast.Call) else None
            number = first.value if isinstance(first, ast.Constant) else float("nan")
            found[node.target.id] = number
    return found  # type: ignore[return-value]


def test_every_argument_is_explained_with_its_default(shipped: dict[str, Any]) -> None:
    told = (ROOT / "docs" / "ray.md").read_text()
    assert shipped.keys() <= fields().keys()
    table = told.partition("| argument |")[2].partition("\n\n")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    for name, default in fields().items():
        (row,) = (row for row in rows if f"`{name}`" in row.split("|")[1])
        if isinstance(default, int | float) and default == default:
            assert re.search(rf"\b{default}\b", row.split("|")[2]), row


def test_shipped_options_are_real_and_leave_the_server_time_to_stop(
    shipped: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    real = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    options = shlex.split(shipped["options"])
    assert {word for word in options if word.startswith("--")} <= real
    asked = {
        name: float(options[options.index(f"--{name.replace('_', '-')}") + 1])
        for name in ("drain_delay_s", "shutdown_grace_s")
    }
    assert stop_limit_s(ServerConfig(**asked)) < shipped["stop_grace_s"]  # type: ignore[arg-type]
    assert stop_limit_s(ServerConfig()) < fields()["stop_grace_s"]


def test_requirements_are_pinned() -> None:
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w\[\]-]+==[\w.]+", line) for line in wanted)


@pytest.mark.check
@pytest.mark.timeout(600)
def test_arguments_are_checked_by_ray_s_own_builder() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"min_replicas": "2", "options": "--threads 1"}, "max_replicas is 1; it must be at least"),
        ({"min_replicas": "2", "max_replicas": "3"}, "Ingress"),
        ({"options": ["--port", "1"]}, "--port: a replica's server is reached by its replica only"),
        ({"target_ongoing_requests": 0}, "target_ongoing_requests"),
        ({"replicas": 2}, "Extra inputs are not permitted"),
    ]
    done = subprocess.run(
        [PYTHON, "-c", CHECK_BUILDS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps([arguments for arguments, _ in cases]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout.splitlines()[-1])
    assert first == "Ingress"
    for found, (_, told) in zip(others, cases, strict=True):
        assert told in found
