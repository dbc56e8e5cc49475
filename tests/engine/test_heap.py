"""engine.heap: what was there is not collected again, what comes later is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from engine.heap import set_heap_aside


class Node:
    """Something that only a collection frees: it holds itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_later_collections_leave_out_what_was_there() -> None:
    before = Node()
    set_heap_aside()
    assert not any(found is before for found in gc.get_objects())
    assert gc.get_freeze_count() > 0
    after = weakref.ref(Node())
    gc.collect()
    assert after() is None
