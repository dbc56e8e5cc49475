"""The sampling fields of a request -> scheduler.request.Sampling, every range checked here."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from api.errors import invalid, unsupported
from api.facts import ModelFacts
from api.fields import TextFields
from engine.messages import Sampling

MAX_ALLOWED_TOKEN_IDS = 1024
"""Each step restricts its row to them."""
MAX_TOP_LOGPROBS = 20
MAX_BAD_WORDS = 100
MAX_BAD_WORD_CHARACTERS = 1000
SEED_BITS = 63

Number = TypeVar("Number", int, float)


def read_sampling(
    request: TextFields,
    facts: ModelFacts,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    forbidden_token_ids: tuple[int, ...] = (),
) -> Sampling:
    """Returns how tokens are drawn, as the checkpoint asks for where the request is silent.

    max_tokens: checked, not yet clipped to the room the prompt leaves. logprobs: checked, None for
    none. forbidden_token_ids: tokens this request must not produce.
    Raises ApiError(400) naming the field, its value and its range.
    """
    defaults, vocab_size = facts.defaults, facts.vocab_size
    stop_ids = request.stop_token_ids or []
    for index, token_id in enumerate(stop_ids):
        within(token_id, 0, vocab_size - 1, f"stop_token_ids[{index}]")
    ends = () if request.ignore_eos else facts.end_token_ids
    seed = request.seed
    if seed is not None:
        within(seed, -(2**SEED_BITS), 2**SEED_BITS - 1, "seed")
    return Sampling(
        max_tokens=max_tokens,
        temperature=within(
            _either(request.temperature, defaults.temperature, 1.0), 0.0, 2.0, "temperature"
        ),
        top_p=_above_zero(_either(request.top_p, defaults.top_p, 1.0), 1.0, "top_p"),
        top_k=_top_k(_either(request.top_k, defaults.top_k, 0), vocab_size),
        min_p=within(_either(request.min_p, defaults.min_p, 0.0), 0.0, 1.0, "min_p"),
        seed=secrets.randbits(SEED_BITS) if seed is None else seed % 2**SEED_BITS,
        frequency_penalty=within(request.frequency_penalty or 0.0, -2.0, 2.0, "frequency_penalty"),
        presence_penalty=within(request.presence_penalty or 0.0, -2.0, 2.0, "presence_penalty"),
        repetition_penalty=_above_zero(
            _either(request.repetition_penalty, defaults.repetition_penalty, 1.0),
            2.0,
            "repetition_penalty",
        ),
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size)
        | dict.fromkeys(forbidden_token_ids, -100.0),
        logprobs=logprobs,
        min_tokens=within(request.min_tokens or 0, 0, max_tokens, "min_tokens"),
        stop_token_ids=tuple(dict.fromkeys((*ends, *stop_ids))),
        ignore_eos=bool(request.ignore_eos),
        allowed_token_ids=_allowed_token_ids(request.allowed_token_ids, vocab_size),
        bad_words=_bad_words(request.bad_words or [], facts.encode_text),
        prompt_logprobs=None
        if request.prompt_logprobs is None
        else within(request.prompt_logprobs, 0, MAX_TOP_LOGPROBS, "prompt_logprobs"),
    )


def checked_max_tokens(given: Mapping[str, int | None], facts: ModelFacts) -> int:
    """Returns the longest answer: the first of the fields that is given, else the model's own wish.

    Raises ApiError(400) for one out of range.
    """
    for param, value in given.items():
        if value is not None:
            return within(value, 1, facts.max_model_len, param)
    return min(facts.defaults.max_new_tokens or facts.max_model_len, facts.max_model_len)


def reasoning_limit(asked: Mapping[str, int | None], facts: ModelFacts) -> int | None:
    """Returns the reasoning tokens after which the answer begins: the least that is asked for.

    asked: field -> its value. Raises ApiError(400) for one out of range.
    """
    given = [
        within(value, 0, 2**31 - 1, param) for param, value in asked.items() if value is not None
    ]
    limits = [*given, *([facts.max_reasoning_tokens] if facts.max_reasoning_tokens else [])]
    return min(limits, default=None)


def within(value: Number, low: Number, high: Number, param: str) -> Number:
    """Returns the value; raises ApiError(400) outside [low, high]."""
    if not low <= value <= high:
        raise invalid(f"{param} is {value}; it must be in [{low}, {high}].", param)
    return value


def _above_zero(value: float, high: float, param: str) -> float:
    if not 0.0 < value <= high:
        raise invalid(f"{param} is {value}; it must be in (0, {high}].", param)
    return value


def _either(asked: Number | None, default: Number | None, neutral: Number) -> Number:
    """The request's value, else the checkpoint's, else the one without effect."""
    if asked is not None:
        return asked
    return neutral if default is None else default


def _top_k(value: int, vocab_size: int) -> int:
    """-1, 0 and anything as large as the vocabulary keep every token."""
    within(value, -1, 2**31 - 1, "top_k")
    return value if 0 < value < vocab_size else 0


def _allowed_token_ids(token_ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    if token_ids is None:
        return ()
    if not token_ids:
        raise invalid("allowed_token_ids must not be empty.", "allowed_token_ids", "empty_array")
    if len(token_ids) > MAX_ALLOWED_TOKEN_IDS:
        raise invalid(
            f"allowed_token_ids has {len(token_ids)} ids; the limit is {MAX_ALLOWED_TOKEN_IDS}.",
            "allowed_token_ids",
        )
    for index, token_id in enumerate(token_ids):
        within(token_id, 0, vocab_size - 1, f"allowed_token_ids[{index}]")
    return tuple(dict.fromkeys(token_ids))


def _bad_words(
    words: list[str], encode_text: Callable[[str], Sequence[int]] | None
) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, at the start of a text and behind a space."""
    if words and encode_text is None:
        raise unsupported("bad_words", "bad_words")
    if len(words) > MAX_BAD_WORDS:
        raise invalid(f"bad_words has {len(words)} entries, over {MAX_BAD_WORDS}.", "bad_words")
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        if not 1 <= len(word) <= MAX_BAD_WORD_CHARACTERS:
            raise invalid(
                f"A bad word has {len(word)} characters; it must have 1 to "
                f"{MAX_BAD_WORD_CHARACTERS}.",
                f"bad_words[{index}]",
            )
        assert encode_text is not None
        for text in (word, " " + word.lstrip(" ")):
            found[tuple(encode_text(text))] = None
    return tuple(found)


def _logit_bias(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    read: dict[int, float] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit()) or len(key) > 9 or int(key) >= vocab_size:
            raise invalid(
                f"logit_bias has the key {key!r}; keys are token ids in [0, {vocab_size - 1}].",
                "logit_bias",
            )
        read[int(key)] = within(bias, -100.0, 100.0, "logit_bias")
    return read
