"""Answers of a random model, at temperature 1: what is right about them, a grammar made so."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.chat.encoding import Encoder
from api.errors import ApiError
from tests.api.answers import Answers, RandomModel, arguments_of, tool

SEEDS = range(4)
THINKING = {"thinking": {"type": "enabled"}, "thinking_token_budget": 12}

POINT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["city", "lake", 7]},
        "at": {"$ref": "#/$defs/pair"},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "kind", "at"],
    "additionalProperties": False,
    "$defs": {
        "pair": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": ["integer", "null"]}},
            "required": ["x", "y"],
            "additionalProperties": False,
        }
    },
}
WEATHER = tool(
    "weather",
    {
        "city": {"type": "string", "enum": ["Paris", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "note": {"type": "string", "maxLength": 5},
        "at": {"type": ["string", "null"], "pattern": "^[0-9]{2}:[0-9]{2}$"},
    },
    "city",
    "days",
)
STOP = tool("stop", {})


def check_point(value: Any) -> None:
    assert set(value) - {"tags"} == {"name", "kind", "at"}
    assert isinstance(value["name"], str) and len(value["name"]) <= 6
    assert value["kind"] in ("city", "lake", 7)
    assert set(value["at"]) == {"x", "y"}
    assert type(value["at"]["x"]) is int and type(value["at"]["y"]) in (int, type(None))
    assert len(value.get("tags", [])) <= 2 and all(type(t) is bool for t in value.get("tags", []))


def check_call(call: dict[str, Any]) -> str:
    name, arguments = call["function"]["name"], arguments_of(call)
    if name == "stop":
        assert arguments == {}
        return "stop"
    assert name == "weather" and {"city", "days"} <= set(arguments)
    assert set(arguments) <= {"city", "days", "note", "at"}
    assert arguments["city"] in ("Paris", "Oslo") and 1 <= arguments["days"] <= 99
    assert len(arguments.get("note", "")) <= 5
    at = arguments.get("at")
    assert at is None or re.fullmatch("[0-9]{2}:[0-9]{2}", at)
    return "weather"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def answers(encoder: Encoder, model: RandomModel) -> Answers:
    return Answers(encoder, model)


def ask(answers: Answers, **fields: Any) -> Any:
    return asyncio.run(answers.answer(**fields))


def json_schema(schema: dict[str, Any], strict: bool | None = True) -> dict[str, Any]:
    wrapper = {"name": "answer", "schema": schema, "strict": strict}
    return {"response_format": {"type": "json_schema", "json_schema": wrapper}}


@pytest.mark.parametrize("mode", [{}, THINKING], ids=["chat", "thinking"])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_answer_follows_its_schema(answers: Answers, seed: int, mode: dict[str, Any]) -> None:
    choice = ask(answers, seed=seed, **json_schema(POINT), **mode)
    assert choice["finish_reason"] == "stop"
    check_point(msgspec.json.decode(choice["message"]["content"]))
    assert ("reasoning_content" in choice["message"]) == bool(mode)


def test_any_object_will_do_for_json_object(answers: Answers) -> None:
    how = {"response_format": {"type": "json_object"}, "logit_bias": {"100": -100}}
    texts = []
    for seed in range(6):
        choice = ask(answers, seed=seed, max_tokens=150, **how)
        texts.append(choice["message"]["content"])
        if choice["finish_reason"] == "stop":
            assert isinstance(msgspec.json.decode(texts[-1]), dict)
    assert all(text.startswith("{") for text in texts)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"regex": "[a-c]{3}-[0-9]+x"}, "[a-c]{3}-[0-9]+x"),
        ({"guided_regex": "(ab|cd){2}"}, "(ab|cd){2}"),
        ({"guided_choice": ["yes", "no", 'say "no"']}, 'yes|no|say "no"'),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"structured_outputs": {"regex": "x{2,4}"}}, "x{2,4}"),
        ({"ebnf": 'root ::= "a" [0-9] | "b" root'}, "b*a[0-9]"),
        ({"guided_grammar": 'start: "(" WORD ")"\nWORD: /[a-z]{2}/'}, r"\([a-z]{2}\)"),
    ],
)
@pytest.mark.parametrize("mode", [{}, THINKING], ids=["chat", "thinking"])
def test_the_extensions_say_the_same_in_other_words(
    answers: Answers, fields: dict[str, Any], pattern: str, mode: dict[str, Any]
) -> None:
    choice = ask(answers, seed=3, **fields, **mode)
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch(pattern, choice["message"]["content"])


def test_guided_json_may_come_as_text(answers: Answers) -> None:
    for schema in (POINT, msgspec.json.encode(POINT).decode()):
        choice = ask(answers, seed=1, guided_json=schema)
        check_point(msgspec.json.decode(choice["message"]["content"]))


@pytest.mark.parametrize("mode", [{}, THINKING], ids=["chat", "thinking"])
@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "stop"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "stop"}}],
                },
            },
            {"stop"},
        ),
    ],
    ids=["required", "named", "allowed"],
)
def test_a_forced_call_is_made(
    answers: Answers, choice: Any, names: set[str], seed: int, mode: dict[str, Any]
) -> None:
    fields = {"tools": [WEATHER, STOP], "tool_choice": choice, "parallel_tool_calls": False}
    answer = ask(answers, seed=seed, **fields, **mode)
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    (call,) = answer["message"]["tool_calls"]
    assert check_call(call) in names


def test_several_calls_may_come_unless_one_is_demanded(answers: Answers) -> None:
    # A slash must end a call, but ends the block only if the model likes it.
    never = {str(answers.encoder.encode_text("/")[0]): -100}
    fields = {"tools": [STOP], "tool_choice": "required", "logit_bias": never, "max_tokens": 250}
    calls = ask(answers, seed=1, **fields)["message"]["tool_calls"]
    assert len(calls) > 1
    assert [check_call(call) for call in calls] == ["stop"] * len(calls)
    (call,) = ask(answers, seed=1, parallel_tool_calls=False, **fields)["message"]["tool_calls"]
    assert check_call(call) == "stop"


def test_a_stream_says_what_the_whole_answer_says(answers: Answers) -> None:
    fields = {"tools": [WEATHER, STOP], "tool_choice": "required", "seed": 5, "top_p": 1.0}
    fields |= {"temperature": 1.0, "parallel_tool_calls": False, "max_tokens": 700, **THINKING}
    whole = ask(answers, **fields)["message"]
    chunks = asyncio.run(answers.stream(**fields))
    pieces = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls") or ()]
    calls: dict[int, str] = {}
    for piece in pieces:
        calls[piece["index"]] = calls.get(piece["index"], "") + piece["function"]["arguments"]
    assert list(calls.values()) == [c["function"]["arguments"] for c in whole["tool_calls"]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_every_choice_has_a_grammar_of_its_own(answers: Answers) -> None:
    fields = {"n": 3, "seed": 2, "temperature": 1.0, "max_tokens": 500, **json_schema(POINT)}
    choices = asyncio.run(answers.complete(**fields))["choices"]
    assert len(choices) == 3
    texts = [choice["message"]["content"] for choice in choices]
    for text in texts:
        check_point(msgspec.json.decode(text))
    assert len(set(texts)) == 3


def test_a_call_or_the_format(answers: Answers) -> None:
    """With tools and a format, tool_choice auto leaves the model the choice between them."""
    seen = set()
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False  # type: ignore[assignment]
    new_line = str(answers.encoder.encode_text("\n")[0])
    for bias in (-50, 50):
        fields = {"tools": [STOP], "logit_bias": {new_line: bias}, "max_tokens": 400}
        fields |= {"parallel_tool_calls": False, **json_schema(schema)}
        message = ask(answers, seed=1, **fields)["message"]
        if message.get("tool_calls"):
            seen.add("call")
        else:
            assert set(msgspec.json.decode(message["content"])) == {"n"}
            seen.add("format")
    assert seen == {"call", "format"}


def test_strict_functions_are_exact_when_the_model_chooses_to_call(answers: Answers) -> None:
    strict = tool("pick", {"n": {"type": "integer", "minimum": 3, "maximum": 5}}, "n", strict=True)
    dsml = str(answers.encoder.dsml_token_id)
    # It calls at once; without a grammar what follows would be noise.
    answer = ask(answers, seed=1, tools=[strict], logit_bias={dsml: 100}, max_tokens=60)
    text = answer["message"]["content"] or ""
    for call in answer["message"].get("tool_calls", []):
        assert arguments_of(call)["n"] in (3, 4, 5)
    (submit,) = answers.engine.submits
    assert submit.grammar is not None and not submit.grammar.required
    said = answers.model.run(submit)[submit.id, 0]
    after = said[said.index(int(dsml)) + 1 :]
    head = answers.encoder.encode_text("function_calls>\n<")
    assert after[: len(head)] == head, text
    assert after[-1] == 1 or len(said) == 60


def test_the_reasoning_budget_is_kept_and_the_answer_follows(answers: Answers) -> None:
    for budget in (0, 1, 9):
        how = {"thinking": {"type": "enabled", "budget_tokens": budget}, "max_tokens": 40}
        whole = asyncio.run(answers.complete(seed=4, temperature=1.0, **how))
        details = whole["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] <= budget
        assert "incomplete_reasoning" not in whole["choices"][0]
        (submit,) = answers.engine.submits[-1:]
        said = answers._said[submit.id][submit.id, 0]
        assert answers.encoder.think_end_token_id in said[: budget + 1]


def test_only_allowed_tokens_come(answers: Answers) -> None:
    allowed = [20, 21, 22]
    ask(answers, seed=1, allowed_token_ids=allowed, max_tokens=20)
    (submit,) = answers.engine.submits
    assert set(answers._said[submit.id][submit.id, 0]) <= set(allowed)


def test_bad_words_do_not_come(answers: Answers) -> None:
    how: dict[str, Any] = {"regex": "(ab|ac){12}", "seed": 1}
    assert "ab" in ask(answers, **how)["message"]["content"]
    assert ask(answers, bad_words=["ab"], **how)["message"]["content"] == "ac" * 12


def test_a_schema_that_is_not_strict_is_shown_to_the_model(answers: Answers) -> None:
    schema = {"type": "string", "format": "no-such-format", "maxLength": 3}
    with pytest.raises(ApiError) as caught:
        ask(answers, **json_schema(schema))
    assert caught.value.param == "response_format.json_schema.schema"
    choice = ask(answers, seed=1, max_tokens=30, **json_schema(schema, strict=False))
    assert isinstance(msgspec.json.decode(choice["message"]["content"]), str)
    prompts = [answers.encoder.tokenizer.decode(s.token_ids) for s in answers.engine.submits]
    assert ['"no-such-format"' in prompt for prompt in prompts] == [True]


def test_a_preempted_choice_goes_on_where_it_was(encoder: Encoder, tmp_path: Path) -> None:
    model = RandomModel(tmp_path, total_pages=9)
    answers = Answers(encoder, RandomModel(tmp_path))
    asyncio.run(answers.complete(**json_schema(POINT), seed=1, max_tokens=300))
    (submit,) = answers.engine.submits
    wide = {"type": "array", "items": {"const": "a long text that fills the pages"}, "minItems": 5}
    asyncio.run(answers.complete(**json_schema(wide), seed=1, max_tokens=220))
    long = answers.engine.submits[1]
    several = [msgspec.structs.replace(long, id=f"r{i}") for i in range(4)]
    several = [
        msgspec.structs.replace(
            one,
            token_ids=[*submit.token_ids[:60], 200 + i],
            sampling=msgspec.structs.replace(one.sampling, seed=i),
        )
        for i, one in enumerate(several)
    ]
    said = model.run(*several)
    assert model.replica.scheduler.preemptions > 0
    assert len(model.replica.runner.grammars) == 0
    for tokens in said.values():
        text = encoder.tokenizer.decode(tokens, skip_special_tokens=True)
        assert re.match(r'\[\s*"a long text that fills the pages"', text)
        if tokens[-1] == 1:
            assert len(msgspec.json.decode(text)) >= 5
