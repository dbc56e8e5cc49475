"""Snapshots of a run in safetensors: weights, optimiser state and position, never pickled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.model import DeepseekV32

Optimisers = dict[str, torch.optim.Optimizer]


def save_snapshot(
    path: Path, model: DeepseekV32, optimisers: Optimisers, stage: str, step: int
) -> None:
    """Writes `path` in one piece: a crash leaves the previous snapshot whole."""
    tensors = {f"model.{name}": value.detach() for name, value in model.state_dict().items()}
    names: dict[Tensor, str] = {one: name for name, one in model.named_parameters()}
    for kind, optimiser in optimisers.items():
        for parameter, state in optimiser.state.items():
            for key, value in state.items():
                tensors[f"{kind}.{key}.{names[parameter]}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, partial, metadata={"position": json.dumps({"stage": stage, "step": step})})
    os.replace(partial, path)


def read_position(path: Path) -> tuple[str, int]:
    """(stage name, steps done in it) of a snapshot."""
    with safe_open(path, framework="pt") as file:
        position = json.loads(file.metadata()["position"])
    return position["stage"], position["step"]


def load_model(path: Path, model: DeepseekV32) -> None:
    """Overwrites the weights and buffers of `model`; raises on a missing or misshapen tensor."""
    with safe_open(path, framework="pt") as file:
        state = {
            name.removeprefix("model."): file.get_tensor(name)
            for name in file.keys()
            if name.startswith("model.")
        }
    model.load_state_dict(state)


def load_optimisers(path: Path, model: DeepseekV32, optimisers: Optimisers) -> None:
    """Overwrites the optimisers' state with that of the snapshot."""
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        for entry in file.keys():
            kind, key, name = entry.split(".", 2)
            if kind in optimisers:
                state: dict[str, Tensor] = optimisers[kind].state[parameters[name]]
                state[key] = file.get_tensor(entry)
