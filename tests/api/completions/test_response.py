"""Text completions over a scripted model: through the openai SDK, whole and streamed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from api.chat.encoding import Encoder
from api.completions.response import LogprobLists, chunks, completion
from api.errors import ApiError
from api.response import TokenLogprob
from engine.client import EngineRefused
from engine.messages import Refused, Submit
from tests.api.scripted_engine import MODEL, Scripted, ScriptedGeneration
from tests.api.test_server import http, sdk


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": MODEL, "prompt": "Once", "max_tokens": 100, **fields})


def whole(scripted: Scripted, **fields: Any) -> dict[str, Any]:
    async def run() -> Any:
        turn = await scripted.service.start_completion(body(**fields))
        async with turn:
            return msgspec.to_builtins(await completion(turn))

    answer: dict[str, Any] = asyncio.run(run())
    return answer


def streamed(scripted: Scripted, **fields: Any) -> list[dict[str, Any]]:
    async def run() -> list[Any]:
        turn = await scripted.service.start_completion(body(stream=True, **fields))
        async with turn:
            found = chunks(turn)
            return [msgspec.to_builtins(chunk) async for chunk in found]

    return asyncio.run(run())


def rebuilt(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that a client puts together from a stream."""
    choices: dict[int, dict[str, Any]] = {}
    for piece in (piece for chunk in pieces for piece in chunk["choices"]):
        choice = choices.setdefault(piece["index"], {"text": "", "logprobs": None})
        assert choice.get("finish_reason") is None, "nothing comes after the end"
        choice["text"] += piece["text"]
        choice |= {k: v for k, v in piece.items() if k not in ("text", "logprobs", "token_ids")}
        if "token_ids" in piece:
            choice.setdefault("token_ids", []).extend(piece["token_ids"])
        if piece["logprobs"] is not None:
            lists = choice["logprobs"] = choice["logprobs"] or {k: [] for k in piece["logprobs"]}
            for name, values in piece["logprobs"].items():
                lists[name] += values
    return [choices[index] for index in sorted(choices)]


def test_a_text_is_continued(scripted: Scripted) -> None:
    scripted.replies = [" upon a time"]
    answer = sdk(
        scripted, lambda c: c.completions.create(model=MODEL, prompt="<think>Once", max_tokens=50)
    )
    (choice,) = answer.choices
    assert (choice.text, choice.index, choice.finish_reason) == (" upon a time", 0, "stop")
    assert choice.logprobs is None
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.usage is not None and answer.usage.completion_tokens == len(" upon a time") + 1
    (submit,) = scripted.engine.submits
    # The begin-of-sentence token, then text in which no special string is special.
    assert submit.token_ids[0] == scripted.encoder.bos_token_id
    assert submit.token_ids[1:] == scripted.encoder.encode_text("<think>Once")
    assert len(submit.token_ids) == 1 + len("<think>Once")
    assert [(span.start, span.end, span.kind) for span in submit.spans] == [
        (0, len(submit.token_ids), "stable")
    ]
    (turn,) = scripted.engine.turns
    assert (turn.why, turn.spans[-1].end) == ("answer", answer.usage.total_tokens)


def test_what_looks_like_markup_stays_text(scripted: Scripted) -> None:
    scripted.replies = ["</think>a<｜DSML｜function_calls>b"]
    assert whole(scripted)["choices"][0]["text"] == scripted.replies[0]


def test_token_ids_are_taken_as_they_are(scripted: Scripted, encoder: Encoder) -> None:
    ids = [encoder.think_start_token_id, *encoder.encode_text("hm")]
    whole(scripted, prompt=ids)
    whole(scripted, prompt=[ids, ids[1:]])
    assert [submit.token_ids for submit in scripted.engine.submits] == [ids, ids, ids[1:]]


def test_special_tokens_can_be_left_out(scripted: Scripted) -> None:
    whole(scripted, add_special_tokens=False)
    assert scripted.engine.submits[0].token_ids == scripted.encoder.encode_text("Once")


def test_max_tokens_cuts(scripted: Scripted) -> None:
    scripted.replies, scripted.ends = ["abc"], False
    answer = whole(scripted)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert scripted.engine.turns[0].why == "length"


def answers_by_prompt(scripted: Scripted) -> None:
    """The model repeats the prompt's last letter, once more per choice."""

    def script(submit: Submit, choice: int) -> list[int]:
        return [submit.token_ids[-1]] * (choice + 1) + [scripted.encoder.eos_token_id]

    scripted.engine.script = script


def test_several_prompts_and_choices_are_numbered_in_order(scripted: Scripted) -> None:
    answers_by_prompt(scripted)
    answer = whole(scripted, prompt=["xa", "xb", "xc"], n=2)
    found = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert found == [(0, "a"), (1, "aa"), (2, "b"), (3, "bb"), (4, "c"), (5, "cc")]
    assert answer["usage"]["prompt_tokens"] == 9
    assert answer["usage"]["completion_tokens"] == 3 * (2 + 3)
    ids = {submit.id for submit in scripted.engine.submits}
    assert len(ids) == 3 and {turn.id for turn in scripted.engine.turns} == ids
    assert {turn.choice for turn in scripted.engine.turns} == {0, 1}


@pytest.mark.parametrize("prompt", ["Ün", ["a", "bc"], [[300 - 200, 101], [102]]])
def test_echo_repeats_the_prompt(scripted: Scripted, prompt: Any) -> None:
    scripted.replies = ["!"]
    texts = [prompt] if isinstance(prompt, str) else prompt
    expected = [
        (text if isinstance(text, str) else scripted.service.decode(text)) + "!" for text in texts
    ]
    found = [c["text"] for c in whole(scripted, prompt=prompt, echo=True)["choices"]]
    assert found == expected
    pieces = streamed(scripted, prompt=prompt, echo=True)
    assert [c["text"] for c in rebuilt(pieces)] == expected


def test_logprobs_have_the_old_format(scripted: Scripted) -> None:
    scripted.replies = ["aé!"]
    answer = sdk(
        scripted,
        lambda c: c.completions.create(model=MODEL, prompt="x", max_tokens=9, logprobs=1),
    )
    logprobs = answer.choices[0].logprobs
    # Byte tokens: é is two of them, and neither is a character by itself.
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs[0] == {"a": -0.5}
    assert logprobs.text_offset == [0, 1, 1, 2]


def test_tokens_can_be_named_by_their_ids(scripted: Scripted, encoder: Encoder) -> None:
    scripted.replies = ["é"]
    names = [f"token_id:{token_id}" for token_id in encoder.encode_text("é")]
    (choice,) = whole(scripted, logprobs=1, return_tokens_as_token_ids=True)["choices"]
    assert choice["logprobs"]["tokens"] == names
    assert [list(top) for top in choice["logprobs"]["top_logprobs"]] == [[name] for name in names]
    messages = [{"role": "user", "content": "Hi"}]
    chat = asyncio.run(
        scripted.complete(messages=messages, logprobs=True, return_tokens_as_token_ids=True)
    )
    content = chat["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == names


def test_the_sampled_token_is_always_among_the_top() -> None:
    entry = TokenLogprob(token="a", logprob=-2.0, bytes=[97], top_logprobs=[])
    assert LogprobLists().of([entry]).top_logprobs == [{"a": -2.0}]


def test_stop_strings_end_every_choice_by_itself(scripted: Scripted) -> None:
    scripted.replies = ["ab END cd", "ef"]
    answer = whole(scripted, n=2, stop=["END"])
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"], first["stop_reason"]) == ("ab ", "stop", "END")
    assert second["text"] == "ef" and "stop_reason" not in second
    (stop,) = scripted.engine.stops
    assert stop[1:] == (0, len("ab END"))


def test_a_stop_string_of_one_prompt_leaves_the_others(scripted: Scripted) -> None:
    answers_by_prompt(scripted)
    answer = whole(scripted, prompt=["a", "b"], n=3, stop=["bb"])
    assert [choice["text"] for choice in answer["choices"]] == ["a", "aa", "aaa", "b", "", ""]
    assert {(stop[0], stop[1]) for stop in scripted.engine.stops} == {
        (scripted.engine.submits[1].id, 1),
        (scripted.engine.submits[1].id, 2),
    }


def test_usage_is_the_last_chunk(scripted: Scripted) -> None:
    async def use(client: AsyncOpenAI) -> list[Any]:
        stream = await client.completions.create(
            model=MODEL,
            prompt=["a", "b"],
            stream=True,
            max_tokens=9,
            stream_options={"include_usage": True},
        )
        return [chunk async for chunk in stream]

    *others, last = sdk(scripted, use)
    assert last.choices == [] and last.usage.total_tokens == 2 * (2 + len("Hello!") + 1)
    assert all(chunk.usage is None for chunk in others)
    assert {chunk.id for chunk in others} == {last.id}
    assert "usage" not in streamed(scripted)[-1]


def test_token_ids_come_back(scripted: Scripted) -> None:
    scripted.replies = ["hi", "you"]
    answer = whole(scripted, prompt=["a", "bc"], n=2, return_token_ids=True)
    for choice in answer["choices"]:
        prompt = scripted.engine.submits[choice["index"] // 2].token_ids
        assert choice["prompt_token_ids"] == prompt
        assert choice["token_ids"] == scripted.tokens(choice["text"])
    pieces = streamed(scripted, prompt=["a", "bc"], n=2, return_token_ids=True)
    prompts = [c for chunk in pieces for c in chunk["choices"] if "prompt_token_ids" in c]
    assert [c["index"] for c in prompts] == [0, 1, 2, 3]
    assert rebuilt(pieces) == answer["choices"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    replies=st.lists(st.text("ab é😀\n<", max_size=8), min_size=1, max_size=3),
    step_tokens=st.integers(1, 4),
    fields=st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["p", ["p", "q"], [5, 6]]),
            "n": st.integers(1, 3),
            "stop": st.sampled_from([None, "a", ["b ", "é"]]),
            "logprobs": st.sampled_from([None, 0, 1]),
            "return_token_ids": st.booleans(),
        }
    ),
)
def test_streamed_equals_whole(
    scripted: Scripted, replies: list[str], step_tokens: int, fields: dict[str, Any]
) -> None:
    scripted.replies, scripted.engine.step_tokens = replies, step_tokens
    assert rebuilt(streamed(scripted, **fields)) == whole(scripted, **fields)["choices"]


def test_a_prompt_that_is_too_long_is_named(scripted: Scripted) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start_completion(body(prompt=["a", "b" * 5000])))
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt[1]")
    assert scripted.engine.submits == []


def test_text_that_is_not_unicode_is_refused(scripted: Scripted) -> None:
    half = body(prompt=["a", "half"]).replace(b"half", b"\\ud800")
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start_completion(half))
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    with pytest.raises(ApiError) as caught:
        scripted.service.encode_raw("\ud800", "prompt[1]")
    assert (caught.value.status, caught.value.param) == (400, "prompt[1]")


def test_one_refused_prompt_leaves_none_running(scripted: Scripted) -> None:
    engine = scripted.engine
    submit = engine.submit
    waiting = asyncio.Event()

    async def some(message: Submit) -> Any:
        generation = await submit(message)
        if len(engine.submits) == 3:
            waiting.set()
            raise EngineRefused(Refused(message.id, 429, "queue_full", "no room", None, 2.0))
        await waiting.wait()
        return generation

    engine.submit = some  # type: ignore[method-assign]
    with pytest.raises(ApiError) as caught:
        asyncio.run(scripted.service.start_completion(body(prompt=["a", "b", "c"])))
    assert (caught.value.status, caught.value.retry_after) == (429, 2.0)
    assert engine.open == 0
    accepted = {message.id for message in engine.submits[:2]}
    # Those that were taken are given back; one still on its way is the client's to forget.
    assert set(engine.aborts) <= accepted


def test_accepted_prompts_end_when_a_later_one_is_refused(scripted: Scripted) -> None:
    engine = scripted.engine
    submit = engine.submit

    async def some(message: Submit) -> Any:
        if len(engine.submits) == 2:
            await asyncio.sleep(0)
            raise EngineRefused(Refused(message.id, 503, "busy", "no", None, None))
        return await submit(message)

    engine.submit = some  # type: ignore[method-assign]
    with pytest.raises(ApiError):
        asyncio.run(scripted.service.start_completion(body(prompt=["a", "b", "c"])))
    assert engine.open == 0
    assert engine.aborts == [message.id for message in engine.submits]


def test_a_client_that_leaves_frees_every_prompt(scripted: Scripted) -> None:
    async def run() -> None:
        turn = await scripted.service.start_completion(body(prompt=["a", "b", "c"], stream=True))
        async with turn:
            pieces = turn.pieces()
            await anext(pieces)
            assert scripted.engine.open == 3
            await pieces.aclose()

    asyncio.run(run())
    assert scripted.engine.open == 0
    assert sorted(scripted.engine.aborts) == sorted(s.id for s in scripted.engine.submits)


def test_a_demanded_form_reaches_the_engine(scripted: Scripted) -> None:
    whole(scripted, prompt=["a", "b"], guided_regex="[a-z]+")
    assert all(submit.grammar is not None for submit in scripted.engine.submits)
    with pytest.raises(ApiError) as caught:
        whole(scripted, guided_regex="[a-")
    assert (caught.value.status, caught.value.param) == (400, "guided_regex")
    assert scripted.engine.open == 0


def test_the_beta_path_answers_too(scripted: Scripted) -> None:
    answer = http(scripted.backend, lambda c: c.post("/beta/completions", content=body()))
    assert answer.json()["choices"][0]["text"] == "Hello!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"prompt": [-1]}, "prompt[0]")],
)
def test_refusals_are_the_sdks_exceptions(
    scripted: Scripted, fields: dict[str, Any], param: str
) -> None:
    wanted: Any = {"model": MODEL, "prompt": "a", **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk(scripted, lambda c: c.completions.create(**wanted))
    assert caught.value.param == param


# ---------------------------------------------------------------- what is said of the prompt


def test_an_echo_with_logprobs_begins_with_those_of_the_prompt(scripted: Scripted) -> None:
    scripted.replies = ["!"]
    choice = whole(scripted, prompt="aé", echo=True, logprobs=2)["choices"][0]
    lists = choice["logprobs"]
    assert choice["text"] == "aé!"
    # The begin-of-sentence token, "a", the two bytes of "é", "!"
    assert lists["tokens"][1:] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert lists["token_logprobs"] == [None, -1.0, -2.0, -3.0, -0.5]
    assert lists["text_offset"] == [0, 0, 1, 1, 2]
    assert lists["top_logprobs"][0] is None
    assert lists["top_logprobs"][1]["a"] == -1.0 and len(lists["top_logprobs"][1]) == 3


def test_token_ids_that_are_echoed_are_scored_as_they_are(scripted: Scripted) -> None:
    """What evaluation harnesses send: log-probabilities of a text, and no token more."""
    ids = [scripted.encoder.bos_token_id, *scripted.encoder.encode_text("ab")]
    answer = whole(scripted, prompt=ids, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer["choices"]
    begin = scripted.service.decode(ids[:1])
    assert choice["text"] == begin + "ab" and choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": [begin, "a", "b"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {"a": -1.0}, {"b": -2.0}],
        "text_offset": [0, len(begin), len(begin) + 1],
    }
    assert answer["usage"]["completion_tokens"] == 0
    assert scripted.engine.submits[-1].sampling.max_tokens == 1


def test_prompt_logprobs_have_vllms_shape(scripted: Scripted) -> None:
    ids = scripted.encoder.encode_text("abc")
    answer = whole(scripted, prompt=[ids, ids[:1]], prompt_logprobs=1, n=2)
    first, again, single, _ = (choice["prompt_logprobs"] for choice in answer["choices"])
    assert first == again and single == [None]
    assert first[0] is None
    assert first[1][str(ids[1])] == {"logprob": -1.0, "rank": 2, "decoded_token": "b"}
    best = {"logprob": -0.25, "rank": 1, "decoded_token": scripted.service.decode([0])}
    assert first[2]["0"] == best and list(first[2]) == [str(ids[2]), "0"]
    assert "prompt_logprobs" not in whole(scripted)["choices"][0]


def test_a_scored_prompt_is_streamed_before_its_choices(scripted: Scripted) -> None:
    scripted.replies = ["ab", "cd"]
    fields: dict[str, Any] = {"prompt": ["x", "yy"], "n": 2, "echo": True, "logprobs": 1}
    pieces = [piece for chunk in streamed(scripted, **fields) for piece in chunk["choices"]]
    for index, text in enumerate(["x", "x", "yy", "yy"]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["text"] == text and own[0]["logprobs"]["token_logprobs"][0] is None
    assert rebuilt([{"choices": pieces}]) == [
        {k: v for k, v in choice.items()} for choice in whole(scripted, **fields)["choices"]
    ]


def test_choices_that_come_before_their_prompts_scores_wait_for_them(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later choice finds the prompt in the cache while the first computes it again."""
    scripted.replies = ["ab", "cd"]
    in_order = ScriptedGeneration.__aiter__

    async def second_first(self: ScriptedGeneration) -> Any:
        news = [outputs async for outputs in in_order(self)]
        for outputs in sorted(news, key=lambda some: some[0].choice != 1):
            yield outputs

    monkeypatch.setattr(ScriptedGeneration, "__aiter__", second_first)
    fields: dict[str, Any] = {"prompt": "x", "n": 2, "echo": True, "logprobs": 0}
    pieces = [piece for chunk in streamed(scripted, **fields) for piece in chunk["choices"]]
    assert [piece["text"] for piece in pieces[:2]] == ["x", "x"]
    assert [choice["text"] for choice in rebuilt([{"choices": pieces}])] == ["xab", "xcd"]


def test_prompts_that_would_fill_the_queue_themselves_are_refused_for_good(
    scripted: Scripted,
) -> None:
    """Not with 429: waiting would never help."""
    with pytest.raises(ApiError) as refused:
        whole(scripted, prompt=["a"] * 128, n=16)
    assert (refused.value.status, refused.value.param) == (400, "prompt")
    assert "2048 choices" in refused.value.message
