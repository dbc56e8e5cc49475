"""From settings to a runner and its scheduler: the one place where a replica is put together."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.cache import CacheLayout, PagedCache
from engine.checkpoint import load_weights
from engine.config import PAGE_TOKENS, ConfigError, EngineConfig
from engine.hopper.support import obstacle
from engine.hub import resolve_model
from engine.messages import Ready
from engine.model import DeepseekV32, Network
from engine.model_config import GenerationDefaults, ModelConfig, field_error
from engine.runner import Runner
from engine.step_time import machine_of, step_predictor
from engine.tensors import held_bytes
from kernels.attention import WORKSPACE_BYTES
from kernels.cache import CacheDtype
from kernels.topk import PEAK_BYTES_PER_SCORE
from scheduler.config import SchedulerConfig
from scheduler.forms import FormPolicy, break_even_tokens
from scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from engine.hopper.replica import HopperParts

IDLE_FACTOR = 4
"""Pages beyond this multiple of what running sequences can hold are not worth their memory."""
CPU_CACHE_LIMIT_BYTES = 4 * 2**30
MEMINFO = Path("/proc/meminfo")

logger = logging.getLogger("winnow.engine")


@dataclass(frozen=True)
class Replica:
    """A loaded model with everything it needs to run plans."""

    folder: Path
    model: ModelConfig
    defaults: GenerationDefaults
    runner: Runner
    scheduler: Scheduler
    ready: Ready


def load_replica(config: EngineConfig, *, progress: bool = True) -> Replica:
    """Returns the replica `config` describes, its weights read and its pages allocated.

    Raises CheckpointError or ConfigError naming the file, field or flag at fault.
    """
    folder = resolve_model(config.model, config.revision)
    model = ModelConfig.from_folder(folder)
    defaults = GenerationDefaults.from_folder(folder)
    for token_id in defaults.eos_token_ids:
        if token_id >= model.vocab_size:
            raise field_error(
                folder, "eos_token_id", token_id, f"0 to {model.vocab_size - 1}, the vocabulary"
            )
    device = _device(config)
    if device.type == "cpu" and (threads := config.threads or cores()):
        torch.set_num_threads(threads)
    dtype = _dtype(config, device)
    layout = _layout(config, device, dtype, model)
    reason = obstacle(model, layout, dtype, device)
    if config.batch_invariant and device.type == "cuda" and reason is not None:
        raise ConfigError(
            "--batch-invariant on CUDA takes the kernels for Hopper, which cannot run this: "
            f"{reason}"
        )
    if device.type == "cuda":
        _check_fits(config, model, dtype, device, keep_fp8=reason is None)
        if reason is not None:
            logger.warning("no kernels for Hopper, PyTorch's operators instead: %s", reason)
    weights = load_weights(
        folder, model, dtype=dtype, device=device, keep_fp8=reason is None, progress=progress
    )
    # Several names may share one storage; count each once.
    storages = {
        w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights.values()
    }
    weights_bytes = sum(storages.values())
    forms, page_bytes = _forms(config, model, device), layout.page_bytes(model)
    kernels: HopperParts | None = None
    network: Network
    if reason is None:
        from engine.hopper.replica import HopperParts  # needs triton

        kernels = HopperParts.load(config, model, weights, forms)
        network, step_memory = kernels.network, kernels.memory(layout)
        workspaces = {"steps": step_memory.workspace_bytes, "graphs": step_memory.graphs_bytes}
        memory_bytes = config.kv_cache_bytes or step_memory.pages_bytes
    else:
        network = DeepseekV32(
            model,
            weights,
            index_fp8=layout.index == "fp8",
            select=config.attention != "dense",
            batch_invariant=config.batch_invariant,
        )
        workspaces = {
            "indexer_workspace": _selection_bytes(config),
            "attention_workspace": 2 * WORKSPACE_BYTES,
        }
        memory_bytes = _cache_bytes(config, device)
    pages, max_model_len = _size(config, model, page_bytes, memory_bytes)
    cache = PagedCache(model, layout, pages, compute_dtype=dtype, device=device)
    scheduler = Scheduler(
        SchedulerConfig(
            total_pages=pages,
            page_tokens=PAGE_TOKENS,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_queued_requests=config.max_queued_requests,
            indexer_workspace_bytes=config.indexer_workspace_bytes,
            forms=forms,
            eos_token_ids=defaults.eos_token_ids,
            prefix_caching=config.enable_prefix_caching,
            boot_secret=secrets.token_bytes(32),
            inter_token_target_s=config.inter_token_target_s or None,
            prefill_floor_tokens=config.prefill_floor_tokens,
            awaited_s=config.awaited_s,
            awaited_share=config.awaited_share,
            cost_doubling_tokens=config.cost_doubling_tokens,
            max_pre_warms=config.max_pre_warms,
        ),
        step_predictor(model, layout, dtype, device, dense=config.attention == "dense"),
    )
    latent_bytes = cache.latents.rows.numel() * cache.latents.rows.element_size()
    ready = Ready(
        model_type="deepseek_v32",
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        page_tokens=PAGE_TOKENS,
        total_pages=pages,
        memory={
            "weights": weights_bytes,
            "latent_pages": latent_bytes,
            "index_key_pages": pages * page_bytes - latent_bytes,
            **workspaces,
        },
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens,
        pre_warms=config.enable_prefix_caching and config.max_pre_warms > 0,
        machine=machine_of(device).name,
    )
    eos = defaults.eos_token_ids
    if kernels is None:
        runner = Runner(network, cache, eos_token_ids=eos)
    else:
        runner = kernels.runner(
            cache, max_model_len=max_model_len, eos_token_ids=eos, progress=progress
        )
    return Replica(folder, model, defaults, runner, scheduler, ready)


def _check_fits(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_fp8: bool,
) -> None:
    """Raises ConfigError, before a weight is read, when the device cannot hold them all."""
    weights_bytes = held_bytes(model, compute_bytes=dtype.itemsize, keep_fp8=keep_fp8)
    total_bytes = torch.cuda.mem_get_info(device)[1]
    limit_bytes = round(total_bytes * config.gpu_memory_utilization)
    if weights_bytes > limit_bytes:
        gib = 2**30
        raise ConfigError(
            f"the weights take {weights_bytes / gib:.1f} GiB; {torch.cuda.get_device_name(device)} "
            f"has {total_bytes / gib:.1f} GiB, of which --gpu-memory-utilization "
            f"{config.gpu_memory_utilization} allows {limit_bytes / gib:.1f}"
        )


def cores() -> int | None:
    """Cores this process may use, which containers limit; None where the environment says how many
    threads there shall be, as torch reads it."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _device(config: EngineConfig) -> torch.device:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("--device is cuda, but torch finds no CUDA device")
    name = config.device
    if name == "auto":
        name = "cuda" if available else "cpu"
    return torch.device(name)


CPU_BREAK_EVEN = 5
"""Times further than multiply-adds alone say, a CPU expands: a few large products take less time
than as many multiply-adds in small ones over gathered rows, and causality spares half of them.
`winnow bench forms` measures both forms over the prompt's length."""


def _forms(config: EngineConfig, model: ModelConfig, device: torch.device) -> FormPolicy:
    """How rows compute attention; batch-invariant: all in one form, whatever their length."""
    if config.batch_invariant:
        return FormPolicy("sparse", model.index_topk, break_even_tokens=0)
    break_even = break_even_tokens(
        top_k=model.index_topk,
        kv_lora_rank=model.kv_lora_rank,
        qk_rope=model.qk_rope_head_dim,
        qk_nope=model.qk_nope_head_dim,
        v_head=model.v_head_dim,
    )
    if device.type == "cpu":
        break_even *= CPU_BREAK_EVEN
    return FormPolicy(config.attention, model.index_topk, break_even)


def _dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def _layout(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, model: ModelConfig
) -> CacheLayout:
    compute: CacheDtype = "bfloat16" if dtype == torch.bfloat16 else "float32"
    default: CacheDtype = compute if device.type == "cpu" else "fp8"
    latent = default if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    index = default if config.index_dtype == "auto" else config.index_dtype
    if latent == "fp8" and model.kv_lora_rank % 128:
        raise ConfigError(
            f"--kv-cache-dtype is fp8, but the model's kv_lora_rank is {model.kv_lora_rank}; "
            "fp8 latents need a multiple of 128"
        )
    return CacheLayout(latent, index)


def _selection_bytes(config: EngineConfig) -> int:
    """Peak memory of scoring and selecting, whose score matrix the scheduler bounds."""
    return config.indexer_workspace_bytes // 4 * PEAK_BYTES_PER_SCORE


def _cache_bytes(config: EngineConfig, device: torch.device) -> int:
    """Returns the memory for pages; on CUDA after the weights were loaded."""
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        reserved_bytes = round(total_bytes * (1 - config.gpu_memory_utilization))
        workspace_bytes = _selection_bytes(config) + 2 * WORKSPACE_BYTES
        return max(0, free_bytes - reserved_bytes - workspace_bytes)
    return min(_available_bytes() // 4, CPU_CACHE_LIMIT_BYTES)


def _available_bytes() -> int:
    """Returns the host memory to be had without swapping.

    On Linux that includes the page cache, which reading a checkpoint has just filled; elsewhere
    half of all memory is assumed.
    """
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _size(
    config: EngineConfig, model: ModelConfig, page_bytes: int, memory_bytes: int
) -> tuple[int, int]:
    """Returns (pages, max_model_len): as many pages as the memory holds and the limits can use."""
    longest = config.max_model_len or model.max_position_embeddings
    if longest > model.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len is {longest}; the model's max_position_embeddings allows at most "
            f"{model.max_position_embeddings}"
        )
    useful = IDLE_FACTOR * config.max_num_seqs * -(-longest // PAGE_TOKENS)
    pages = min(memory_bytes // page_bytes, useful)
    if pages < 1:
        raise ConfigError(f"--kv-cache-bytes is {memory_bytes}; one page needs {page_bytes} bytes")
    if config.max_model_len is not None and pages * PAGE_TOKENS < longest:
        raise ConfigError(
            f"--max-model-len is {longest}, but {memory_bytes} bytes of cache hold only "
            f"{pages * PAGE_TOKENS} tokens; lower it or raise --kv-cache-bytes"
        )
    return pages, min(longest, pages * PAGE_TOKENS)
