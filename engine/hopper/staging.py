"""A step's integers on their way to the device: written into pinned memory, copied once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.batch import PageTable


class Staging:
    """Memory for the integers of one step, twice: pinned on the host, and on the device.

    The device's half stays where it is, so that a CUDA graph may read its front.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        pinned = device.type == "cuda"
        self._host = torch.empty(capacity, dtype=torch.int64, pin_memory=pinned)
        self._window = self._host.numpy()
        self.integers = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._copied = torch.cuda.Event() if pinned else None

    def send(self, values: Sequence[int]) -> Tensor:
        """Returns the values [n] int64 on the device, good until the next call; does not wait.

        Raises ValueError for more values than there is room for.
        """
        count = len(values)
        if count > self._host.shape[0]:
            raise ValueError(f"a step has {count} integers; there is room for {len(self._host)}")
        if self._copied is not None:
            self._copied.synchronize()  # of the step before: nearly always over long ago
        self._window[:count] = values
        sent = self.integers[:count]
        sent.copy_(self._host[:count], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return sent


class StagedPageTable(PageTable):
    """The page ids of every slot on the device, of a fixed size; news travels with a step."""

    def __init__(self, slots: int, pages: int, device: torch.device) -> None:
        """For that many slots, each of at most that many pages."""
        self.table = torch.zeros(slots, pages, dtype=torch.int32, device=device)
        self._news: dict[int, int] = {}

    def append(self, slot: int, first: int, pages: list[int]) -> None:
        """Notes that the slot's pages from index `first` on are `pages`.

        Raises ValueError for a slot or a page that the table has no room for.
        """
        slots, most = self.table.shape
        if not 0 <= slot < slots or first + len(pages) > most:
            raise ValueError(
                f"slot {slot} has pages up to {first + len(pages)}; the table has {slots} slots "
                f"of {most} pages"
            )
        place = slot * most + first
        self._news.update(zip(range(place, place + len(pages)), pages, strict=True))

    def news(self) -> list[int]:
        """Returns what is not on the device yet, places first, then pages; and forgets it."""
        news = [*self._news, *self._news.values()]
        self._news.clear()
        return news

    def apply(self, news: Tensor) -> None:
        """Writes `news()` [2 n] int64, once it is on the device."""
        if news.shape[0]:
            places, pages = news.view(2, -1)
            self.table.view(-1).index_copy_(0, places, pages.int())
