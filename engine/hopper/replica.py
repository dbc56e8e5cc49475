"""A replica's parts of the kernels: the model, the memory its pages may take, the runner."""

from __future__ import annotations

import time
from dataclasses import dataclass
from logging import getLogger

import torch
from torch import Tensor

from engine.cache import CacheLayout, PagedCache
from engine.config import ConfigError, EngineConfig
from engine.hopper import rehearsal
from engine.hopper.graphs import LOGIT_BYTES, Bucket, buckets
from engine.hopper.model import HopperDeepseekV32
from engine.hopper.runner import HopperRunner
from engine.model_config import ModelConfig
from scheduler.forms import FormPolicy

GIB = 2**30

logger = getLogger("winnow.engine")


@dataclass(frozen=True)
class StepMemory:
    """What steps take beside weights and pages, in bytes, seen in rehearsals."""

    workspace_bytes: int
    """The largest step, and beside it the sampling of most rows: logits and what adjusts them stay
    while the next step begins."""
    graphs_bytes: int
    """What the graphs keep for themselves: as much as their largest step, and their logits."""
    pages_bytes: int
    """What is left for pages."""


@dataclass(frozen=True)
class HopperParts:
    """The model, and how the rest of a replica is made for it."""

    config: EngineConfig
    network: HopperDeepseekV32
    forms: FormPolicy
    longest: int
    """Longest context in tokens that may come."""

    @classmethod
    def load(
        cls, config: EngineConfig, model: ModelConfig, weights: dict[str, Tensor], forms: FormPolicy
    ) -> HopperParts:
        """Packs the weights, which are taken out of the dict."""
        network = HopperDeepseekV32(
            model,
            weights,
            select=config.attention != "dense",
            batch_invariant=config.batch_invariant,
        )
        longest = config.max_model_len or model.max_position_embeddings
        return cls(config, network, forms, min(longest, model.max_position_embeddings))

    def memory(self, layout: CacheLayout) -> StepMemory:
        """Runs the largest steps on a cache of one page; returns what they took.

        Raises ConfigError when the device has no room for them, with the numbers.
        """
        device, config = self.network.device, self.config
        cache = self._cache(layout, 1)
        chunks = rehearsal.largest_chunks(
            self.forms,
            step_tokens=config.max_num_batched_tokens,
            longest=self.longest,
            score_bytes=config.indexer_workspace_bytes,
        )
        largest, vocab_size = self._buckets()[0], self.network.config.vocab_size
        try:
            prefill_bytes = rehearsal.peak_bytes(
                self.network, cache, [rehearsal.prefill_batch(c, device) for c in chunks]
            )
            decode_bytes = rehearsal.peak_bytes(
                self.network, cache, [rehearsal.full_decode_batch(largest, device)]
            )
            sampling_bytes = rehearsal.sampling_peak_bytes(config.max_num_seqs, vocab_size, device)
        except torch.cuda.OutOfMemoryError as error:
            free_bytes, total_bytes = torch.cuda.mem_get_info(device)
            raise ConfigError(
                f"a step does not fit: {torch.cuda.get_device_name(device)} has "
                f"{total_bytes / GIB:.1f} GiB, of which {free_bytes / GIB:.1f} are free beside the "
                f"weights; lower --max-num-batched-tokens ({config.max_num_batched_tokens}), "
                f"--max-num-seqs ({config.max_num_seqs}) or --indexer-workspace-bytes "
                f"({config.indexer_workspace_bytes})"
            ) from error
        del cache
        torch.cuda.empty_cache()
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        limit_bytes = int(total_bytes * config.gpu_memory_utilization)
        workspace_bytes = max(prefill_bytes, decode_bytes) + sampling_bytes
        logits_bytes = largest.rows * vocab_size * LOGIT_BYTES
        graphs_bytes = 0 if config.enforce_eager else decode_bytes + logits_bytes
        used_bytes = total_bytes - free_bytes + workspace_bytes + graphs_bytes
        if used_bytes >= limit_bytes:
            raise ConfigError(
                f"no memory is left for pages: weights and what else is on the device take "
                f"{(total_bytes - free_bytes) / GIB:.1f} GiB, steps "
                f"{workspace_bytes / GIB:.1f}, graphs {graphs_bytes / GIB:.1f}; "
                f"--gpu-memory-utilization {config.gpu_memory_utilization} of "
                f"{total_bytes / GIB:.1f} GiB is {limit_bytes / GIB:.1f}"
            )
        return StepMemory(workspace_bytes, graphs_bytes, limit_bytes - used_bytes)

    def runner(
        self,
        cache: PagedCache,
        *,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        progress: bool,
    ) -> HopperRunner:
        """Returns the runner, its kernels compiled and its graphs captured."""
        config, begin = self.config, time.perf_counter()
        runner = HopperRunner(
            self.network,
            cache,
            eos_token_ids=eos_token_ids,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
        )
        rehearsal.compile_kernels(
            self.network,
            cache,
            self.forms,
            step_tokens=config.max_num_batched_tokens,
            longest=max_model_len,
            progress=progress,
        )
        wanted = self._buckets(max_model_len)
        if config.enforce_eager:
            rehearsal.compile_decode(self.network, cache, wanted, progress=progress)
        else:
            runner.capture(wanted, progress=progress)
        logger.info(
            "kernels compiled and %d graphs captured in %.0f s",
            0 if config.enforce_eager else len(wanted),
            time.perf_counter() - begin,
        )
        return runner

    def _buckets(self, longest: int | None = None) -> list[Bucket]:
        return buckets(
            self.config.max_num_seqs,
            longest or self.longest,
            self.forms.top_k,
            dense=self.forms.attention == "dense",
            sparse=self.forms.attention == "sparse",
        )

    def _cache(self, layout: CacheLayout, pages: int) -> PagedCache:
        network = self.network
        return PagedCache(
            network.config, layout, pages, compute_dtype=torch.bfloat16, device=network.device
        )
