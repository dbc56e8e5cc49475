"""The exported checkpoint: names, dtypes, and the same model when it is read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.llm import LLM
from engine.messages import Sampling
from tests.checkpoints import is_fp8_linear, tensor_shapes
from training.config import ModelConfig
from training.export import export, read_checkpoint
from training.model import Context, DeepseekV32
from training.stages import EMBEDDED, RECIPE

CONFIG = ModelConfig(
    vocab_size=RECIPE.model.vocab_size,
    hidden_size=128,
    num_hidden_layers=2,
    intermediate_size=128,
    moe_intermediate_size=128,
    n_routed_experts=8,
    num_attention_heads=4,
    index_topk=16,
)


@pytest.fixture(scope="module")
def trained() -> DeepseekV32:
    torch.manual_seed(0)
    model = DeepseekV32(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for router in model.routers():
            router.e_score_correction_bias.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def folder(trained: DeepseekV32, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / file, folder / file)
    export(trained, folder)
    return folder


def test_tensors_are_those_of_the_published_layout(folder: Path) -> None:
    shapes = tensor_shapes(json.loads((folder / "config.json").read_text()))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    stored = {
        name: tensor
        for file in set(index["weight_map"].values())
        for name, tensor in load_file(folder / file).items()
    }
    assert len(set(index["weight_map"].values())) == 2
    assert stored.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in stored.values())
    assert {name for name in stored if not name.endswith("_scale_inv")} == shapes.keys()
    for name, shape in shapes.items():
        assert stored[name].shape == shape, name
        if is_fp8_linear(name):
            assert stored[name].dtype == torch.float8_e4m3fn, name
            assert stored[f"{name}_scale_inv"].dtype == torch.float32
        else:
            small = "norm" in name or name.endswith("e_score_correction_bias")
            assert stored[name].dtype == (torch.float32 if small else torch.bfloat16), name


def test_reading_back_gives_the_quantised_model(folder: Path, trained: DeepseekV32) -> None:
    ids = torch.randint(0, 2000, (1, 30), generator=torch.Generator().manual_seed(1))
    context = Context(CONFIG, "sparse", True, torch.float32)
    inputs = (ids, torch.arange(30)[None], torch.zeros_like(ids))
    reread = read_checkpoint(folder)
    trained.quantise(True)
    with torch.no_grad():
        for module in (trained.model.embed_tokens, trained.lm_head):
            module.weight.copy_(module.weight.bfloat16().float())
        for name, parameter in trained.named_parameters():
            if name.endswith(("mlp.gate.weight", "weights_proj.weight", "eh_proj.weight")):
                parameter.copy_(parameter.bfloat16().float())
        expected, _ = trained(*inputs, context)
        found, _ = reread(*inputs, context)
    torch.testing.assert_close(found, expected)


def test_the_engine_serves_what_was_trained(folder: Path) -> None:
    model = read_checkpoint(folder)
    prompt = torch.randint(3, 2000, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    context = Context(CONFIG, "sparse", True, torch.float32)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(6):
            row = torch.tensor([ids])
            positions = torch.arange(len(ids))[None]
            hidden, _ = model(row, positions, torch.zeros_like(row), context)
            ids.append(int(model.logits(hidden[0, -1], torch.float32).argmax()))
    llm = LLM(str(folder), progress=False, dtype="float32")
    sampling = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
    (completion,) = llm.generate([prompt], sampling)
    assert completion.token_ids == ids[len(prompt) :]
