"""api.completions.request: prompts in their four forms, and every refusal by the field's name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.chat_request import ModelFacts
from api.completions.request import CompletionRequest, read_completion_request
from api.errors import ApiError
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
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
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
