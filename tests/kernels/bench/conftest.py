"""The cases import the kernels: as for their own tests, in Triton's interpreter."""

from __future__ import annotations

import tests.interpreter  # noqa: F401  before anything imports triton
