from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.llm import LLM, PromptRefused
from engine.model_config import GenerationDefaults
from scheduler.plan import StepPlan, StepResult
from scheduler.request import Sampling

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)


def llm(checkpoint: Path, **settings: Any) -> LLM:
    limits: dict[str, Any] = {"kv_cache_bytes": 1 << 23, "threads": 1, "device": "cpu"}
    return LLM(str(checkpoint), progress=False, **limits | settings)


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> LLM:
    return llm(checkpoint, max_queued_requests=3, max_num_seqs=2)


def test_answers_come_in_the_order_of_the_prompts(shared: LLM) -> None:
    """More prompts than the queue holds; the later ones end first."""
    prompts = [[7 + n, 8, 9] for n in range(11)]
    samplings = [
        Sampling(max_tokens=12 - n, temperature=0.0, ignore_eos=True) for n in range(len(prompts))
    ]
    found = shared.generate(prompts, samplings)
    assert [c.prompt_token_ids for c in found] == prompts
    assert [len(c.token_ids) for c in found] == [12 - n for n in range(11)]
    for prompt, how, completion in zip(prompts, samplings, found, strict=True):
        (alone,) = shared.generate([prompt], how)
        assert alone.token_ids == completion.token_ids
    assert {c.finish for c in found} == {"length"}
    assert shared.replica.scheduler.pool.live_pages == 0


def test_text_is_encoded_with_its_special_tokens_and_decoded(shared: LLM) -> None:
    text = "<｜begin▁of▁sentence｜>hi<｜Assistant｜>"
    (completion,) = shared.generate([text], GREEDY)
    ids = shared.tokenizer.encode(text, add_special_tokens=False).ids
    assert completion.prompt_token_ids == ids and len(ids) == 4
    assert completion.text == shared.tokenizer.decode(completion.token_ids)
    (same,) = shared.generate([ids], GREEDY)
    assert same.token_ids == completion.token_ids


def test_the_stop_token_is_the_last_and_logprobs_come_when_asked(shared: LLM) -> None:
    stopping = Sampling(
        max_tokens=6, temperature=0.0, logit_bias={9: 100.0}, stop_token_ids=(9,), logprobs=2
    )
    stopped, plain = shared.generate([[7, 8], [8, 9]], [stopping, GREEDY])
    assert stopped.finish == "stop" and stopped.token_ids == [9]
    assert [len(entry.top) for entry in stopped.logprobs] == [2]
    assert plain.logprobs == []


def test_no_prompts_give_no_answers(shared: LLM) -> None:
    assert shared.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt 1 has 0 tokens; allowed: 1 to 1"),
        ([5] * 20_000, "prompt 1 has 20000 tokens"),
        ([5, 320], "prompt 1 has a token id outside the vocabulary, 0 to 319"),
        ([-1], "prompt 1 has a token id outside"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused_before_any_runs(
    shared: LLM, prompt: list[int], message: str
) -> None:
    with pytest.raises(PromptRefused, match=message):
        shared.generate([[7], prompt], GREEDY)
    assert not shared.replica.scheduler.has_work


def test_samplings_must_be_as_many_as_prompts(shared: LLM) -> None:
    with pytest.raises(ValueError, match="1 samplings for 2 prompts"):
        shared.generate([[7], [8]], [GREEDY])
    assert not shared.replica.scheduler.has_work


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_k", -1),
        ("min_p", 1.5),
        ("presence_penalty", 3.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_sampling_out_of_range_is_refused_by_name(shared: LLM, field: str, value: float) -> None:
    wrong = msgspec.structs.replace(GREEDY, **{field: value})
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: "):
        shared.generate([[7]], wrong)
    assert not shared.replica.scheduler.has_work


def test_prompts_are_not_one_string(shared: LLM) -> None:
    with pytest.raises(TypeError, match="one string"):
        shared.generate("Hello", GREEDY)


def test_the_checkpoint_decides_where_nobody_does(
    shared: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = GenerationDefaults(temperature=0.0, max_new_tokens=3)
    monkeypatch.setattr(shared, "replica", dataclasses.replace(shared.replica, defaults=wishes))
    (found,) = shared.generate([[7, 9, 11]])
    limited = msgspec.structs.replace(GREEDY, max_tokens=3, ignore_eos=False)
    (expected,) = shared.generate([[7, 9, 11]], limited)
    assert found == expected


def test_an_interrupted_generate_leaves_nothing_behind(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a step, as in a notebook: the next call starts clean."""
    model = llm(checkpoint)
    expected = model.generate([[7, 8, 9]], GREEDY)[0].token_ids
    execute, steps = model.replica.runner.execute, 0

    def interrupted(plan: StepPlan) -> StepResult:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return execute(plan)

    monkeypatch.setattr(model.replica.runner, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate([[9, 9, 9], [8, 8]], GREEDY)
    monkeypatch.undo()
    assert model._scheduler.predictor is model.replica.scheduler.predictor, "what it has learned"
    assert model.generate([[7, 8, 9]], GREEDY)[0].token_ids == expected


def test_steps_are_bounded_by_time_only_when_asked(checkpoint: Path) -> None:
    assert llm(checkpoint)._scheduler.config.inter_token_target_s is None
    timed = llm(checkpoint, inter_token_target_s=0.05)
    assert timed._scheduler.config.inter_token_target_s == 0.05
    timed.generate([[7, 8, 9]], GREEDY)
    assert timed._scheduler.predictor is not None


def test_unknown_settings_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="max_sequences"):
        LLM(str(checkpoint), max_sequences=3)
