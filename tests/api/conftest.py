"""A tiny random checkpoint, a scripted model, and a real server process over the checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.chat.encoding import Encoder
from engine.hub import EMBEDDED_MODEL
from tests.api.scripted_engine import MODEL, Scripted
from tests.api.server_process import ServerProcess
from tests.checkpoints import random_weights, tiny_config, write_checkpoint, write_tokenizer


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The byte-level tokenizer of the tests, with the embedded checkpoint's prompt texts."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    shutil.copytree(EMBEDDED_MODEL / "encoding", folder / "encoding")
    return Encoder.from_folder(folder)


@pytest.fixture
def scripted(encoder: Encoder) -> Scripted:
    return Scripted(encoder)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / MODEL
    config = tiny_config()
    write_checkpoint(folder, config, random_weights(config))
    shutil.copytree(EMBEDDED_MODEL / "encoding", folder / "encoding")
    return folder


@pytest.fixture(scope="session")
def server(random_model: Path) -> Iterator[ServerProcess]:
    """One server for all tests that only talk to it."""
    server = ServerProcess("--model", str(random_model), "--kv-cache-bytes", "8MiB")
    yield server
    assert server.close() == 0


@pytest.fixture
def start_server(random_model: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of a test's own."""
    started: list[ServerProcess] = []

    def start(*options: str) -> ServerProcess:
        started.append(ServerProcess("--model", str(random_model), *options))
        return started[-1]

    yield start
    for server in started:
        server.close()
