"""What a replica's steps take, before the first one ran: the predictor the scheduler plans with."""

from __future__ import annotations

import msgspec
import torch

from cost_model.coefficients import step_coefficients
from cost_model.machines import MACHINES, Machine
from cost_model.predictor import StepPredictor
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import ModelShape
from cost_model.work import CacheDtype as CostedDtype
from engine.cache import CacheLayout
from engine.model_config import ModelConfig

LAYER_OVERHEAD_S = 3e-4
"""Launching a layer's operators: a guess that the first steps correct."""

DEFAULT_MACHINE = "h800"
"""For devices without a data sheet; steps correct it too."""

_COSTED: dict[str, CostedDtype] = {"float32": "fp32", "bfloat16": "bf16", "fp8": "fp8"}


def step_predictor(
    model: ModelConfig,
    layout: CacheLayout,
    dtype: torch.dtype,
    device: torch.device,
    *,
    dense: bool,
) -> StepPredictor:
    """Returns the predictor of this model on this device, to be calibrated by the steps that run.

    dense: every token is attended to, whatever the indexer says.
    """
    fields = ModelShape.__struct_fields__
    shape = ModelShape(**{name: getattr(model, name) for name in fields if hasattr(model, name)})
    if dense:
        shape = msgspec.structs.replace(shape, index_n_heads=0, index_head_dim=0, index_topk=0)
    choices = RooflineChoices(
        weight_dtype=_COSTED[str(dtype).removeprefix("torch.")],
        latent_dtype=_COSTED[layout.latent],
        index_dtype=_COSTED[layout.index],
        tokens_per_read=1.0,
        expert_parallel_gpus=1,
    )
    coefficients = step_coefficients(Roofline(shape, machine_of(device), choices))
    overhead_s = LAYER_OVERHEAD_S * model.num_hidden_layers
    coefficients = msgspec.structs.replace(coefficients, step_s=coefficients.step_s + overhead_s)
    return StepPredictor(coefficients, shape.index_topk)


def machine_of(device: torch.device) -> Machine:
    """Returns the data sheet of a device; the one of DEFAULT_MACHINE when it has none."""
    if device.type == "cpu":
        return MACHINES["cpu"]
    words = torch.cuda.get_device_name(device).lower().split()
    known = (MACHINES[word] for word in words if word in MACHINES)
    return next(known, MACHINES[DEFAULT_MACHINE])
