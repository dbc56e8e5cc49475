"""Batches: what is packed into a row and what is a target."""

from __future__ import annotations

from random import Random

import pytest
import torch

from api.chat.encoding import Encoder
from training.data import Mix, copied_tokens, encode_case, make_batch
from training.stages import EMBEDDED, MAIN
from training.tasks.case import Case, Turn, answer


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_folder(EMBEDDED)


def test_generated_tokens_are_the_replies(encoder: Encoder) -> None:
    turn = Turn("chat", "Hello <think> </think>", (answer("Hi!", "A greeting."),), "", ("Hi!",))
    encoded = encode_case(encoder, Case("chat", "Be brief.", (), (turn,)), thinking=True)
    marked = zip(encoded.token_ids, encoded.generated, strict=True)
    ids = [token for token, generated in marked if generated]
    text = encoder.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "A greeting.</think>Hi!<｜end▁of▁sentence｜>"


def test_rows_depend_on_seed_and_number_only(encoder: Encoder) -> None:
    both = make_batch(encoder, MAIN, range(2), 384, 0.1, "seed")
    second = make_batch(encoder, MAIN, range(1, 2), 384, 0.1, "seed")
    other = make_batch(encoder, MAIN, range(1, 2), 384, 0.1, "other")
    for whole, part in zip(both, second, strict=True):
        assert torch.equal(whole[1:], part)
    assert not torch.equal(second.token_ids, other.token_ids)


def test_documents_start_at_position_zero_with_bos(encoder: Encoder) -> None:
    batch = make_batch(encoder, Mix(facts=0.5, chat=0.5), range(3), 256, 0.1, "s")
    starts = (batch.documents > 0) & (batch.positions == 0)
    assert (batch.token_ids[starts] == encoder.bos_token_id).all()
    assert (batch.weights[starts] == 0).all()
    assert (batch.weights[batch.documents == 0] == 0).all()
    for row in batch.documents:
        assert row.max() >= 2, "several conversations share a row"


def test_copies_repeat_and_are_targets(encoder: Encoder) -> None:
    for seed in range(20):
        copied = copied_tokens(encoder, Random(seed), 100)
        first = copied.generated.index(True) - 1
        assert 8 <= first <= 48 and len(copied.token_ids) <= 100
        for place in range(first, len(copied.token_ids)):
            assert copied.token_ids[place] == copied.token_ids[place - first]
            assert copied.generated[place] == (place > first)
