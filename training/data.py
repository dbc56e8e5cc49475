"""Batches: conversations rendered by the server's own encoder, packed into rows, loss weighted.

Every batch is a function of (seed, stage, step) alone, so a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from api.chat.encoding import Encoder
from training.tasks.case import Case
from training.tasks.conversations import (
    NoSuchTurnError,
    Split,
    chat_case,
    facts_case,
    mixed_case,
    tool_case,
)

COPY_FIRST_TOKEN = 16
"""Copied tokens are drawn from here on: not from the special ones."""


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """How often each kind of conversation is drawn, and how long it gets."""

    copy: float = 0.0
    """Share of documents that are random tokens, repeated: they teach nothing but copying."""
    facts: float = 0.0
    chat: float = 0.0
    tools: float = 0.0
    mixed: float = 0.0
    fact_count: tuple[int, int] = (3, 8)
    filler: tuple[int, int] = (0, 0)
    questions: tuple[int, int] = (2, 6)
    unknown: float = 0.12
    tool_count: tuple[int, int] = (1, 3)
    tool_turns: tuple[int, int] = (1, 3)
    chain: float = 0.25
    usual: float = 0.5
    """Share of tool and parameter names in their usual spelling; the others have any of theirs."""
    thinking: float = 0.5


class Batch(NamedTuple):
    """int64 token_ids, positions, documents and fp32 target weights of each token, all [B, T]."""

    token_ids: Tensor
    positions: Tensor
    documents: Tensor
    weights: Tensor


class Encoded(NamedTuple):
    """One conversation as tokens; `generated` marks those the model itself must produce."""

    token_ids: list[int]
    generated: list[bool]


def draw_case(rng: Random, mix: Mix, split: Split = "train") -> Case:
    """A conversation of the mix whose last turn belongs to `split`."""
    kinds: dict[str, Callable[[], Case]] = {
        "facts": lambda: facts_case(
            rng,
            split,
            rng.randint(*mix.fact_count),
            rng.randint(*mix.questions),
            rng.randint(*mix.filler),
            mix.unknown,
        ),
        "chat": lambda: chat_case(rng, split, rng.randint(1, 4)),
        "tools": lambda: tool_case(
            rng,
            split,
            rng.randint(*mix.tool_turns),
            rng.randint(*mix.tool_count),
            rng.choice((0.0, 2 * mix.chain)),
            usual=mix.usual,
        ),
        "mixed": lambda: mixed_case(
            rng,
            split,
            rng.randint(*mix.questions),
            rng.randint(*mix.fact_count),
            rng.randint(*mix.tool_count),
            rng.randint(*mix.filler),
            mix.usual,
        ),
    }
    shares = [getattr(mix, kind) for kind in kinds]
    while True:
        (kind,) = rng.choices(list(kinds), shares)
        try:
            return kinds[kind]()
        except NoSuchTurnError:
            continue


def encode_case(encoder: Encoder, case: Case, thinking: bool) -> Encoded:
    """The whole conversation as the server renders it.

    Generated tokens lie between an opener (`<think>` or `</think>`, after the first user message)
    and the end-of-sentence token, which is itself generated.
    """
    prompt = encoder.encode(case.messages, tools=case.tools or None, thinking=thinking)
    openers = {encoder.think_start_token_id, encoder.think_end_token_id}
    user = encoder.tokenizer.token_to_id("<｜User｜>")
    generated: list[bool] = []
    started = inside = False
    for token in prompt.token_ids:
        started = started or token == user
        generated.append(inside)
        if inside:
            inside = token != encoder.eos_token_id
        elif started and token in openers:
            inside = True
    return Encoded(prompt.token_ids, generated)


def copied_tokens(encoder: Encoder, rng: Random, longest: int) -> Encoded:
    """8 to 48 random tokens two to four times over, cut to `longest`.

    The copies are targets, but for the token that starts the first one.
    """
    vocabulary = range(COPY_FIRST_TOKEN, encoder.tokenizer.get_vocab_size())
    once = rng.choices(vocabulary, k=rng.randint(8, 48))
    token_ids = (once * rng.randint(2, 4))[:longest]
    return Encoded(token_ids, [place > len(once) for place in range(len(token_ids))])


def make_batch(
    encoder: Encoder, mix: Mix, rows: range, length: int, prompt_weight: float, seed: str
) -> Batch:
    """The given rows of a batch, `length` tokens each, packed with whole conversations.

    Each row is a function of seed and row number. Conversations longer than a row are drawn again.
    What is left of a row is padding, a document of its own with weight 0.
    """
    shape = (len(rows), length)
    token_ids = torch.zeros(shape, dtype=torch.int64)
    positions, documents = torch.zeros_like(token_ids), torch.zeros_like(token_ids)
    weights = torch.zeros(shape)
    for row, number in enumerate(rows):
        rng = Random(f"{seed} {number}")
        start, document, misses = 0, 1, 0
        while misses < 8 and length - start > 32:
            if rng.random() < mix.copy:
                encoded = copied_tokens(encoder, rng, length - start)
            else:
                encoded = encode_case(encoder, draw_case(rng, mix), rng.random() < mix.thinking)
            size = len(encoded.token_ids)
            if size > length - start:
                misses += start > 0
                continue
            place = slice(start, start + size)
            token_ids[row, place] = torch.tensor(encoded.token_ids)
            positions[row, place] = torch.arange(size)
            documents[row, place] = document
            weights[row, place] = torch.where(torch.tensor(encoded.generated), 1.0, prompt_weight)
            weights[row, start] = 0.0
            start, document = start + size, document + 1
        positions[row, start:] = torch.arange(length - start)
    return Batch(token_ids, positions, documents, weights)
