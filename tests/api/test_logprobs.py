"""api.logprobs: token text, exact bytes, and numbers that JSON can hold."""

from __future__ import annotations

import math

from api.chat.detokenizer import TokenBytes
from api.chat.encoding import Encoder
from api.logprobs import FLOOR, LogprobWriter
from engine.messages import TokenLogprobs


def test_entries(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer))
    first, second = encoder.encode_text("é")
    padding = encoder.tokenizer.get_vocab_size() + 5
    entry = writer.entry(first, TokenLogprobs(-1.5, [(second, -0.5), (padding, -math.inf)]))
    assert (entry.token, entry.logprob, entry.bytes) == ("�", -1.5, [0xC3])
    half, unknown = entry.top_logprobs
    assert (half.bytes, half.logprob) == ([0xA9], -0.5)
    assert (unknown.token, unknown.bytes, unknown.logprob) == ("", [], FLOOR)


def test_control_tokens_are_their_text(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer))
    entry = writer.entry(encoder.think_end_token_id, TokenLogprobs(0.0, []))
    assert entry.token == "</think>"
    assert bytes(entry.bytes or ()) == b"</think>"


def test_tokens_can_be_named_by_their_ids(encoder: Encoder) -> None:
    writer = LogprobWriter(TokenBytes(encoder.tokenizer), as_ids=True)
    first, second = encoder.encode_text("é")
    entry = writer.entry(first, TokenLogprobs(-1.5, [(second, -0.5)]))
    assert (entry.token, entry.bytes) == (f"token_id:{first}", [0xC3])
    assert entry.top_logprobs[0].token == f"token_id:{second}"
