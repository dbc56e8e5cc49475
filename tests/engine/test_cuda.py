"""The same model on the CPU and on a CUDA device: `make gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.llm import LLM
from engine.messages import Sampling
from tests.checkpoints import random_weights, tiny_config, write_checkpoint
from tests.engine.replica import prompt_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
PROMPTS = [prompt_of(length, seed=length) for length in (5, 64, 150, 333)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    fields = tiny_config(kv_lora_rank=128)
    write_checkpoint(folder, fields, random_weights(fields))
    return folder


def first_logits(checkpoint: Path, device: str, **settings: Any) -> torch.Tensor:
    llm = LLM(str(checkpoint), progress=False, device=device, kv_cache_bytes=2**26, **settings)
    rows = []
    for prompt in PROMPTS:
        llm.generate([prompt], Sampling(max_tokens=1, temperature=0.0))
        logits = llm.replica.runner.logits
        assert logits is not None
        rows.append(logits[-1].cpu())
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["auto", "sparse", "dense"])
def test_logits_in_float32_are_the_cpus(checkpoint: Path, attention: str) -> None:
    settings = {
        "attention": attention,
        "dtype": "float32",
        "kv_cache_dtype": "float32",
        "index_dtype": "float32",
    }
    cpu = first_logits(checkpoint, "cpu", **settings)
    cuda = first_logits(checkpoint, "cuda", **settings)
    torch.testing.assert_close(cuda, cpu, atol=1e-3, rtol=1e-3)


def test_fp8_caches_round_alike_on_both(checkpoint: Path) -> None:
    settings = {"attention": "dense", "dtype": "float32", "kv_cache_dtype": "fp8"}
    cpu = first_logits(checkpoint, "cpu", **settings)
    cuda = first_logits(checkpoint, "cuda", **settings)
    torch.testing.assert_close(cuda, cpu, atol=0.05, rtol=0.05)


def test_the_defaults_of_cuda_answer(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), progress=False, device="cuda", kv_cache_bytes=2**26)
    completions = llm.generate(PROMPTS, Sampling(max_tokens=20, ignore_eos=True))
    assert [len(c.token_ids) for c in completions] == [20] * len(PROMPTS)
    assert llm.replica.ready.dtype == "bfloat16"
