from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.scheduler.fake_runner import FakeRunner

PAGE = 4
PROMPT = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9]
NEVER_ENDS = Sampling(max_tokens=1000, ignore_eos=True)


def config(**changed: Any) -> SchedulerConfig:
    settings: dict[str, Any] = {
        "total_pages": 16,
        "page_tokens": PAGE,
        "max_model_len": 40,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_queued_requests": 8,
        "indexer_workspace_bytes": 1 << 20,
        "forms": FormPolicy("auto", top_k=6, break_even_tokens=14),
        "eos_token_ids": (1,),
    }
    return SchedulerConfig(**settings | changed)


class Replica:
    """A scheduler and its fake runner."""

    def __init__(self, **changed: Any) -> None:
        self.scheduler = Scheduler(config(**changed))
        self.runner = FakeRunner(self.scheduler.config, self.scheduler.pool)
        self.pool = self.scheduler.pool

    def submit(
        self, name: str, prompt: list[int], sampling: Sampling = NEVER_ENDS, **how: Any
    ) -> int:
        self.runner.owners[name] = how.get("tenant", "") + "/" + how.get("cache_salt", "")
        answer = self.scheduler.submit(name, prompt, sampling, **how)
        assert isinstance(answer, int), answer
        return answer

    def step(self, now_s: float = 0.0) -> tuple[StepPlan, list[Choice]]:
        plan = self.scheduler.plan(now_s)
        return plan, self.scheduler.commit(self.runner.execute(plan))

    def finish(self, now_s: float = 0.0) -> list[Choice]:
        news = []
        while self.scheduler.has_work:
            news += self.step(now_s)[1]
        return news

    def running(self) -> set[str]:
        return {mirror.request_id for mirror in self.runner.slots.values()}


def spans(plan: StepPlan) -> list[tuple[int, int]]:
    return [(row.start, row.count) for row in plan.rows]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("prompt", "n", "status", "code", "param"),
    [
        ([], 1, 400, "invalid_request_error", "messages"),
        ([5] * 40, 1, 400, "context_length_exceeded", "messages"),
        ([5], 0, 400, "invalid_request_error", "n"),
        ([5], 9, 400, "invalid_request_error", "n"),
    ],
)
def test_what_can_never_run_is_refused_with_400(
    prompt: list[int], n: int, status: int, code: str, param: str
) -> None:
    answer = Scheduler(config()).submit("a", prompt, NEVER_ENDS, n=n)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code, answer.param) == (status, code, param)


def test_the_longest_prompt_gets_one_token() -> None:
    replica = Replica()
    replica.submit("a", [5] * 39)
    (news,) = replica.finish()
    assert (len(news.token_ids), news.finish) == (1, "length")


def test_a_full_queue_is_429_and_an_id_in_use_400() -> None:
    scheduler = Scheduler(config(max_queued_requests=2))
    assert scheduler.submit("a", [5], NEVER_ENDS, n=2) == 0
    full = scheduler.submit("b", [5], NEVER_ENDS)
    assert isinstance(full, Refusal) and (full.status, full.code) == (429, "queue_full")
    taken = Replica()
    taken.submit("a", [5])
    again = taken.scheduler.submit("a", [6], NEVER_ENDS)
    assert isinstance(again, Refusal)
    assert (again.status, again.code) == (400, "duplicate_request_id")


def test_a_window_larger_than_the_pages_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="max_model_len is 41; the pages hold 40"):
        Scheduler(config(total_pages=10, max_model_len=41))


# ---------------------------------------------------------------- chunks, budgets, order


def test_a_long_prompt_is_computed_in_chunks_and_sampled_once() -> None:
    replica = Replica(max_num_batched_tokens=4)
    replica.submit("a", PROMPT)
    plans = [replica.step()[0] for _ in range(4)]
    assert [spans(plan) for plan in plans] == [[(0, 4)], [(4, 4)], [(8, 2)], [(10, 1)]]
    assert [plan.rows[0].sample for plan in plans] == ["none", "none", "last", "last"]
    assert [plan.rows[0].form for plan in plans] == ["mha", "masked_mha", "masked_mha", "mqa"]


def test_decode_goes_first_and_prefill_takes_what_is_left() -> None:
    replica = Replica(max_num_batched_tokens=5)
    replica.submit("a", [5, 6])
    replica.step()
    replica.submit("b", PROMPT)
    assert spans(replica.step()[0]) == [(2, 1), (0, 4)]
    assert spans(replica.step()[0]) == [(3, 1), (4, 4)]


def test_decode_goes_before_a_prefill_that_started_earlier() -> None:
    replica = Replica(indexer_workspace_bytes=160)  # so that the prefill cannot fill a step
    replica.submit("a", PROMPT * 3)
    replica.submit("b", [5, 6])
    assert spans(replica.step()[0]) == [(0, 6), (0, 2)], "six tokens need no scores"
    assert spans(replica.step()[0]) == [(2, 1), (6, 4)], "4 x 10 scores of 4 bytes"


def test_index_scores_bound_a_prefill_chunk() -> None:
    forms = FormPolicy("sparse", top_k=6, break_even_tokens=14)
    replica = Replica(indexer_workspace_bytes=4 * 25, forms=forms)
    replica.submit("a", PROMPT)
    for _ in range(6):
        for row in replica.step()[0].rows:
            assert row.count == 1 or row.count * (row.start + row.count) <= 25


def test_a_row_without_scores_fits_beside_one_that_exceeds_the_workspace_alone() -> None:
    replica = Replica(indexer_workspace_bytes=4)
    replica.submit("long", PROMPT[:6])
    replica.submit("short", [5, 6])
    replica.step()
    assert [row.form for row in replica.step()[0].rows] == ["mqa", "dense_mqa"]


def test_lower_priority_numbers_start_first_and_equal_ones_in_order() -> None:
    replica = Replica(max_num_seqs=1)
    order = {"late": 1, "first": 0, "second": 0, "urgent": -1}
    for name, priority in order.items():
        replica.submit(name, [5, 6], Sampling(max_tokens=2, ignore_eos=True), priority=priority)
    ended = [news.request_id for news in replica.finish() if news.finish]
    assert ended == ["urgent", "first", "second", "late"]


def test_the_backlog_counts_prompt_tokens_not_yet_computed() -> None:
    replica = Replica(max_num_batched_tokens=4, max_num_seqs=1)
    replica.submit("a", PROMPT)
    replica.submit("b", PROMPT[:3])
    assert replica.scheduler.backlog_tokens == 13
    replica.step()
    assert replica.scheduler.backlog_tokens == 9


# ---------------------------------------------------------------- shared prefixes


def test_a_second_equal_prompt_recomputes_its_last_tokens_only() -> None:
    replica = Replica()
    prompt = PROMPT[:8]  # two whole pages; the second may not be hit, its last token is needed
    assert replica.submit("a", prompt, Sampling(max_tokens=1)) == 0
    replica.finish()
    assert replica.submit("b", prompt, Sampling(max_tokens=1)) == 4
    assert spans(replica.step()[0]) == [(4, 4)]


def test_an_answer_is_part_of_the_prefix_of_the_next_turn() -> None:
    replica = Replica()
    replica.submit("a", PROMPT, Sampling(max_tokens=7, ignore_eos=True))
    answer = [token for news in replica.finish() for token in news.token_ids]
    # 17 tokens, of which the last was never computed: 4 whole pages.
    assert replica.submit("b", [*PROMPT, *answer, 2, 2, 2]) == 16


@pytest.mark.parametrize("other", [{"tenant": "t"}, {"cache_salt": "s"}])
def test_another_tenant_or_salt_finds_nothing(other: dict[str, str]) -> None:
    replica = Replica()
    replica.submit("a", PROMPT, Sampling(max_tokens=1))
    replica.finish()
    assert replica.submit("b", PROMPT, **other) == 0
    assert replica.submit("c", PROMPT) == 8


def test_without_prefix_caching_nothing_is_kept() -> None:
    replica = Replica(prefix_caching=False)
    replica.submit("a", PROMPT, Sampling(max_tokens=1))
    replica.finish()
    assert replica.pool.free_pages == replica.pool.total_pages
    assert replica.submit("b", PROMPT) == 0


def test_choices_share_the_prompt_of_the_first() -> None:
    replica = Replica(max_num_batched_tokens=6)
    replica.submit("a", PROMPT, Sampling(max_tokens=2, ignore_eos=True), n=3)
    assert spans(replica.step()[0]) == [(0, 6)]
    assert spans(replica.step()[0]) == [(6, 4)], "the others wait for the first one's prompt"
    plan, _ = replica.step()
    assert spans(plan) == [(10, 1), (8, 2), (8, 2)]
    replica.finish()
    assert replica.runner.computed_tokens == 10 + 1 + 2 * (2 + 1)


def test_pages_beyond_a_stop_are_not_worth_keeping() -> None:
    replica = Replica()
    replica.submit("a", PROMPT, Sampling(max_tokens=40, ignore_eos=True))
    for _ in range(13):
        replica.step()
    (sequence,) = replica.scheduler.running
    assert (sequence.computed_tokens, sequence.generated_tokens) == (22, 13)
    news = replica.scheduler.stop("a", 0, 5)
    assert [n.finish for n in news] == ["stop"]
    # 15 tokens are kept: 3 full pages of 4; those after them were published but hold dropped text.
    idle = replica.scheduler.pool.idle_pages
    assert (idle["stable"], idle["dead"]) == (3, 2)
    replica.scheduler.turn_ended("a", 0, "tool_calls", None)
    assert replica.scheduler.pool.idle_pages["awaited"] == 3


def test_choices_go_on_when_the_first_is_stopped_before_its_prompt_is_done() -> None:
    replica = Replica(max_num_batched_tokens=4)
    replica.submit("a", PROMPT, Sampling(max_tokens=2, ignore_eos=True), n=2)
    replica.step()
    replica.scheduler.stop("a", 0, 0)
    news = replica.finish()
    assert {n.choice for n in news} == {1} and news[-1].finish == "length"


def test_other_requests_pass_choices_that_wait_for_their_sibling() -> None:
    replica = Replica(max_num_batched_tokens=6)
    replica.submit("a", PROMPT, n=2)
    replica.submit("b", [5, 6])
    replica.step()
    replica.step()
    assert sorted(m.request_id for m in replica.runner.slots.values()) == ["a", "b"]


# ---------------------------------------------------------------- preemption


def test_when_pages_run_out_the_last_arrival_waits_and_finishes_later() -> None:
    small, large = Replica(total_pages=10), Replica(total_pages=40)
    for replica in (small, large):
        for name in ("a", "b", "c"):
            replica.submit(name, [5, 6, 7], Sampling(max_tokens=20, ignore_eos=True))
    tokens = []
    for replica in (small, large):
        answers: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        for news in replica.finish():
            answers[news.request_id] += news.token_ids
        tokens.append(answers)
    assert small.scheduler.preemptions > 0 and large.scheduler.preemptions == 0
    assert tokens[0] == tokens[1]
    assert all(len(answer) == 20 for answer in tokens[0].values())


def test_who_is_preempted_after_growing_in_the_same_step_leaves_no_trace_in_the_plan() -> None:
    replica = Replica(total_pages=3, max_model_len=12)
    replica.submit("cheap", [5, 6, 7], priority=5)
    replica.step()
    replica.submit("dear", [8, 9, 5, 6], priority=0)
    replica.step()
    plan, _ = replica.step()  # both start their second page, cheap first, and there is one
    assert replica.scheduler.preemptions == 1
    assert [row.start for row in plan.rows] == [4]
    assert [slot for slot, _ in plan.prepare.new_pages] == [plan.rows[0].slot]
    assert replica.running() == {"dear"}
    replica.finish()
    # dear took all three pages; cheap computed its own anew, and publishes them anew.
    assert replica.pool.idle_pages["stable"] == 2


def test_the_lowest_priority_is_preempted_not_the_longest() -> None:
    replica = Replica(total_pages=6, max_model_len=24)
    replica.submit("cheap", [5, 6], priority=5)
    replica.submit("dear", PROMPT, priority=0)
    ended = [news.request_id for news in replica.finish() if news.finish]
    assert ended == ["dear", "cheap"] and replica.scheduler.preemptions > 0


# ---------------------------------------------------------------- the end of a choice


@pytest.mark.parametrize(
    ("sampling", "finish", "stop_token"),
    [
        (Sampling(max_tokens=50), "stop", 1),
        (Sampling(max_tokens=50, stop_token_ids=(2,), ignore_eos=True), "stop", 2),
        (Sampling(max_tokens=3, ignore_eos=True), "length", None),
    ],
)
def test_why_a_choice_ends(sampling: Sampling, finish: str, stop_token: int | None) -> None:
    replica = Replica()
    replica.submit("a", [5, 6], sampling)
    *before, last = replica.finish()
    assert all(news.finish is None for news in before)
    assert (last.finish, last.stop_token) == (finish, stop_token)
    assert replica.pool.live_pages == 0


def test_a_stop_token_that_is_also_the_last_allowed_one_counts_as_stop() -> None:
    replica = Replica()
    replica.submit("a", [5, 6], Sampling(max_tokens=50))
    count = sum(len(news.token_ids) for news in replica.finish())
    replica.submit("a", [5, 6], Sampling(max_tokens=count))
    assert replica.finish()[-1].finish == "stop"


def test_abort_ends_every_choice_and_frees_pages_at_once() -> None:
    replica = Replica(max_num_seqs=2)
    replica.submit("a", PROMPT, n=3)
    replica.step()
    replica.step()
    assert replica.pool.live_pages > 0
    news = replica.scheduler.abort("a")
    assert sorted((n.choice, n.finish) for n in news) == [(0, "abort"), (1, "abort"), (2, "abort")]
    assert replica.pool.live_pages == 0 and not replica.scheduler.waiting
    assert replica.scheduler.abort("a") == []
    plan, news = replica.step()
    assert not plan.rows and len(plan.forget) == 2 and not news
    assert not replica.scheduler.has_work


def test_an_id_can_be_used_again_after_its_request_ended() -> None:
    replica = Replica()
    for _ in range(2):
        replica.submit("a", [5], Sampling(max_tokens=1))
        assert [news.finish for news in replica.finish()] == ["length"]


# ---------------------------------------------------------------- retention


def ended(replica: Replica, name: str, prompt: list[int]) -> None:
    replica.submit(name, prompt, Sampling(max_tokens=1, ignore_eos=True))
    replica.finish()


def test_pages_from_the_flip_point_of_an_answered_turn_are_dead() -> None:
    replica = Replica()
    ended(replica, "a", PROMPT * 2)  # five whole pages
    assert replica.pool.idle_pages == {"dead": 0, "stable": 5, "awaited": 0}
    replica.scheduler.turn_ended("a", 0, "answer", 9)  # in the third page
    assert replica.pool.idle_pages == {"dead": 3, "stable": 2, "awaited": 0}
    replica.scheduler.turn_ended("a", 0, "tool_calls", None)  # said once already: ignored
    assert replica.pool.idle_pages == {"dead": 3, "stable": 2, "awaited": 0}


def test_a_turn_that_waits_for_a_tool_keeps_all_its_pages_longest() -> None:
    replica = Replica(total_pages=10)
    ended(replica, "a", PROMPT)
    replica.scheduler.turn_ended("a", 0, "tool_calls", None)
    ended(replica, "b", [2, 3] * 8)
    ended(replica, "c", [3, 4] * 16)
    assert replica.submit("d", PROMPT) == 8


@pytest.mark.parametrize("why", ["tool_calls", "answer", "length"])
def test_of_one_turn_the_last_pages_are_evicted_first(why: Any) -> None:
    replica = Replica(total_pages=10)
    prompt = PROMPT * 2
    ended(replica, "a", prompt)
    replica.scheduler.turn_ended("a", 0, why, 0)
    ended(replica, "b", [2] * 27)  # takes the 5 free pages and 2 of a's
    assert replica.submit("c", [*prompt, 2]) == 12


@pytest.mark.parametrize("steps", [1, 3])
def test_a_row_that_sampled_nothing_ends_its_choice_with_an_error(steps: int) -> None:
    replica = Replica()
    replica.submit("a", PROMPT)
    replica.submit("b", [1, 2, 3])
    for _ in range(steps - 1):
        replica.step()
    plan = replica.scheduler.plan()
    slots = {s.slot: s.request_id for s in replica.scheduler.running}
    result = replica.runner.execute(plan)
    failed = [
        -1 if slots[row.slot] == "a" else token
        for row, token in zip(plan.rows, result.token_ids, strict=True)
    ]
    news = replica.scheduler.commit(msgspec.structs.replace(result, token_ids=failed))
    ended = {choice.request_id: (choice.token_ids, choice.finish) for choice in news}
    assert ended["a"] == ([], "error")
    assert ended["b"][1] is None and len(ended["b"][0]) == 1
    assert [s.request_id for s in replica.scheduler.running] == ["b"]
    replica.scheduler.abort("b")
    assert replica.pool.live_pages == 0
