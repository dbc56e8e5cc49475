"""Log-probabilities of prompt tokens: those the model gives, however the prompt is computed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from engine import sampler
from engine.generation import Generation
from engine.messages import Output, Submit
from scheduler.logprobs import TokenLogprobs
from scheduler.request import Sampling
from tests.engine.replica import GREEDY, TinyReplica, prompt_of

SCORED = msgspec.structs.replace(GREEDY, max_tokens=3, prompt_logprobs=2)
PROMPT = prompt_of(150)
PLACES = (1, 2, 63, 64, 65, 100, 149)


def scores(replica: TinyReplica, name: str = "r") -> list[TokenLogprobs]:
    """What the choice's first news said of its prompt; later news say nothing."""
    first, *others = replica.news[name, 0]
    assert all(news.prompt_logprobs is None for news in others)
    assert first.token_ids and first.prompt_logprobs is not None
    return first.prompt_logprobs


def scored(attention: str = "auto", prompt: list[int] = PROMPT, **how: Any) -> list[TokenLogprobs]:
    replica = TinyReplica(attention, **how)
    replica.submit("r", prompt, SCORED)
    replica.finish()
    return scores(replica)


def values(found: list[TokenLogprobs]) -> Tensor:
    return torch.tensor([entry.logprob for entry in found])


@pytest.mark.parametrize("attention", ["auto", "sparse", "dense"])
def test_each_is_what_the_model_says_behind_the_tokens_before(attention: str) -> None:
    found = scored(attention)
    assert len(found) == len(PROMPT) - 1
    for place in PLACES:
        once = Sampling(max_tokens=1, temperature=0.0)
        logits = TinyReplica(attention).run("alone", PROMPT[:place], once)[0]
        expected = logits.log_softmax(-1)
        entry, token = found[place - 1], PROMPT[place]
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        best = expected.topk(2)
        assert [other for other, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        close = (
            int((expected > expected[token] + 1e-4).sum()),
            int((expected > expected[token] - 1e-4).sum()),
        )
        assert close[0] + 1 <= entry.rank <= close[1]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 100])
def test_chunks_change_nothing(chunk_tokens: int) -> None:
    found = scored(max_num_batched_tokens=chunk_tokens)
    torch.testing.assert_close(values(found), values(scored()), atol=1e-4, rtol=0)


def test_logits_are_looked_at_in_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = TinyReplica()
    monkeypatch.setattr(sampler, "LOGITS_BYTES", 4 * 9 * replica.runner.model.config.vocab_size)
    head, lines = replica.runner.model.logits, []

    def counted(hidden: Tensor) -> Tensor:
        lines.append(hidden.shape[0])
        return head(hidden)

    monkeypatch.setattr(replica.runner.model, "logits", counted)
    replica.submit("r", PROMPT, SCORED)
    replica.finish()
    assert max(lines) <= 9 and sum(lines) >= len(PROMPT)
    torch.testing.assert_close(values(scores(replica)), values(scored()), atol=1e-4, rtol=0)


def test_a_cached_prompt_is_computed_again() -> None:
    replica = TinyReplica()
    replica.submit("before", PROMPT)
    replica.finish()
    assert replica.submit("r", PROMPT, SCORED) == 0
    replica.finish()
    torch.testing.assert_close(values(scores(replica)), values(scored()), atol=1e-4, rtol=0)
    assert replica.news["r", 0][0].cached_tokens == 0
    assert replica.submit("after", PROMPT) == 128, "what was there is still found"
    replica.finish()
    assert (
        replica.tokens["after", 0][:3] == replica.tokens["r", 0] == replica.tokens["before", 0][:3]
    )


def test_others_in_the_same_steps_are_not_touched() -> None:
    alone = TinyReplica()
    alone.submit("other", prompt_of(90, 1))
    alone.finish()
    replica = TinyReplica(max_num_batched_tokens=40)
    replica.submit("other", prompt_of(90, 1))
    while not replica.tokens["other", 0]:
        replica.step()
    replica.submit("r", PROMPT, SCORED)
    plan = replica.step()
    assert sorted(row.sample for row in plan.rows) == ["every", "last"]
    replica.finish()
    assert replica.tokens["other", 0] == alone.tokens["other", 0]
    torch.testing.assert_close(values(scores(replica)), values(scored()), atol=1e-4, rtol=0)


def test_the_first_choice_alone_scores_the_prompt() -> None:
    replica = TinyReplica()
    replica.submit("r", PROMPT, SCORED, n=3)
    replica.finish()
    assert len(scores(replica)) == len(PROMPT) - 1
    for choice in (1, 2):
        assert all(news.prompt_logprobs is None for news in replica.news["r", choice])
        assert replica.tokens["r", choice] == replica.tokens["r", 0]


def test_a_prompt_of_one_token_has_none() -> None:
    assert scored(prompt=[9]) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_preempted_prompt_is_scored_once(steps: int) -> None:
    """What was scored before is not scored again, whatever of it is found in the cache."""
    replica = TinyReplica(max_num_batched_tokens=40)
    replica.submit("r", PROMPT, SCORED)
    for _ in range(steps):
        replica.step()
    (sequence,) = replica.scheduler.running
    replica.scheduler._planner._preempt(sequence)
    replica.finish()
    assert len(scores(replica)) == len(PROMPT) - 1
    torch.testing.assert_close(values(scores(replica)), values(scored()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("found", [[], [TokenLogprobs(-1.0, [(3, -0.5)], 2)]])
def test_they_outlive_news_that_nobody_has_read_yet(found: list[TokenLogprobs]) -> None:
    async def run() -> list[list[Output]]:
        generation = Generation(None, Submit("r", [1, 2], SCORED))  # type: ignore[arg-type]
        generation.take(Output("r", 0, [5], None, None, {}, found))
        generation.take(Output("r", 0, [6], None, "length"))
        return [news async for news in generation]

    ((output,),) = asyncio.run(run())
    assert (output.token_ids, output.prompt_logprobs) == ([5, 6], found)
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(output), type=Output)
    assert packed == output
