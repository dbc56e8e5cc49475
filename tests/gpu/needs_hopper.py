"""What the tests of this folder need: a Hopper GPU, and kernels that are compiled."""

from __future__ import annotations

import os

import pytest
import torch

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
NEEDS_HOPPER = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HOPPER, reason="torch finds no GPU of compute capability 9.0"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 compiles nothing"
    ),
]
