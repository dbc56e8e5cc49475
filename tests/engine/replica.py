"""A replica of a tiny random model in this process, driven step by step."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from engine.cache import CacheLayout, PagedCache
from engine.config import PAGE_TOKENS
from engine.model import DeepseekV32
from engine.model_config import ModelConfig
from engine.runner import Runner
from kernels.cache import CacheDtype
from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy
from scheduler.outcome import Choice
from scheduler.plan import StepPlan
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from tests.checkpoints import random_weights, tiny_config

FIELDS = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=2, kv_lora_rank=128)
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)

Name = tuple[str, int]
"""Request id and choice."""


@functools.cache
def weights() -> dict[str, Tensor]:
    return random_weights(FIELDS, seed=3)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(7, 320, (length,), generator=generator).tolist()
    return tokens


class TinyReplica:
    """Scheduler, runner and cache; keeps every token, logprob and row of logits."""

    def __init__(
        self,
        attention: Any = "auto",
        *,
        latent: CacheDtype = "float32",
        index: CacheDtype = "float32",
        total_pages: int = 32,
        **limits: Any,
    ) -> None:
        model = ModelConfig.from_json(FIELDS)
        network = DeepseekV32(
            model, dict(weights()), index_fp8=index == "fp8", select=attention != "dense"
        )
        self.cache = PagedCache(
            model,
            CacheLayout(latent, index),
            total_pages,
            compute_dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.runner = Runner(network, self.cache, eos_token_ids=(1,))
        settings: dict[str, Any] = {
            "max_model_len": total_pages * PAGE_TOKENS,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 512,
            "max_queued_requests": 64,
            "indexer_workspace_bytes": 1 << 24,
            "forms": FormPolicy(attention, model.index_topk, break_even_tokens=100),
            "eos_token_ids": (1,),
        }
        self.scheduler = Scheduler(
            SchedulerConfig(total_pages=total_pages, page_tokens=PAGE_TOKENS, **settings | limits)
        )
        self.tokens: dict[Name, list[int]] = defaultdict(list)
        self.logits: dict[Name, list[Tensor]] = defaultdict(list)
        self.news: dict[Name, list[Choice]] = defaultdict(list)

    def submit(self, name: str, prompt: list[int], sampling: Sampling = GREEDY, **how: Any) -> int:
        cached = self.scheduler.submit(name, prompt, sampling, **how)
        assert isinstance(cached, int), cached
        return cached

    def step(self) -> StepPlan:
        plan = self.scheduler.plan()
        names = {s.slot: (s.request_id, s.choice) for s in self.scheduler.running}
        result = self.runner.execute(plan)
        sampled = [
            names[row.slot]
            for row, token in zip(plan.rows, result.token_ids, strict=True)
            if row.sample == "last" or (row.sample == "every" and token >= 0)
        ]
        if sampled:
            assert self.runner.logits is not None
            for name, line in zip(sampled, self.runner.logits, strict=True):
                self.logits[name].append(line.clone())
        for news in self.scheduler.commit(result):
            name = (news.request_id, news.choice)
            self.tokens[name] += news.token_ids
            self.news[name].append(news)
        return plan

    def finish(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def run(self, name: str, prompt: list[int], sampling: Sampling = GREEDY) -> Tensor:
        """Runs one request to its end; returns its logits, one row per generated token."""
        self.submit(name, prompt, sampling)
        self.finish()
        return torch.stack(self.logits[name, 0])
