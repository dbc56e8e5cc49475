"""api.completions.request: prompts in their four forms, and every refusal by the field's name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.completions.request import (
    CompletionRequest,
    check_repeated,
    read_completion_request,
)
from api.errors import ApiError
from api.facts import ModelFacts
from engine.client import GenerationDefaults

FACTS = ModelFacts(
    names=("deepseek",),
    vocab_size=100,
    max_model_len=64,
    defaults=GenerationDefaults(),
    end_token_ids=(1, 2),
    call_token_ids=(3,),
)


def read(**fields: Any) -> CompletionRequest:
    body = msgspec.json.encode({"model": "deepseek", "prompt": "a", **fields})
    return read_completion_request(body, FACTS)


@pytest.mark.parametrize(
    ("prompt", "prompts", "paths"),
    [
        ("ab", ["ab"], ["prompt"]),
        ("", [""], ["prompt"]),
        (["ab", "c"], ["ab", "c"], ["prompt[0]", "prompt[1]"]),
        ([7, 0, 99], [[7, 0, 99]], ["prompt"]),
        ([[7], [8, 9]], [[7], [8, 9]], ["prompt[0]", "prompt[1]"]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, prompts: Any, paths: list[str]) -> None:
    request = read(prompt=prompt)
    assert request.prompts == prompts
    assert list(request.prompt_paths) == paths


def test_silence_means_sixteen_tokens_and_one_choice() -> None:
    request = read()
    assert (request.sampling.max_tokens, request.n, request.echo, request.bos) == (
        16,
        1,
        False,
        True,
    )
    assert request.sampling.stop_token_ids == (1, 2)
    assert request.sampling.logprobs is None
    assert not request.stream and not request.include_usage and not request.return_token_ids


def test_fields_reach_the_sampling() -> None:
    request = read(
        max_tokens=5,
        n=2,
        best_of=2,
        logprobs=0,
        temperature=0.5,
        top_k=9,
        logit_bias={"4": -3},
        stop_token_ids=[8],
        ignore_eos=True,
        stop="x",
        add_special_tokens=False,
    )
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (5, 0.5, 9)
    assert sampling.logit_bias == {4: -3.0} and sampling.stop_token_ids == (8,)
    assert sampling.logprobs == 0
    assert (request.n, request.stops, request.bos) == (2, ("x",), False)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "[ab]+"},
        {"structured_outputs": {"choice": ["a", "b"]}},
    ],
)
def test_the_form_of_the_text_can_be_demanded(fields: dict[str, Any]) -> None:
    demand = read(**fields).answer
    assert demand is not None and demand.format is not None and demand.calls is None
    assert demand.format.param.partition(".")[0] in fields
    assert read().answer is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a", "ebnf": "root ::= 'a'"}, "ebnf"),
        ({"allowed_token_ids": [100]}, "allowed_token_ids[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": ["a", [1]]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [[1], 2]}, "prompt[1]"),
        ({"prompt": [100]}, "prompt[0]"),
        ({"prompt": [[1, -1]]}, "prompt[0][1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"n": 0}, "n"),
        ({"suffix": "b"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"no_stop_trim": True}, "no_stop_trim"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"cache_salt": "s" * 513}, "cache_salt"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"allowed_token_ids": [1] * 1025}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"priority": 2**31}, "priority"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": [""]}, "stop"),
        ({"model": "gpt"}, "model"),
        ({"user_id": "a b"}, "user_id"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.param == param
    assert caught.value.status == (404 if param == "model" else 400)


def test_a_model_must_be_named() -> None:
    with pytest.raises(ApiError) as caught:
        read_completion_request(b'{"prompt": "a"}', FACTS)
    assert caught.value.param == "model"


def test_the_limits_are_those_that_are_refused_above() -> None:
    request = read(
        cache_salt="s" * 512,
        allowed_token_ids=[5] * 1023 + [7],
        stop_token_ids=[1, 2] * 64,
        ignore_eos=True,
    )
    assert request.cache_salt == "s" * 512
    assert request.sampling.allowed_token_ids == (5, 7)
    assert request.sampling.stop_token_ids == (1, 2)


def test_an_echo_may_be_all_there_is() -> None:
    request = read(max_tokens=0, echo=True)
    assert request.only_prompt and request.sampling.max_tokens == 1
    assert request.sampling.prompt_logprobs is None
    assert not read(max_tokens=1, echo=True).only_prompt


@pytest.mark.parametrize(
    ("fields", "computed", "shown"),
    [
        ({}, None, None),
        ({"logprobs": 3}, None, None),
        ({"prompt_logprobs": 2}, 2, 2),
        ({"echo": True, "logprobs": 3}, 3, None),
        ({"echo": True, "logprobs": 0, "prompt_logprobs": 2}, 2, 2),
        ({"echo": True, "logprobs": 5, "prompt_logprobs": 2}, 5, 2),
    ],
)
def test_whose_prompt_is_scored(
    fields: dict[str, Any], computed: int | None, shown: int | None
) -> None:
    request = read(**fields)
    assert request.sampling.prompt_logprobs == computed
    assert request.prompt_logprobs == shown


@pytest.mark.parametrize(
    ("fields", "tokens", "param"),
    [
        ({"echo": True, "logprobs": 3}, 2**16, None),
        ({"echo": True, "logprobs": 3}, 2**16 + 1, "logprobs"),
        ({"echo": True, "logprobs": 3, "n": 2}, 2**15 + 1, "logprobs"),
        ({"prompt_logprobs": 0}, 2**18 + 1, "prompt_logprobs"),
        ({"return_token_ids": True, "n": 128}, 2**12, None),
        ({"return_token_ids": True, "n": 128}, 2**12 + 1, "return_token_ids"),
    ],
)
def test_what_is_said_of_prompts_is_bounded(
    fields: dict[str, Any], tokens: int, param: str | None
) -> None:
    request = read(**fields)
    if param is None:
        check_repeated(request, tokens)
        return
    with pytest.raises(ApiError) as caught:
        check_repeated(request, tokens)
    assert caught.value.param == param


def test_an_echo_counts_once_per_choice() -> None:
    request = read(echo=True, n=4)
    quarter = msgspec.structs.replace(request, echoes=["a" * 2**19, "b" * 2**19])
    check_repeated(quarter, 1)
    with pytest.raises(ApiError) as caught:
        check_repeated(msgspec.structs.replace(quarter, echoes=["a" * (2**20 + 1)]), 1)
    assert caught.value.param == "echo"
