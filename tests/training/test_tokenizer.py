"""The embedded tokenizer, and how it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.stages import EMBEDDED, RECIPE
from training.tasks.lexicon import LEXICON
from training.tokenizer import BOS, DSML, EOS, corpus, train_tokenizer, write_tokenizer

TOKENIZER = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_a_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens() -> None:
    assert [TOKENIZER.decode([one]) for one in TOKENIZER.encode("4821").ids] == list("4821")


def test_special_tokens_have_deepseeks_ids_and_flags() -> None:
    assert TOKENIZER.token_to_id(BOS) == 0 and TOKENIZER.token_to_id(EOS) == 1
    flags = {
        token.content: token.special for token in TOKENIZER.get_added_tokens_decoder().values()
    }
    assert flags[BOS] and flags["<think>"] and not flags[DSML]
    assert TOKENIZER.get_vocab_size() <= RECIPE.model.vocab_size
    assert RECIPE.model.vocab_size % 128 == 0


@pytest.mark.parametrize("space", ["", " "])
def test_words_that_are_copied_are_single_tokens(space: str) -> None:
    words = [word for words in LEXICON.values() for word in words]
    split = [word for word in words if len(TOKENIZER.encode(space + word).ids) > 1]
    assert len(split) <= 0.02 * len(words), split


def test_training_is_deterministic(tmp_path: Path) -> None:
    texts = corpus(EMBEDDED, 3, 20)
    assert texts == corpus(EMBEDDED, 3, 20)
    tokenizer = train_tokenizer(texts, 512)
    assert tokenizer.get_vocab_size() <= 512
    write_tokenizer(tokenizer, tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("Hello é").ids == tokenizer.encode("Hello é").ids
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == BOS and config["eos_token"] == EOS


def test_the_recipe_gives_the_embedded_tokenizer() -> None:
    texts = corpus(EMBEDDED, RECIPE.corpus_seed, RECIPE.corpus_cases)
    tokenizer = train_tokenizer(texts, RECIPE.model.vocab_size)
    assert json.loads(tokenizer.to_str()) == json.loads(TOKENIZER.to_str())
