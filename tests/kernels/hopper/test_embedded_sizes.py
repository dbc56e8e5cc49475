"""The kernels compile for sm_90 at the embedded checkpoint's sizes too, without spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.hub import EMBEDDED_MODEL
from engine.model_config import ModelConfig
from kernels.hopper.report import op_names, specialisations
from tests.kernels.hopper import embedded_sizes as sizes

ROOT = Path(__file__).parents[3]


def test_the_sizes_are_the_embedded_checkpoints() -> None:
    model = ModelConfig.from_folder(EMBEDDED_MODEL)
    assert (model.hidden_size, model.q_lora_rank) == (sizes.HIDDEN, sizes.QUERY_RANK)
    assert (model.kv_lora_rank, model.qk_rope_head_dim) == (sizes.LATENT, sizes.ROPE)
    assert (model.qk_nope_head_dim, model.v_head_dim) == (sizes.NOPE, sizes.VALUE)
    assert (model.num_attention_heads, model.index_n_heads) == (sizes.HEADS, sizes.INDEX_HEADS)
    assert (model.index_head_dim, model.index_topk) == (sizes.INDEX_WIDTH, sizes.TOP_K)
    assert (model.n_routed_experts, model.n_group) == (sizes.EXPERTS, sizes.GROUPS)
    assert (model.topk_group, model.num_experts_per_tok) == (sizes.KEPT, sizes.ACTIVE)


def test_every_op_is_among_them_or_has_no_sizes_of_its_own() -> None:
    without = {"fixed_order_fp8_linear", "fp8_linear", "sampling", "selection_bitmask"}
    without |= {"topk_split", "sparse_mla_gluon"}  # Gluon: for the published sizes alone
    ops = {op for op, _ in sizes.CHANGES}
    for op, name in sizes.CHANGES:
        assert name in specialisations(op)
        assert set(sizes.CHANGES[op, name]) <= set(specialisations(op)[name].constants)
    assert set(op_names()) == ops | without


@pytest.mark.check
@pytest.mark.timeout(1200)
def test_they_compile() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.hopper.embedded_sizes"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    assert json.loads(done.stdout) == {}
