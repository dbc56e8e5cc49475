"""Draws by the kernel against those by PyTorch: the same requests through both runners.

A network that computes nothing looks logits up by token and position, NaN behind some tokens. A
drawn row takes the interpreter a third of a second and more, so most rows that only adjust logits
are greedy, and some have one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from engine.attention import Probe
from engine.batch import Batch
from engine.cache import PagedCache
from engine.grammar import GrammarCompiler
from engine.hopper import rehearsal
from engine.hopper import sampler as hopper_sampler
from engine.hopper.graphs import Bucket, DecodeGraphs, smallest
from engine.hopper.runner import HopperRunner
from engine.hopper.sampler import StagedDraws, compile_draws
from engine.messages import Grammar
from engine.model_config import ModelConfig
from engine.runner import Runner
from engine.sampler import NO_TOKEN
from engine.sampler_state import SamplerState
from kernels.hopper.sampling import sample
from scheduler.forms import FormPolicy
from scheduler.plan import NewSlot, Prepare, Row, StepPlan, StepResult
from scheduler.request import ReasoningBudget, Sampling
from tests.checkpoints import write_tokenizer
from tests.engine.hopper.tiny import CPU, FIELDS, empty_cache

VOCABULARY, EOS = 320, 1
BROKEN = 11
"""The token behind which the network says NaN."""
PROMPT = [20, 21, 22, 23]
BUCKET = Bucket(16, 64, "dense_mqa")


class Table:
    """A network whose logits are looked up."""

    def __init__(self) -> None:
        self.config = ModelConfig.from_json(FIELDS | {"vocab_size": VOCABULARY})
        self.device = CPU
        generator = torch.Generator().manual_seed(5)
        self.lines = torch.randn(101, VOCABULARY, generator=generator) * 3
        # Many ties, and the end is likely.
        self.lines[::2] = self.lines[::2].round()
        self.lines[:, EOS] = 9.0

    def forward(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        return self.logits(self.hidden(batch, cache, probe))

    def hidden(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        return torch.stack((batch.token_ids, batch.positions), 1)[batch.sampled]

    def logits(self, hidden: Tensor) -> Tensor:
        found = self.lines[(7 * hidden[:, 0] + hidden[:, 1]) % 101]
        return found.masked_fill(hidden[:, :1] == BROKEN, torch.nan)


class Uncaptured(DecodeGraphs):
    """Graphs that are computed anew: capturing takes a GPU."""

    def find(self, rows: Sequence[Row]) -> Bucket | None:
        return smallest(self.wanted, rows)

    replays = 0

    def replay(self, bucket: Bucket) -> Tensor:
        self.replays += 1
        self.launch(bucket)
        return self._logits[: bucket.rows]


def hopper_runner() -> HopperRunner:
    return HopperRunner(
        Table(),
        empty_cache(1, 16),
        eos_token_ids=(EOS,),
        max_num_seqs=16,
        max_num_batched_tokens=80,
        max_model_len=64,
    )


GREEDY: dict[str, Any] = {"temperature": 0.0}
ONCE: dict[str, Any] = {"max_tokens": 1}
ASKED: dict[str, dict[str, Any]] = {
    "greedy": GREEDY | {"logprobs": 3},
    "drawn": {"seed": 7, "logprobs": 0},
    "its second choice": ONCE | {"seed": 7},
    "all of the vocabulary, next to no mass": ONCE | {"top_k": 2**31 - 1, "top_p": 1e-9},
    "the coldest draw": ONCE | {"temperature": 1e-5, "min_p": 1.0, "seed": 2**63 - 1},
    "penalties and biases": GREEDY
    | {
        "frequency_penalty": 1.1,
        "presence_penalty": -0.4,
        "repetition_penalty": 1.3,
        "logit_bias": {EOS: -100.0, 30: 4.0},
    },
    "min_tokens": GREEDY | {"min_tokens": 1, "stop_token_ids": (40, 41)},
    "all but one forbidden": ONCE | {"temperature": 1.5, "allowed_token_ids": (300,)},
    "a grammar": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 3},
    "bad words": GREEDY | {"bad_words": ((EOS,), (23, 5))},
    "a spent reasoning budget": GREEDY | {"reasoning": ReasoningBudget(1, end_token=5)},
    "the prompt's logprobs": GREEDY | {"prompt_logprobs": 2},
    "no logit": GREEDY,
    "no logit that is allowed": GREEDY | {"allowed_token_ids": (50, 51)},
}
"""What is asked of each slot. The last ones' prompts end in BROKEN."""


def asked() -> tuple[NewSlot, ...]:
    slots = []
    for slot, (name, fields) in enumerate(ASKED.items()):
        prompt = [*PROMPT[:-1], BROKEN if "no logit" in name else PROMPT[-1] + slot]
        slots.append(
            NewSlot(
                slot=slot,
                request_id=name,
                choice=int(name == "its second choice"),
                token_ids=prompt,
                prompt_tokens=len(prompt),
                sampling=Sampling(**{"max_tokens": 9} | fields),
                pages=[slot],
            )
        )
    return tuple(slots)


def run(runner: Runner, folder: Path) -> list[StepResult]:
    """A step of prefill, and one of decode for what goes on."""
    write_tokenizer(folder)
    compiled = GrammarCompiler(folder, VOCABULARY, (EOS,)).compile(Grammar("start: /[abc]{5}/"))
    runner.grammars.add("a grammar", compiled, 1)
    new = asked()
    rows = tuple(
        Row(
            slot=slot.slot,
            start=0,
            count=len(PROMPT),
            sample="every" if slot.sampling.prompt_logprobs is not None else "last",
            form="mha",
        )
        for slot in new
    )
    first = runner.execute(StepPlan(step=0, rows=rows, prepare=Prepare(new_slots=new)))
    rows = tuple(
        Row(slot=slot.slot, start=len(PROMPT), count=1, sample="last", form="dense_mqa")
        for slot, token in zip(new, first.token_ids, strict=True)
        if token != NO_TOKEN and slot.sampling.max_tokens > 1
    )
    return [first, runner.execute(StepPlan(step=1, rows=rows, prepare=Prepare()))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[StepResult]:
    plain = Runner(Table(), empty_cache(1, 16), eos_token_ids=(EOS,))
    return run(plain, tmp_path_factory.mktemp("tokenizer"))


def by_value(result: StepResult) -> StepResult:
    return msgspec.structs.replace(result, seconds=0.0)


def test_the_requests_show_what_they_ask_for(expected: list[StepResult]) -> None:
    first = dict(zip(ASKED, expected[0].token_ids, strict=True))
    names = [n for n, how in ASKED.items() if how.get("max_tokens") != 1 and first[n] != NO_TOKEN]
    second = dict(zip(names, expected[1].token_ids, strict=True))
    assert first["greedy"] == EOS != first["min_tokens"] and second["min_tokens"] == EOS
    assert first["drawn"] != first["its second choice"]
    assert first["all but one forbidden"] == 300
    assert second["a spent reasoning budget"] == 5
    assert first["no logit"] == 0 and first["no logit that is allowed"] == NO_TOKEN
    assert [line is not None for line in expected[0].logprobs[:3]] == [True, True, False]
    (scores,) = expected[0].prompt_logprobs.values()
    assert len(scores) == len(PROMPT) - 1


def test_both_runners_give_the_same_results(expected: list[StepResult], tmp_path: Path) -> None:
    """Of kernel by kernel launches and of a graph's, whose rows are filled up."""
    runner = hopper_runner()
    staged = runner._staging.integers, runner.page_table.table
    runner.graphs = graphs = Uncaptured(runner.model, runner.cache, *staged, [BUCKET])
    found = run(runner, tmp_path)
    assert graphs.replays == 1
    assert [by_value(result) for result in found] == [by_value(result) for result in expected]


def test_every_step_takes_the_kernel_that_was_compiled_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton compiles anew for pointers that do not begin at 16 bytes' steps, and other strides."""
    seen = []

    def recorded(logits: Tensor, *columns: Tensor) -> Tensor:
        starts = [tensor.data_ptr() % 16 for tensor in (logits, *columns)]
        seen.append((starts, [column.dtype for column in columns], logits.shape[1]))
        assert logits.stride() == (VOCABULARY, 1)
        return sample(logits, *columns)

    monkeypatch.setattr(hopper_sampler, "sample", recorded)
    compile_draws(VOCABULARY, CPU)
    runner = hopper_runner()
    new = tuple(
        msgspec.structs.replace(slot, sampling=Sampling(max_tokens=9, temperature=0.0))
        for slot in asked()[:7]
    )
    runner.execute(StepPlan(step=0, rows=(), prepare=Prepare(new_slots=new)))
    for count in (1, 2, 3, 7):
        rows = [
            Row(slot=slot, start=0, count=slot + 1, sample="last", form="mha")
            for slot in range(min(count, 4))
        ]
        rows += [
            Row(slot=slot, start=3, count=1, sample="last", form="dense_mqa")
            for slot in range(4, count)
        ]
        runner.execute(StepPlan(step=count, rows=tuple(rows), prepare=Prepare()))
    assert len(seen) == 5
    assert all(found == seen[0] for found in seen)
    assert seen[0][0] == [0] * 8


def test_draws_of_rows_whose_settings_did_not_arrive_are_refused() -> None:
    state = SamplerState.start(Sampling(max_tokens=1), 0, PROMPT, len(PROMPT), ())
    with pytest.raises(ValueError, match="settings of 0 rows arrived; 1 rows are drawn"):
        StagedDraws()(torch.zeros(1, VOCABULARY), [state], [0])


def test_start_up_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the first request does not wait for a compiler."""
    drawn: list[tuple[int, torch.device]] = []
    monkeypatch.setattr(rehearsal, "compile_draws", lambda *how: drawn.append(how))
    forms = FormPolicy("auto", 2048, 6963)
    sizes = {"step_tokens": 1, "longest": 1}  # no chunk is as short
    rehearsal.compile_kernels(Table(), empty_cache(1, 1), forms, **sizes, progress=False)
    assert drawn == [(VOCABULARY, CPU)]
