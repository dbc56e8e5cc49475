from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import random_weights, tiny_config, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint on disk, with tokenizer; never written to."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    fields = tiny_config(num_hidden_layers=2)
    return write_checkpoint(folder, fields, random_weights(fields))
