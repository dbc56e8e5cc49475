"""Settings shared by all tests, made before any of them imports torch."""

from __future__ import annotations

import os

from hypothesis import settings

# The models here are tiny, and `make test` fills the cores with processes: threads would wait for
# each other, spinning. Engines that tests start in processes of their own inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No property here is about time, and the machines that check them are busy.
settings.register_profile("winnow", deadline=None)
settings.load_profile("winnow")
