"""The cost model's bytes against the sizes of tensors: stored, expected, and built."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from typing import Any

import pytest

from cost_model.shape import V31, V32, ModelShape
from cost_model.weights import (
    expert_bytes,
    layer_bytes,
    matrix_bytes,
    mtp_bytes,
    weight_bytes,
)
from cost_model.work import linear_parameters
from engine.checkpoint import read_headers, shard_files
from engine.model_config import ModelConfig
from engine.tensors import SCALE_SUFFIX, expected_tensors, scale_shape
from tests.checkpoints import is_fp8_linear, tensor_shapes
from tests.cost_model.counting import EMBEDDED, PUBLISHED, build, embedded_fields

LAYER_COMPONENTS = {
    r"self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)": "attention_projections",
    r"self_attn\.indexer\.(wq_b|wk|weights_proj)": "indexer_projections",
    r"mlp\.(gate|up|down)_proj": "dense_mlp",
    r"mlp\.gate": "router",
    r"mlp\.experts\.\d+\.(gate|up|down)_proj": "routed_experts",
    r"mlp\.shared_experts\.(gate|up|down)_proj": "shared_experts",
    r"eh_proj": "eh_proj",
    r"(embed_tokens|shared_head\.head)": "copies",
}
VECTORS = ("norm.weight", "norm.bias", "e_score_correction_bias")


def component(name: str, layers: int) -> str:
    """The component of a checkpoint's tensor: of a main layer, "mtp", "copies" or "vectors".

    vectors: norms and the router's bias, which the cost model leaves out. copies: the embedding and
    head that a checkpoint repeats in its MTP layers, and an engine shares.
    """
    own = name.removesuffix(SCALE_SUFFIX)
    if own.endswith(VECTORS):
        return "vectors"
    if not own.startswith("model.layers."):
        return {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}[own]
    layer, _, rest = own.removeprefix("model.layers.").partition(".")
    kind = in_layer(rest)
    return "mtp" if int(layer) >= layers and kind != "copies" else kind


@functools.cache
def in_layer(name: str) -> str:
    """The one component that a tensor's name within its layer stands for."""
    (kind,) = [
        kind
        for pattern, kind in LAYER_COMPONENTS.items()
        if re.fullmatch(rf"{pattern}\.weight", name)
    ]
    return kind


def by_component(sizes: dict[str, int], layers: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for name, size in sizes.items():
        total[component(name, layers)] += size
    return total


def expected(shape: ModelShape, dtype: Any = "fp8") -> dict[str, int]:
    return weight_bytes(shape, dtype) | {"mtp": mtp_bytes(shape, dtype)}


def fp8_sizes(shapes: dict[str, tuple[int, ...]], linears: set[str]) -> dict[str, int]:
    """Bytes of a checkpoint: FP8 linears with their scales, bfloat16 matrices, float32 vectors."""
    sizes = {}
    for name, shape in shapes.items():
        if name in linears:
            sizes[name] = math.prod(shape)
            sizes[name + SCALE_SUFFIX] = 4 * math.prod(scale_shape(shape))
        else:
            sizes[name] = math.prod(shape) * (2 if len(shape) == 2 else 4)
    return sizes


def test_the_embedded_checkpoints_headers() -> None:
    shape = ModelShape.from_folder(EMBEDDED)
    stored = read_headers(shard_files(EMBEDDED))
    sizes = {name: tensor.size_bytes for name, tensor in stored.items()}
    found = by_component(sizes, shape.num_hidden_layers)
    copies, vectors = found.pop("copies"), found.pop("vectors")
    assert found == expected(shape)
    assert copies == found["embedding"] + found["head"]
    assert vectors < 0.01 * found.total()
    one = [name for name in sizes if name.startswith("model.layers.2.mlp.experts.5.")]
    assert sum(sizes[name] for name in one) == expert_bytes(shape)
    for layer, absent in ((0, ("router", "routed_experts", "shared_experts")), (2, ("dense_mlp",))):
        prefix = f"model.layers.{layer}."
        inside = {name: size for name, size in sizes.items() if name.startswith(prefix)}
        found = by_component(inside, shape.num_hidden_layers)
        del found["vectors"]
        assert found == {n: size for n, size in layer_bytes(shape).items() if n not in absent}


def test_671b_by_the_tensors_the_engine_expects() -> None:
    table = expected_tensors(ModelConfig.from_json(PUBLISHED))
    linears = {name for name, spec in table.items() if spec.role == "linear"}
    sizes = fp8_sizes({name: spec.shape for name, spec in table.items()}, linears)
    found = by_component(sizes, V32.num_hidden_layers)
    copies, vectors = found.pop("copies"), found.pop("vectors")
    assert found == expected(V32)
    # All the bytes that the headers of the 163 published files add up to.
    assert found.total() + copies + vectors == 689_471_107_200
    assert vectors == 4_301_824
    one_layer = [
        math.prod(spec.shape) * 4
        for name, spec in table.items()
        if name.startswith("model.layers.7.") and len(spec.shape) == 1
    ]
    assert sum(one_layer) == pytest.approx(68e3, rel=0.01)


@pytest.mark.parametrize("fields", [embedded_fields(), PUBLISHED], ids=["tiny", "671b"])
def test_the_published_layout_by_a_table_that_is_not_the_engines(fields: dict[str, Any]) -> None:
    shape = ModelShape.from_config(fields)
    shapes = tensor_shapes(fields)
    sizes = fp8_sizes(shapes, {name for name in shapes if is_fp8_linear(name)})
    found = by_component(sizes, shape.num_hidden_layers)
    del found["copies"], found["vectors"]
    assert found == expected(shape)


@pytest.mark.parametrize("fields", [embedded_fields(), PUBLISHED], ids=["tiny", "671b"])
def test_the_parameters_of_a_model_that_is_not_ours(fields: dict[str, Any]) -> None:
    """transformers builds no MTP layer, and stacks the matrices of a layer's experts."""
    shape = ModelShape.from_config(fields)
    found: Counter[str] = Counter()
    for name, parameter in build(fields, "meta").named_parameters():
        plain = re.sub(r"(experts)\.(gate_up|down)_proj$", r"\1.0.down_proj.weight", name)
        found[component(plain, shape.num_hidden_layers)] += parameter.numel()
    vectors = found.pop("vectors")
    assert found == {name: size // 4 for name, size in weight_bytes(shape, "fp32").items()}
    active = linear_parameters(shape)
    active["routed_experts"] *= shape.n_routed_experts // shape.num_experts_per_tok
    assert found == active | {"embedding": active["head"]}
    if shape.hidden_size == V32.hidden_size:
        assert round((found.total() + vectors) / 1e9, 1) == 671.9


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_unquantised_weights_have_no_scales(dtype: Any) -> None:
    width = {"bf16": 2, "fp32": 4}[dtype]
    for shape in (V31, V32):
        parameters = linear_parameters(shape)
        sizes = weight_bytes(shape, dtype)
        assert sizes.pop("embedding") == sizes["head"]
        parameters["routed_experts"] *= shape.n_routed_experts // shape.num_experts_per_tok
        assert sizes == {name: width * count for name, count in parameters.items()}


@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [(128, 128, 1), (576, 7168, 5 * 56), (1, 1, 1), (129, 128, 2), (127, 257, 3)],
)
def test_started_blocks_have_a_scale(rows: int, columns: int, blocks: int) -> None:
    assert matrix_bytes(rows, columns, "fp8") == rows * columns + 4 * blocks
    assert matrix_bytes(rows, columns, "bf16") == 2 * rows * columns
