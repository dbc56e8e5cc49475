"""These tests run the kernels in Triton's interpreter, on the CPU."""

from __future__ import annotations

import tests.interpreter  # noqa: F401  before anything imports triton
