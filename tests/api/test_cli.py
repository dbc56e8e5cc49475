"""winnow.py and api.cli: the front door, and what comes up behind it."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import winnow
from api.checkpoint import model_name
from api.listening import listen
from api.serving import start_up_table
from engine.client import ConfigError
from engine.messages import Ready
from tests.api.server_process import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_server_side_never_imports_torch() -> None:
    check = "import sys, api.cli, api.batch_cli, api.server; sys.exit('torch' in sys.modules)"
    assert run("-c", check).returncode == 0


def test_the_front_door_imports_no_command() -> None:
    check = "import sys, winnow; sys.exit(any(m.startswith('api') for m in sys.modules))"
    assert run("-c", check).returncode == 0


def test_every_command_has_its_module() -> None:
    for module, _ in winnow.COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert winnow.main(["--help"]) == winnow.main([]) == 0
    assert "serve" in capsys.readouterr().out
    assert winnow.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("winnow ")
    assert winnow.main(["sevre"]) == 2
    assert "sevre" in capsys.readouterr().err


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        winnow.main([command, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", list(winnow.COMMANDS))
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"winnow {command} " in help_of(command, capsys).split("examples:")[1]


@pytest.mark.parametrize("command", ["serve", "batch"])
def test_engine_options_are_grouped(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    help_ = help_of(command, capsys)
    for part in ("model:", "memory and batching:", "attention and numerics:"):
        assert part in help_
    assert "(default: 64)" in help_


def test_names() -> None:
    assert model_name("", ROOT / "deepseek-v3.2-tiny") == "deepseek-v3.2-tiny"
    assert model_name(str(ROOT), ROOT) == ROOT.name
    assert model_name("deepseek-ai/DeepSeek-V3.2", Path("/cache/1234")) == (
        "deepseek-ai/DeepSeek-V3.2"
    )


def test_the_table_shows_the_memory_equation() -> None:
    ready = Ready(
        model_type="deepseek_v32",
        vocab_size=320,
        max_model_len=8704,
        page_tokens=64,
        total_pages=136,
        memory={"weights": 2**21, "latent_pages": 3 * 2**20},
        device="cpu",
        dtype="float32",
    )
    table = start_up_table(("deepseek", "alias"), ready, "http://127.0.0.1:1")
    assert "deepseek, alias" in table
    assert "8,704 tokens" in table
    assert "weights 2 MiB + latent_pages 3 MiB" in table
    assert "http://127.0.0.1:1/v1" in table


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str], random_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            listen("127.0.0.1", port)
        status = winnow.main(["serve", "--model", str(random_model), "--port", str(port)])
    assert status == 1
    assert str(port) in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert winnow.main(["serve", "--port", "0", "--model", str(tmp_path)]) == 1
    assert f"{tmp_path}/tokenizer.json: file not found" in capsys.readouterr().err
