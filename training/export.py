"""Writes a trained model as a checkpoint folder: `python -m training.export SNAPSHOT FOLDER`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import ModelConfig
from training.model import DeepseekV32, stored_in_fp8
from training.quantisation import dequantise_blocks, quantise_blocks
from training.snapshot import load_model
from training.stages import EMBEDDED, RECIPE

GENERATION_CONFIG = {
    "_from_model_config": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
}
FLOAT32_SUFFIXES = ("norm.weight", "norm.bias", "e_score_correction_bias")


def checkpoint_tensors(model: DeepseekV32) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its Hugging Face name, in the dtype it is stored in.

    FP8 e4m3 with fp32 `weight_scale_inv` for the linears that DeepSeek-V3.2 stores so, fp32 for
    norms and the routing bias, bf16 for the rest. The MTP layer gets its own copies of embedding
    and head.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in split_experts(model.state_dict(), model.config).items():
        if name.endswith(FLOAT32_SUFFIXES):
            tensors[name] = value.float()
        elif name.endswith("embed_tokens.weight") or not stored_in_fp8(
            name.removesuffix(".weight")
        ):
            tensors[name] = value.bfloat16()
        else:
            quantised, scale = quantise_blocks(value)
            tensors[name], tensors[f"{name}_scale_inv"] = quantised, scale
    for index in range(model.config.num_nextn_predict_layers):
        layer = f"model.layers.{model.config.num_hidden_layers + index}"
        tensors[f"{layer}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{layer}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def split_experts(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state with the stacked experts as one gate, up and down matrix for each expert."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        prefix, found, projection = name.partition(".experts.")
        if not found:
            split[name] = value
            continue
        for expert in range(config.n_routed_experts):
            head = f"{prefix}.experts.{expert}"
            if projection == "gate_up_proj":
                gate, up = value[expert].chunk(2)
                split[f"{head}.gate_proj.weight"], split[f"{head}.up_proj.weight"] = gate, up
            else:
                split[f"{head}.down_proj.weight"] = value[expert]
    return split


def read_checkpoint(folder: Path) -> DeepseekV32:
    """The model in a checkpoint folder, FP8 weights dequantised, for training or comparison."""
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        stored |= load_file(file)
    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        scale = stored.get(f"{name}_scale_inv")
        if not name.endswith("_scale_inv"):
            weights[name] = value.float() if scale is None else dequantise_blocks(value, scale)
    model = DeepseekV32(config)
    model.load_state_dict(stack_experts(weights, config))
    return model


def stack_experts(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Checkpoint weights as the model's state: experts stacked, the MTP layer's copies dropped."""
    state: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name in sorted(weights, key=_by_expert):
        prefix, found, rest = name.partition(".experts.")
        if found:
            projection = rest.split(".")[1]
            experts.setdefault(f"{prefix}.experts.{projection}", []).append(weights[name])
        elif not name.startswith("model.layers.") or not name.endswith(
            ("embed_tokens.weight", "shared_head.head.weight")
        ):
            state[name] = weights[name]
    for name, matrices in experts.items():
        prefix, projection = name.rsplit(".", 1)
        if projection == "gate_proj":
            joined = (torch.stack(matrices), torch.stack(experts[f"{prefix}.up_proj"]))
            state[f"{prefix}.gate_up_proj"] = torch.cat(joined, 1)
        elif projection == "down_proj":
            state[name] = torch.stack(matrices)
    return state


def _by_expert(name: str) -> tuple[str, int]:
    prefix, found, rest = name.partition(".experts.")
    return (prefix, int(rest.split(".")[0])) if found else (name, 0)


def write_shards(tensors: dict[str, Tensor], folder: Path, shards: int = 2) -> int:
    """Writes the tensors into files of similar size with an index; returns their bytes."""
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    seen_bytes = 0
    for name in sorted(tensors):
        parts[min(seen_bytes * shards // total_bytes, shards - 1)][name] = tensors[name]
        seen_bytes += tensors[name].nbytes
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return total_bytes


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes indented JSON with a final line feed."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: DeepseekV32, folder: Path) -> int:
    """Writes weights, config.json and generation_config.json to `folder`; returns weight bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.config.to_hf())
    write_json(folder / "generation_config.json", GENERATION_CONFIG)
    return write_shards(checkpoint_tensors(model), folder)


def main() -> None:
    """Command line of `python -m training.export`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot", type=Path, help="a snapshot that training.train wrote")
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=EMBEDDED,
        help="checkpoint folder to write (default: the embedded checkpoint)",
    )
    arguments = parser.parse_args()
    model = DeepseekV32(RECIPE.model)
    load_model(arguments.snapshot, model)
    folder: Path = arguments.folder
    if folder.resolve() != EMBEDDED.resolve():
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EMBEDDED / file, folder / file)
        shutil.copytree(EMBEDDED / "encoding", folder / "encoding", dirs_exist_ok=True)
    print(f"{folder}: {export(model, folder) / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
