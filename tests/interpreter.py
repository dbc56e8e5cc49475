"""Triton's interpreter on the CPU, for a whole test session; with TRITON_INTERPRET=0, a GPU.

The variable decides when triton, and again when a kernel's module, is imported: import this module
before either.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"

if INTERPRETED:
    # Whoever imported triton before got its library of reductions and scans as functions to be
    # compiled, which the interpreter cannot call. The extension module cannot be loaded twice.
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        if not name.startswith("triton._C"):
            del sys.modules[name]
