"""A model's shape from its config, and the configs that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cost_model.errors import CostError
from cost_model.shape import V31, V32, ModelShape, shape_named
from tests.checkpoints import tiny_config

EMBEDDED = Path(__file__).parents[2] / "engine/embedded/deepseek-v3.2-tiny"


def config(**changed: Any) -> dict[str, Any]:
    """DeepSeek-V3.2's `config.json`, as far as its shape goes, with some fields changed."""
    fields = msgspec.structs.asdict(V32) | {"model_type": "deepseek_v32", "rope_theta": 10000}
    del fields["name"]
    return fields | changed


def test_the_shape_of_a_config() -> None:
    assert ModelShape.from_config(config(), "v3.2") == V32
    assert ModelShape.from_config(config()).name == "deepseek_v32"


def test_a_v3_config_has_no_indexer_whatever_else_it_holds() -> None:
    """V3.1 by its own type; transformers writes the indexer's defaults into some V3 configs."""
    assert ModelShape.from_config(config(model_type="deepseek_v3"), "v3.1") == V31
    assert not V31.sparse and V32.sparse
    assert V31.moe_layers == V32.moe_layers == 58


def test_the_shape_of_the_embedded_checkpoint() -> None:
    for path in (EMBEDDED, EMBEDDED / "config.json"):
        shape = shape_named(str(path))
        assert shape.name == "deepseek-v3.2-tiny"
        fields = json.loads((EMBEDDED / "config.json").read_bytes())
        for name in set(ModelShape.__struct_fields__) - {"name"}:
            assert getattr(shape, name) == fields[name], name


def test_the_shape_of_the_tests_own_checkpoints() -> None:
    shape = ModelShape.from_config(tiny_config(num_hidden_layers=3))
    assert shape.num_hidden_layers == 3 and shape.sparse


def test_names() -> None:
    assert shape_named("v3.1") is V31 and shape_named("v3.2") is V32
    with pytest.raises(CostError, match=r"model is 'v4'; allowed: v3\.1, v3\.2, or a folder"):
        shape_named("v4")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; allowed: deepseek_v3, deepseek_v32"),
        ({"model_type": None}, "model_type is None"),
        ({"num_attention_heads": 0}, r"`int` >= 1 - at `\$.num_attention_heads`"),
        ({"hidden_size": -7168}, r"`int` >= 1 - at `\$.hidden_size`"),
        ({"kv_lora_rank": "wide"}, r"Expected `int`, got `str` - at `\$.kv_lora_rank`"),
        ({"q_lora_rank": None}, r"at `\$.q_lora_rank`"),
        ({"num_experts_per_tok": 257}, "num_experts_per_tok is 257; allowed: 1 to .* = 256"),
        ({"first_k_dense_replace": 62}, "first_k_dense_replace is 62; allowed: 0 to .* = 61"),
        ({"index_n_heads": 0}, "index_n_heads, index_head_dim, index_topk are"),
    ],
)
def test_absurd_configs_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        ModelShape.from_config(config(**changed))


@pytest.mark.parametrize("field", ["hidden_size", "kv_lora_rank", "n_routed_experts", "index_topk"])
def test_a_missing_field_is_named(field: str) -> None:
    fields = config()
    del fields[field]
    with pytest.raises(CostError, match=field):
        ModelShape.from_config(fields)


def test_a_config_without_a_type_is_refused() -> None:
    with pytest.raises(CostError, match="model_type is None"):
        ModelShape.from_config({})


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CostError, match=r"config\.json: No such file"):
        shape_named(str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(CostError, match=r"config\.json: not JSON"):
        shape_named(str(tmp_path))
    file.write_text("[1]")
    with pytest.raises(CostError, match=r"config\.json: a JSON object was expected"):
        shape_named(str(file))
