"""Texts of a wanted length."""

from __future__ import annotations

import pytest

from loadtest.live.text import CORPUS_WORDS, Texts


def test_a_length_in_tokens_is_one_in_words() -> None:
    assert len(Texts(2.0).text(500, "a").split()) == 250
    assert len(Texts(1.0).text(0, "a").split()) == 1
    assert len(Texts(1.0).text(3, "a").split()) == 3


def test_a_key_makes_the_same_text_and_a_longer_one_begins_with_it() -> None:
    one, same, longer = (Texts().text(tokens, "k", 1) for tokens in (100, 100, 900))
    assert one == same and longer.startswith(one + " ")


def test_texts_of_other_keys_differ_from_the_start() -> None:
    texts = Texts()
    starts = {tuple(texts.text(100, "k", number).split()[:8]) for number in range(300)}
    assert len(starts) == 300


@pytest.mark.parametrize("words", [CORPUS_WORDS + 1, 3 * CORPUS_WORDS])
def test_longer_than_the_corpus(words: int) -> None:
    assert len(Texts(1.0).text(words, "long").split()) == words
