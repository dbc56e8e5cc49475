"""What start-up leaves in memory, and later garbage collections need not look at."""

from __future__ import annotations

import gc


def set_heap_aside() -> None:
    """Leaves every object there is out of all later collections.

    A full collection visits what modules, model and tokenizer are made of, some 200,000 objects;
    that takes longer than most steps, and every stream would wait for it.
    """
    gc.collect()
    gc.freeze()
