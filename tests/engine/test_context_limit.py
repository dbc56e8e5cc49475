"""The end of the context window: its last position is served, one more is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.llm import LLM, PromptRefused
from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan, StepResult
from scheduler.request import FinishReason, Sampling
from scheduler.scheduler import Scheduler
from tests.checkpoints import random_weights, tiny_config, write_checkpoint
from tests.reference_model import ReferenceModel

PUBLISHED_WINDOW = 131_072
GREEDY = Sampling(max_tokens=10, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize(
    "window",
    [
        2_048,
        # Minutes of index scores: 8.6 thousand million of them.
        pytest.param(
            PUBLISHED_WINDOW, marks=[pytest.mark.check, pytest.mark.timeout(3600)], id="131072"
        ),
    ],
)
def test_the_last_position_is_served_and_one_more_refused(tmp_path: Path, window: int) -> None:
    """One layer, so that the reference needs no more than the last query."""
    fields = tiny_config(
        num_hidden_layers=1,
        num_nextn_predict_layers=0,
        num_attention_heads=1,
        num_key_value_heads=1,
        index_n_heads=1,
        index_head_dim=16,
        max_position_embeddings=window,
    )
    weights = random_weights(fields, seed=11)
    folder = write_checkpoint(tmp_path / "model", fields, weights)
    generator = torch.Generator().manual_seed(window)
    tokens: list[int] = torch.randint(0, 320, (window,), generator=generator).tolist()
    llm = LLM(str(folder), progress=False)

    (completion,) = llm.generate([tokens[:-2]], GREEDY)
    assert completion.finish == "length"
    assert len(completion.token_ids) == 2
    # The window's last token is sampled by the query before it; nothing is computed after it.
    known = tokens[:-2] + completion.token_ids[:1]
    logits = ReferenceModel(fields, weights)(known, last_queries=1).logits
    assert completion.token_ids[1] == int(logits.argmax())

    (completion,) = llm.generate([tokens[:-1]], GREEDY)
    assert (completion.finish, len(completion.token_ids)) == ("length", 1)
    with pytest.raises(PromptRefused, match=f"has {window} tokens; allowed: 1 to {window - 1}"):
        llm.generate([tokens], GREEDY)


def run_step(scheduler: Scheduler) -> tuple[StepPlan, list[Choice]]:
    """One step of a runner that always draws token 5."""
    plan = scheduler.plan()
    drawn = [5 if row.sample == "last" else -1 for row in plan.rows]
    return plan, scheduler.commit(StepResult(plan.step, drawn, [None] * len(drawn), 0.1))


def test_the_published_window_is_scheduled_to_its_last_token() -> None:
    page_tokens = 64
    scheduler = Scheduler(
        SchedulerConfig(
            total_pages=PUBLISHED_WINDOW // page_tokens,
            page_tokens=page_tokens,
            max_model_len=PUBLISHED_WINDOW,
            max_num_seqs=2,
            max_num_batched_tokens=2048,
            max_queued_requests=4,
            indexer_workspace_bytes=2**30,
            forms=FormPolicy("auto", 2048, 6963),
            eos_token_ids=(1,),
        )
    )
    refusal = scheduler.submit("one too many", [7] * PUBLISHED_WINDOW, GREEDY)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    assert not scheduler.has_work

    assert scheduler.submit("longest", [7] * (PUBLISHED_WINDOW - 2), GREEDY) == 0
    computed, drawn = set[int](), 0
    finishes: list[FinishReason] = []
    while scheduler.has_work:
        plan, news = run_step(scheduler)
        for row in plan.rows:
            computed |= set(range(row.start, row.start + row.count))
        drawn += sum(len(choice.token_ids) for choice in news)
        finishes += [choice.finish for choice in news if choice.finish]
    assert computed == set(range(PUBLISHED_WINDOW - 1))
    assert drawn == 2
    assert finishes == ["length"]
    assert scheduler.pool.live_pages == 0
