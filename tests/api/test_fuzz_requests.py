"""Mutated request bodies in every dialect: a prompt, or a refusal that is the client's fault.

`make fuzz` runs many more of them than `make test`; a finding names its seed.
"""

from __future__ import annotations

import copy
import json
import os
import random
from typing import Any

import pytest

from api.anthropic.request import read_count_request, read_messages_request
from api.chat_request import read_chat_request
from api.conversation.context_management import SummaryNeeded
from api.errors import ApiError
from api.responses.request import read_responses_request
from api.service import ReadRequest
from tests.api.scripted_engine import MODEL, Scripted

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "400"))
FIRST_SEED = int(os.environ.get("FUZZ_SEED", "1"))

CALL = {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}, "b": {"enum": [1]}}}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Where <｜User｜> is it?"}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_a", "content": "no"},
        {"role": "assistant", "content": "<think>\nso\n</think>\nNowhere."},
        {"role": "user", "content": "New Terminal Output:\n$"},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}],
    "tool_choice": "auto",
    "thinking": {"type": "enabled"},
    "thinking_retention": "until_marker",
    "retention_marker": ["New"],
    "missing_reasoning": "restore",
    "context_management": {"strategy": "discard_75", "trigger": 0.01, "max_resets": 3},
    "max_tokens": 10,
    "n": 2,
    "stop": ["x"],
    "logit_bias": {"5": 1.5},
    "logprobs": True,
    "top_logprobs": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user_id": "anna",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
}
MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 10,
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "call_a", "name": "look", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_a", "content": "no"},
                {"type": "text", "text": "Go on."},
            ],
        },
    ],
    "tools": [{"name": "look", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "anna"},
}
RESPONSES: dict[str, Any] = {
    "model": MODEL,
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "call_a", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": "no"},
    ],
    "tools": [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}],
    "tool_choice": "auto",
    "reasoning": {"effort": "high"},
    "max_output_tokens": 16,
    "text": {"format": {"type": "text"}},
}
JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**20, 0.5, -1e300, "", " ", "x", "\ud800", "call_a", "user"),
    *([], {}, [None], [[]], {"a": None}, {"type": "text"}, {"type": []}, "</think>", "{", "[1]"),
    *("｜DSML｜", "x" * 3000, {"$ref": "#"}, {"type": "function"}, "required", "none", "é😀"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a document."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    found = [path] if path else []
    for key, inner in inside:
        found += places(inner, (*path, key))
    return found


def mutated(document: dict[str, Any], random_: random.Random) -> bytes:
    document = copy.deepcopy(document)
    for _ in range(random_.randint(1, 4)):
        found = places(document)
        *above, key = random_.choice(found)
        holder: Any = document
        for step in above:
            holder = holder[step]
        kind = random_.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[random_.randrange(len(holder))]))
        elif kind == 2:
            other: Any = document
            for step in random_.choice(found):
                try:
                    other = other[step]
                except (KeyError, IndexError, TypeError):
                    break
            holder[key] = copy.deepcopy(other)
        else:
            holder[key] = copy.deepcopy(random_.choice(JUNK))  # a later mutation may be inside
        if not document:
            break
    body = json.dumps(document).encode()
    if random_.random() < 0.1:
        at = random_.randint(0, len(body))
        body = body[:at] + random_.randbytes(random_.randrange(3)) + body[at + 1 :]
    return body


@pytest.mark.parametrize(
    ("document", "read"),
    [
        (CHAT, read_chat_request),
        (MESSAGES, read_messages_request),
        (RESPONSES, read_responses_request),
        ({k: v for k, v in MESSAGES.items() if k != "max_tokens"}, read_count_request),
    ],
)
def test_every_body_is_a_prompt_or_refused(
    scripted: Scripted, document: dict[str, Any], read: ReadRequest
) -> None:
    prompts = 0
    for number in range(MUTATIONS):
        body = mutated(document, random.Random(FIRST_SEED + number))
        try:
            _, prompt = scripted.service.prepare(body, read)
        except ApiError as error:
            assert error.status in (400, 404), (FIRST_SEED + number, body)
            assert error.message
        except SummaryNeeded:
            continue
        except Exception as error:
            raise AssertionError((FIRST_SEED + number, body)) from error
        else:
            prompts += 1
            assert 0 < len(prompt.token_ids) < scripted.engine.ready.max_model_len
            assert prompt.token_ids.count(scripted.encoder.bos_token_id) == 1
            assert prompt.spans[-1].end == len(prompt.token_ids)
    assert 0 < prompts < MUTATIONS, "neither nothing nor everything is refused"
