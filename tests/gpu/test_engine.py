"""The engine with the kernels on a Hopper GPU: `make gpu`. Never run so far: no GPU was at hand."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from api.chat.encoding import Encoder
from engine.config import ConfigError
from engine.hub import EMBEDDED_MODEL
from engine.llm import LLM, Completion
from engine.messages import Sampling
from tests.gpu.needs_hopper import NEEDS_HOPPER
from training.data import Mix, draw_case

pytestmark = NEEDS_HOPPER

MARGIN = 0.5
"""Tokens of two ways on the GPU may part where the two likeliest are this close: sums are added in
another order, and FP8 roundings that follow fall on the other side of a step."""
CPU_MARGIN = 1.5
"""The same beside the CPU, which computes in float32: bfloat16 and FP8 activations move single
logits of the embedded model by about 1. It is sure of most of what it was taught, though."""
CPU_EQUAL = 25
"""Answers of 50 that are the CPU's to the last token, at least."""
GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=2)
FP8 = {"kv_cache_dtype": "fp8", "index_dtype": "fp8"}
ANSWER = Sampling(max_tokens=24, temperature=0.0, logprobs=2)
TAUGHT = Mix(chat=1.0, facts=1.0, tools=1.0)
LENGTHS = [1, 2, 3, 17, 63, 64, 65, 66, 100, 128, 129, 200, 333]


def prompts(count: int) -> list[list[int]]:
    """Random prompts of the embedded model's vocabulary, within and beyond its top-k of 64."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(300, 3000, (LENGTHS[i % len(LENGTHS)],), generator=generator).tolist()
        for i in range(count)
    ]


def questions(count: int) -> list[list[int]]:
    """Conversations of the kinds the embedded model was taught, whose answers it is sure of."""
    encoder, random = Encoder.from_folder(EMBEDDED_MODEL), Random(7)
    found = []
    for number in range(count):
        case = draw_case(random, TAUGHT, "held-out")
        tools = case.tools or None
        found.append(encoder.encode(case.given, tools=tools, thinking=number % 2 == 1).token_ids)
    return found


def engine(device: str = "cuda", **settings: Any) -> LLM:
    settings = {"kv_cache_bytes": 2**28, "max_model_len": 4096, **settings}
    return LLM("", progress=False, device=device, **settings)


def generate(llm: LLM, count: int = 13) -> list[Completion]:
    return llm.generate(prompts(count), GREEDY)


def parted(one: Completion, other: Completion) -> float | None:
    """How close the two likeliest tokens were where two answers part; None: they do not."""
    for place, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=True)):
        if a != b:
            (_, first), (_, second) = one.logprobs[place].top
            return first - second
    return None


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()


def test_the_kernels_serve_the_embedded_checkpoint(llm: LLM) -> None:
    from engine.hopper.runner import HopperRunner

    runner = llm.replica.runner
    assert isinstance(runner, HopperRunner) and runner.graphs is not None
    assert llm.replica.ready.memory["graphs"] > 0


@pytest.mark.parametrize("attention", ["auto", "sparse", "dense"])
def test_tokens_are_the_cpus_or_part_where_two_are_close(attention: str) -> None:
    asked = questions(50)
    cpu = engine("cpu", attention=attention, **FP8).generate(asked, ANSWER)
    cuda = engine(attention=attention).generate(asked, ANSWER)
    margins = [parted(one, other) for one, other in zip(cpu, cuda, strict=True)]
    assert not [margin for margin in margins if margin is not None and margin > CPU_MARGIN]
    assert margins.count(None) >= CPU_EQUAL


def test_graphs_give_what_single_launches_give(llm: LLM) -> None:
    eager = generate(engine(enforce_eager=True))
    margins = [parted(one, other) for one, other in zip(eager, generate(llm), strict=True)]
    assert not [margin for margin in margins if margin is not None and margin > MARGIN]


def test_the_same_step_gives_the_same_bits_twenty_times(llm: LLM) -> None:
    first = [completion.token_ids for completion in generate(llm)]
    for _ in range(20):
        assert [completion.token_ids for completion in generate(llm)] == first


@pytest.mark.parametrize("eager", [False, True])
def test_nothing_in_a_decode_step_waits_for_the_host(eager: bool) -> None:
    from scheduler.plan import NewSlot, PageMove, Prepare, Row, StepPlan

    runner = engine(enforce_eager=eager).replica.runner
    ids = prompts(9)
    new = tuple(
        NewSlot(
            slot=slot, request_id=f"{slot}", choice=0, token_ids=prompt,
            prompt_tokens=len(prompt), sampling=GREEDY, pages=[*range(8 * slot, 8 * slot + 6)],
        )
        for slot, prompt in enumerate(ids)
    )  # fmt: skip
    runner.execute(StepPlan(step=0, rows=(), prepare=Prepare(new_slots=new)))
    rows = tuple(
        Row(slot=slot, start=len(prompt) - 1, count=1, sample=sample, form="mqa")
        for slot, prompt in enumerate(ids)
        for sample in ["none" if slot == 4 else "last"]
    )
    # Pages that no slot has, copied before the rows.
    copies = StepPlan(step=0, rows=(), prepare=Prepare(copies=(PageMove(80, 81), PageMove(82, 83))))

    def step() -> None:
        runner.execute(copies)
        assert runner.compute(rows).shape[0] == len(rows) - 1

    with torch.inference_mode():
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_chunked_prefill_parts_from_one_shot_only_where_two_are_close() -> None:
    once, chunked = generate(engine()), generate(engine(max_num_batched_tokens=48))
    margins = [parted(one, other) for one, other in zip(once, chunked, strict=True)]
    assert not [margin for margin in margins if margin is not None and margin > MARGIN]


def test_pages_fill_what_the_utilisation_leaves() -> None:
    llm = engine(kv_cache_bytes=None, gpu_memory_utilization=0.05, max_num_seqs=512)
    assert llm.replica.ready.memory["graphs"] > 0
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    assert total_bytes - free_bytes <= 0.05 * total_bytes


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"take .* GiB.*--gpu-memory-utilization 0.0001"):
        engine(kv_cache_bytes=None, gpu_memory_utilization=0.0001)
