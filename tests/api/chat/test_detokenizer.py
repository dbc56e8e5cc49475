import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from api.chat.detokenizer import Detokenizer, TokenBytes
from api.chat.encoding import Encoder
from api.chat.markers import DSML, THINK_END


@given(st.text())
def test_text_comes_back_in_whole_characters(encoder: Encoder, text: str) -> None:
    detokenizer = Detokenizer(TokenBytes(encoder.tokenizer))
    parts = [detokenizer.feed([token_id]) for token_id in encoder.encode_text(text)]
    assert "".join(parts) + detokenizer.finish() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@given(st.data())
def test_any_tokens_decode_as_they_do_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also those that are no UTF-8."""
    ids = st.integers(0, tokenizer.get_vocab_size() - 1)
    chunks = data.draw(st.lists(st.lists(ids, max_size=4), max_size=8))
    detokenizer = Detokenizer(TokenBytes(tokenizer))
    text = "".join(detokenizer.feed(chunk) for chunk in chunks) + detokenizer.finish()
    whole = [token_id for chunk in chunks for token_id in chunk]
    assert text == tokenizer.decode(whole, skip_special_tokens=False)


@given(st.data())
def test_a_token_that_stands_alone_need_not_be_fed(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 1), max_size=12))
    silent = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
    token_bytes = TokenBytes(tokenizer)
    fed, quick = Detokenizer(token_bytes, silent), Detokenizer(token_bytes, silent)
    for token_id in ids:
        text = quick.at_once(token_id)
        assert fed.feed([token_id]) == (quick.feed([token_id]) if text is None else text)
    assert fed.finish() == quick.finish()


def test_most_tokens_stand_alone(encoder: Encoder) -> None:
    detokenizer = Detokenizer(TokenBytes(encoder.tokenizer))
    ids = encoder.encode_text("hello é")
    assert "".join(detokenizer.at_once(token_id) or "" for token_id in ids) == "hello "
    detokenizer.feed(ids[-2:-1])
    assert detokenizer.at_once(ids[0]) is None, "half a character waits"


def test_bytes_that_are_no_text_are_not_held(encoder: Encoder) -> None:
    """logit_bias can make an answer of them; holding them cost the square of its length."""
    token_bytes = TokenBytes(encoder.tokenizer)
    ids = range(encoder.tokenizer.get_vocab_size())
    (continuation,) = (i for i in ids if token_bytes.of(i) == b"\x80")
    detokenizer = Detokenizer(token_bytes)
    assert [detokenizer.feed([continuation]) for _ in range(3)] == ["\ufffd"] * 3
    assert detokenizer.finish() == ""


def test_rows_beyond_the_vocabulary_have_no_text(encoder: Encoder) -> None:
    detokenizer = Detokenizer(TokenBytes(encoder.tokenizer))
    beyond = encoder.tokenizer.get_vocab_size()
    assert detokenizer.feed([beyond]) + detokenizer.finish() == ""


def test_markers_are_text_and_ends_are_silent(encoder: Encoder) -> None:
    detokenizer = Detokenizer(TokenBytes(encoder.tokenizer), encoder.stop_token_ids)
    ids = [encoder.think_end_token_id, encoder.dsml_token_id, encoder.eos_token_id]
    assert detokenizer.feed(ids) + detokenizer.finish() == THINK_END + DSML


@given(st.text())
def test_token_bytes_add_up(encoder: Encoder, text: str) -> None:
    token_bytes = TokenBytes(encoder.tokenizer)
    ids = [*encoder.encode_text(text), encoder.dsml_token_id]
    assert b"".join(token_bytes.of(token_id) for token_id in ids) == (text + DSML).encode()


def test_unknown_token_has_no_bytes(tokenizer: Tokenizer) -> None:
    with pytest.raises(KeyError, match="outside the vocabulary"):
        TokenBytes(tokenizer).of(tokenizer.get_vocab_size())
