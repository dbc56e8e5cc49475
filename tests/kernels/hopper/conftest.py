"""The kernels' tests run in Triton's interpreter on the CPU; with TRITON_INTERPRET=0, on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import INTERPRETED


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the launchers under test run."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET=0 needs a CUDA device")
    return torch.device("cuda")
