"""Settings shared by all tests, made before anything imports torch."""

from __future__ import annotations

import os

# The models here are tiny: more threads cost more than they bring. Engines that tests start in
# processes of their own inherit this.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
