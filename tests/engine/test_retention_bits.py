"""Conversations with --batch-invariant: cache, eviction, preemption, pre-warming change no bit.

Every turn is answered twice: by a replica that keeps nothing, one request at a time, and by one
that keeps, evicts, protects, preempts and pre-warms while conversations overtake each other.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.config import ConfigError, EngineConfig
from engine.loading import Replica, load_replica
from scheduler.logprobs import TokenLogprobs
from scheduler.outcome import Choice
from scheduler.plan import StepPlan
from scheduler.request import Sampling
from tests.engine.replica import prompt_of

PAGE_BYTES = 2 * 64 * (48 + 32) * 4
SAMPLING = Sampling(max_tokens=20, temperature=0.7, seed=11, ignore_eos=True, logprobs=2)

Answer = tuple[list[int], list[TokenLogprobs]]


class Turn(NamedTuple):
    """A prompt, where the next user message changes it, and how its answer ends."""

    prompt: list[int]
    flip_token: int
    why: Any
    form: list[int] | None
    """What the prompt after it starts with, when it is not this one."""


def load(folder: Path, pages: int, **settings: Any) -> Replica:
    limits: dict[str, Any] = {"kv_cache_bytes": pages * PAGE_BYTES, "threads": 1, "device": "cpu"}
    config = EngineConfig(model=str(folder), batch_invariant=True, **limits | settings)
    return load_replica(config, progress=False)


class Talk:
    """Requests in flight at one replica, and what was said so far."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.scheduler = replica, replica.scheduler
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[TokenLogprobs]] = {}
        self.ended: list[str] = []
        self.plans: list[StepPlan] = []
        self.now_s = 0.0

    def submit(self, name: str, prompt: list[int]) -> None:
        assert isinstance(self.scheduler.submit(name, prompt, SAMPLING), int)
        self.tokens[name], self.logprobs[name] = [], []

    def step(self) -> None:
        self.now_s += 1.0
        plan = self.scheduler.plan(self.now_s)
        self.plans.append(plan)
        for news in self.scheduler.commit(self.replica.runner.execute(plan)):
            self.take(news)

    def take(self, news: Choice) -> None:
        self.tokens[news.request_id] += news.token_ids
        self.logprobs[news.request_id] += news.logprobs or []
        if news.finish:
            self.ended.append(news.request_id)

    def answer(self, name: str) -> Answer:
        return self.tokens[name], self.logprobs[name]


def conversations(plain: Talk, seed: int) -> dict[str, list[tuple[Turn, Answer]]]:
    """Returns conversations of tool steps and user messages, answered one by one."""
    order = random.Random(seed)
    found: dict[str, list[tuple[Turn, Answer]]] = {}
    for number in range(4):
        # Two of them share a system prompt.
        prompt = [*prompt_of(100, number // 2), *prompt_of(order.randint(5, 60), 10 + number)]
        turns: list[tuple[Turn, Answer]] = []
        flip = len(prompt)
        for step in range(4):
            name = f"{number}.{step}"
            plain.submit(name, prompt)
            while plain.scheduler.has_work:
                plain.step()
            said, logprobs = plain.answer(name)
            more = prompt_of(order.randint(3, 70), 100 * number + step)
            if order.random() < 0.5:
                turns.append((Turn(prompt, flip, "tool_calls", None), (said, logprobs)))
                prompt = prompt + said + more
            else:
                # The turn anew, without the first half of what was said.
                form = [*prompt[:flip], 5, *prompt[flip:], *said[3:], 6]
                turns.append((Turn(prompt, flip, "answer", form), (said, logprobs)))
                prompt = form + more
                flip = len(prompt)
        found[str(number)] = turns
    return found


def overtaking(talk: Talk, expected: dict[str, list[tuple[Turn, Answer]]], seed: int) -> None:
    """Runs the conversations side by side. A next turn comes at a random time after the one before;
    some users think until the replica is idle."""
    order = random.Random(seed)
    due = {f"{number}.0" for number in expected}
    thinking: set[str] = set()
    done: set[str] = set()
    while due or talk.scheduler.has_work:
        for name in sorted(due):
            number, step = name.split(".")
            if name in thinking and talk.scheduler.has_work:
                continue
            if name in thinking or order.random() < 0.3:
                talk.submit(name, expected[number][int(step)][0].prompt)
                due.remove(name)
        if talk.scheduler.has_work:
            talk.step()
        for name in talk.ended:
            if name in done:
                continue
            done.add(name)
            number, step = name.split(".")
            turn = expected[number][int(step)][0]
            talk.scheduler.turn_ended(
                name, 0, turn.why, turn.flip_token, next_prefix=turn.form, now_s=talk.now_s
            )
            if int(step) + 1 < len(expected[number]):
                following = f"{number}.{int(step) + 1}"
                due.add(following)
                if turn.why == "answer" and order.random() < 0.7:
                    thinking.add(following)
    assert len(done) == sum(map(len, expected.values()))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, list[tuple[Turn, Answer]]]:
    """What is said without a cache, alone, in whole prompts."""
    plain = load(checkpoint, 64, enable_prefix_caching=False, inter_token_target_s=0)
    return conversations(Talk(plain), 0)


# Steps are bounded by tokens unless a case says otherwise: then what meets what is always the same.
CASES: dict[str, dict[str, Any]] = {
    "cache": {"pages": 200},
    "eviction": {"pages": 12, "max_num_seqs": 2},
    "preemption": {"pages": 7, "max_model_len": 7 * 64},
    "small chunks": {"pages": 40, "max_num_batched_tokens": 24},
    "no time": {"pages": 40, "inter_token_target_s": 1e-6, "prefill_floor_tokens": 7},
    "no pre-warming": {"pages": 40, "max_pre_warms": 0, "cost_doubling_tokens": 128},
}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_without_a_cache(
    checkpoint: Path, expected: dict[str, list[tuple[Turn, Answer]]], case: str
) -> None:
    settings = {"max_model_len": 11 * 64, "inter_token_target_s": 0, **CASES[case]}
    talk = Talk(load(checkpoint, settings.pop("pages"), **settings))
    overtaking(talk, expected, seed=len(case))
    for number, turns in expected.items():
        for step, (_, answer) in enumerate(turns):
            assert talk.answer(f"{number}.{step}") == answer, (number, step)
    scheduler, pool = talk.scheduler, talk.scheduler.pool
    assert pool.live_pages == 0
    # Each case is about what it is named after.
    warmed, found = scheduler.pre_warmer.computed_tokens, scheduler.pre_warmer.hit_tokens
    assert (warmed > 0) == (case != "no pre-warming")
    if case == "cache":
        assert found > 0 and not any(pool.evictions.values())
    if case == "eviction":
        assert sum(pool.evictions.values()) > 0
    if case == "preemption":
        assert scheduler.preemptions > 0


def test_dense_attention_has_no_invariant_form(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="--attention is dense"):
        load(checkpoint, 20, attention="dense")
