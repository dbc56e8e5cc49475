from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.vocabulary import Opening, TokenMask, Vocabulary
from tests.checkpoints import SPECIAL_TOKENS, write_tokenizer

CLOSER = "</think>"
MERGED = ["</", "think", "k>", "/t", ">x"]
"""Tokens of several characters beside the bytes."""


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    """Bytes, a few longer tokens, and the closer as an added token that is not flagged special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = {text: i for i, text in enumerate([CLOSER, *alphabet, *MERGED])}
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(CLOSER, special=False, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Vocabulary(tmp_path / "tokenizer.json", 300, (7,))


def tokens_in(mask: TokenMask) -> set[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.nonzero(bits)[0].tolist())


@pytest.fixture
def id_of(vocabulary: Vocabulary) -> Callable[[str], int]:
    ids = {text: token for token, text in vocabulary.text.items()}
    return lambda text: ids[text.encode()]


def test_added_tokens_are_no_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    vocabulary = Vocabulary(tmp_path / "tokenizer.json", 320, (1,))
    assert vocabulary.controls == {i: text for i, text in enumerate(SPECIAL_TOKENS)}
    assert vocabulary.text_ids == list(range(7, 263))
    # No text holds the byte 255, and llguidance has another use for it.
    assert sorted(vocabulary.text.values()) == [b"", *(bytes([byte]) for byte in range(255))]
    assert vocabulary.tokenizer.eos_tokens == [1]


def test_rows_without_token_are_in_no_mask(vocabulary: Vocabulary) -> None:
    assert max(vocabulary.text_ids) == 261 and vocabulary.size == 300
    mask = vocabulary.mask([0, 31, 32, 299])
    assert mask.shape == (10,) and tokens_in(mask) == {0, 31, 32, 299}


def test_a_closer_cannot_be_spelled_out(
    vocabulary: Vocabulary, id_of: Callable[[str], int]
) -> None:
    opening = Opening(vocabulary, 0)
    everything = {*vocabulary.text_ids, 0}
    for spelling in (["</", "think", ">"], ["<", "/t", "h", "i", "n", "k>"], [*CLOSER]):
        tail = b""
        for text in ("a", "<", *spelling[:-1]):
            assert id_of(text) in tokens_in(opening.mask(tail))
            tail = opening.follow(tail, id_of(text))
        banned = everything - tokens_in(opening.mask(tail))
        assert id_of(spelling[-1]) in banned
        assert all(vocabulary.text[token].startswith(spelling[-1].encode()) for token in banned)


def test_what_only_begins_like_the_closer_is_free(
    vocabulary: Vocabulary, id_of: Callable[[str], int]
) -> None:
    opening = Opening(vocabulary, 0)
    tail = b""
    for text in ("</", "think", "s", ">", "<", "/t", "a", "k>"):
        assert id_of(text) in tokens_in(opening.mask(tail))
        tail = opening.follow(tail, id_of(text))


def test_any_other_token_breaks_the_spelling(
    vocabulary: Vocabulary, id_of: Callable[[str], int]
) -> None:
    opening = Opening(vocabulary, 0)
    tail = opening.follow(b"</think", 0)
    assert tail == b"" and id_of(">") in tokens_in(opening.mask(tail))


def test_a_token_that_is_not_a_control_token_can_open_too(vocabulary: Vocabulary) -> None:
    opening = Opening(vocabulary, 70)
    assert tokens_in(opening.mask(opening.follow(b"", 71))) == set(vocabulary.text_ids)
