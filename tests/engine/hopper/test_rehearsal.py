"""Steps that write nothing: which there are, and what they look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.hopper import rehearsal
from engine.hopper.graphs import Bucket
from engine.hopper.rehearsal import (
    Chunk,
    draw_everything,
    full_decode_batch,
    largest_chunks,
    prefill_batch,
    small_chunks,
)
from scheduler.forms import FormPolicy

CPU = torch.device("cpu")
AUTO = FormPolicy("auto", 2048, 6963)


def test_the_largest_chunks_keep_to_the_limit_of_scores() -> None:
    limit = 128 * 2**20
    chunks = largest_chunks(AUTO, step_tokens=8192, longest=163_840, score_bytes=limit)
    assert {chunk.form for chunk in chunks} == {"mqa", "mha", "masked_mha"}
    for form, tokens, context in chunks:
        assert 1 <= tokens <= min(8192, context) and context <= 163_840
        # One chunk of a whole step is always possible, at a context as short as itself.
        if form != "mha" and context > tokens:
            assert tokens * context * 4 <= limit
    assert Chunk("mqa", limit // 4 // 163_840, 163_840) in chunks


def test_other_policies_have_other_chunks() -> None:
    dense = FormPolicy("dense", 2048, 6963)
    found = largest_chunks(dense, step_tokens=512, longest=4096, score_bytes=2**27)
    assert found == [Chunk("mha", 512, 4096)]
    sparse = FormPolicy("sparse", 2048, 6963)
    found = largest_chunks(sparse, step_tokens=512, longest=4096, score_bytes=2**27)
    assert {chunk.form for chunk in found} == {"mqa", "masked_mha"}


@pytest.mark.parametrize("attention", ["auto", "sparse", "dense"])
def test_small_chunks_meet_every_form_that_can_occur(attention: str) -> None:
    forms = FormPolicy(attention, 2048, 6963)  # type: ignore[arg-type]
    chunks = list(small_chunks(forms, step_tokens=512, longest=163_840))
    expected = {
        "auto": {"mha", "masked_mha", "mqa"},
        "sparse": {"masked_mha", "mqa"},
        "dense": {"mha"},
    }
    assert {chunk.form for chunk in chunks} == expected[attention]
    assert {chunk.tokens % 16 == 0 for chunk in chunks} == {True, False}
    assert all(chunk.tokens <= 512 and chunk.tokens <= chunk.context for chunk in chunks)
    assert not [c for c in small_chunks(forms, step_tokens=512, longest=100) if c.context > 100]


def test_batch_invariant_rows_meet_one_form() -> None:
    forms = FormPolicy("sparse", 2048, 0)
    sizes = {"step_tokens": 512, "longest": 163_840}
    assert {chunk.form for chunk in small_chunks(forms, **sizes)} == {"mqa"}
    assert {chunk.form for chunk in largest_chunks(forms, score_bytes=2**27, **sizes)} == {"mqa"}


def test_a_prefill_batch_writes_nowhere_and_reads_page_0() -> None:
    batch = prefill_batch(Chunk("mqa", 5, 130), CPU)
    assert batch.padded and batch.slots.tolist() == [-1] * 5
    rows = batch.groups[0].kernel_rows
    assert rows.visible.tolist() == [126, 127, 128, 129, 130]
    assert rows.prefill is not None
    assert rows.prefill.context_slots.tolist() == [i % 64 for i in range(130)]
    assert prefill_batch(Chunk("mqa", 1, 130), CPU).groups[0].kernel_rows.prefill is None


def test_a_decode_batch_sees_its_whole_bucket() -> None:
    batch = full_decode_batch(Bucket(3, 200, "mqa"), CPU)
    rows = batch.groups[0].kernel_rows
    assert batch.slots.tolist() == [-1] * 3
    assert rows.visible.tolist() == [200] * 3 and not rows.page_tables.any()


def test_sampling_is_rehearsed_with_all_that_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask, penalty and bias at once, by the kernel, and the longest list of logprobs."""
    drawn: list[torch.Tensor] = []
    listed: list[list[int | None]] = []
    draw, logprobs_of = rehearsal.draw, rehearsal.logprobs_of

    def drawing(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn.append(logits)
        return draw(logits, *rest)

    def listing(logits: torch.Tensor, tokens: list[int], tops: list[int | None]) -> Any:
        listed.append(tops)
        return logprobs_of(logits, tokens, tops)

    monkeypatch.setattr(rehearsal, "draw", drawing)
    monkeypatch.setattr(rehearsal, "logprobs_of", listing)
    draw_everything(3, 70, CPU)
    (logits,) = drawn
    assert logits.shape == (3, 70) and listed == [[20] * 3]
    # Penalised as generated, not to be drawn before min_tokens, biased, a bad word.
    assert logits[0, 0] < 0 and logits[0, 2] == 1
    assert logits[0, 1] == logits[0, 3] == -torch.inf
