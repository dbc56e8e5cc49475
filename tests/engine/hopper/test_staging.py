from __future__ import annotations

import pytest
import torch

from engine.hopper.staging import StagedPageTable, Staging

CPU = torch.device("cpu")


def test_integers_arrive_and_the_front_stays_in_place() -> None:
    staging = Staging(CPU, 8)
    first = staging.send([3, -1, 2**40])
    assert first.tolist() == [3, -1, 2**40]
    assert first.data_ptr() == staging.integers.data_ptr()
    assert staging.send([7]).tolist() == [7]
    assert staging.integers.tolist()[:3] == [7, -1, 2**40]


def test_more_integers_than_room_are_refused() -> None:
    with pytest.raises(ValueError, match="9 integers; there is room for 8"):
        Staging(CPU, 8).send(list(range(9)))


def test_pages_reach_the_device_with_the_next_step() -> None:
    table = StagedPageTable(2, 4, CPU)
    table.append(1, 0, [5, 6])
    table.append(1, 2, [9])
    table.append(0, 0, [3])
    assert not table.table.any()
    news = table.news()
    table.apply(torch.tensor(news))
    assert table.table.tolist() == [[3, 0, 0, 0], [5, 6, 9, 0]]
    assert table.news() == []
    table.apply(torch.tensor([], dtype=torch.int64))


def test_the_last_owner_of_a_slot_counts() -> None:
    table = StagedPageTable(1, 2, CPU)
    table.append(0, 0, [5, 6])
    table.append(0, 0, [7])
    table.apply(torch.tensor(table.news()))
    assert table.table.tolist() == [[7, 6]]


def test_a_slot_or_page_beyond_the_table_is_refused() -> None:
    table = StagedPageTable(2, 4, CPU)
    with pytest.raises(ValueError, match="2 slots of 4 pages"):
        table.append(2, 0, [1])
    with pytest.raises(ValueError, match="slot 0 has pages up to 5"):
        table.append(0, 3, [1, 2])
