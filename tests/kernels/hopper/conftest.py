"""The kernels' tests run in Triton's interpreter on the CPU; with TRITON_INTERPRET=0, on a GPU.

The variable decides when triton, and again when a kernel's module, is imported.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"

if INTERPRETED:
    # Whoever imported triton before got its library of reductions and scans as functions to be
    # compiled, which the interpreter cannot call. The extension module cannot be loaded twice.
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        if not name.startswith("triton._C"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the launchers under test run."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET=0 needs a CUDA device")
    return torch.device("cuda")
