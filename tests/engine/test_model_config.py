"""engine.model_config: what config.json and generation_config.json say, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model_config import CheckpointError, GenerationDefaults, ModelConfig
from tests.checkpoints import tiny_config

PUBLISHED_ROPE = {
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def published_config(**overrides: Any) -> ModelConfig:
    """The widths of DeepSeek-V3.2 that rotary positions and the softmax scale depend on."""
    widths = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "index_head_dim": 128}
    rope = {"rope_scaling": {"type": "yarn", **PUBLISHED_ROPE}}
    return ModelConfig.from_json(tiny_config(**{**widths, **rope, **overrides}))


def test_softmax_scale_of_the_published_model() -> None:
    assert published_config().softmax_scale == pytest.approx(0.1352337789, abs=1e-10)


def test_without_yarn_the_softmax_scale_is_the_plain_one() -> None:
    assert published_config(rope_scaling=None).softmax_scale == pytest.approx(192**-0.5)


def test_inv_freq_of_the_published_model() -> None:
    table = published_config().inv_freq()
    expected = {
        0: 1.0,
        1: 0.74989421,
        10: 0.05623413,
        11: 0.03900693,
        12: 0.02687936,
        16: 0.0055,
        20: 0.00079057,
        22: 0.00017783,
        23: 3.334e-05,
        31: 3.33e-06,
    }
    assert len(table) == 32
    for pair, value in expected.items():
        assert table[pair] == pytest.approx(value, abs=1e-8)


def test_inv_freq_agrees_with_transformers() -> None:
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32RotaryEmbedding

    for fields in (tiny_config(), tiny_config(qk_rope_head_dim=32), tiny_config(rope_scaling=None)):
        theirs = DeepseekV32RotaryEmbedding(DeepseekV32Config.from_dict(fields))
        ours = ModelConfig.from_json(fields)
        assert ours.inv_freq() == pytest.approx(theirs.inv_freq.tolist(), rel=1e-5)
        assert theirs.attention_scaling == 1.0


def test_rope_parameters_of_transformers_v5_mean_the_same() -> None:
    v5 = {"rope_type": "yarn", "rope_theta": 5000.0, **PUBLISHED_ROPE}
    moved = published_config(rope_scaling=None, rope_theta=None, rope_parameters=v5)
    assert moved == published_config(rope_theta=5000.0)


def test_a_config_saved_by_transformers_reads_the_same() -> None:
    from transformers import DeepseekV32Config

    fields = tiny_config()
    saved = json.loads(DeepseekV32Config.from_dict(fields).to_json_string())
    assert "scoring_func" not in DeepseekV32Config().to_dict()
    assert ModelConfig.from_json(saved) == ModelConfig.from_json(fields)


def test_missing_routing_fields_have_the_only_values_there_are() -> None:
    fields = tiny_config()
    for name in ("topk_method", "scoring_func", "moe_layer_freq", "hidden_act"):
        del fields[name]
    assert ModelConfig.from_json(fields) == ModelConfig.from_json(tiny_config())


def test_layers() -> None:
    fields = tiny_config(num_hidden_layers=5, first_k_dense_replace=2, num_nextn_predict_layers=1)
    config = ModelConfig.from_json(fields)
    assert [config.is_moe(layer) for layer in range(6)] == [False, False, True, True, True, True]
    assert list(config.mtp_layer_ids) == [5]
    assert config.num_layers == 6


def test_indexer_rope_is_half_split_unless_the_config_says_otherwise() -> None:
    assert ModelConfig.from_json(tiny_config()).indexer_rope_interleave is False
    glm = ModelConfig.from_json(tiny_config(indexer_rope_interleave=True))
    assert glm.indexer_rope_interleave is True


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "deepseek_v3"),
        ("model_type", None),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("moe_layer_freq", 2),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("rope_interleave", False),
        ("index_topk_freq", 4),
        ("indexer_types", ["full", "shared"]),
        ("index_init_tokens", 4),
        ("index_k_norm_type", "rms"),
        ("q_lora_rank", None),
        ("index_topk", 0),
        ("hidden_size", "64"),
        ("hidden_size", 64.5),
        ("vocab_size", True),
        ("rms_norm_eps", 0.0),
        ("n_group", 3),
        ("n_group", 8),
        ("topk_group", 5),
        ("num_experts_per_tok", 5),
        ("qk_rope_head_dim", 15),
        ("qk_rope_head_dim", 64),
        ("index_head_dim", 48),
        ("eos_token_id", "1"),
        ("eos_token_id", [-1]),
        ("mlp_layer_types", ["sparse", "sparse", "sparse"]),
        ("rope_scaling", "yarn"),
        ("quantization_config", 8),
    ],
)
def test_refused_values_name_file_field_and_value(field: str, value: object) -> None:
    with pytest.raises(CheckpointError) as refused:
        ModelConfig.from_json(tiny_config(**{field: value}), file="some/config.json")
    message = str(refused.value)
    assert message.startswith("some/config.json: ")
    assert field in message
    assert repr(value) in message
    assert "allowed: " in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"type": "llama3"}, "rope_scaling.rope_type is 'llama3'"),
        ({"mscale": 0.7}, "rope_scaling.mscale is 0.7"),
        ({"factor": 0.5}, "factor is 0.5"),
        ({"attention_factor": 2.0}, "rope_scaling.attention_factor is 2.0"),
        ({"truncate": False}, "rope_scaling.truncate is False"),
    ],
)
def test_refused_rope_scaling(change: dict[str, Any], named: str) -> None:
    block = {"type": "yarn", **PUBLISHED_ROPE, **change}
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_json(tiny_config(rope_scaling=block))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_method": "awq"}, "quant_method is 'awq'"),
        ({"fmt": "e5m2"}, "fmt is 'e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme is 'static'"),
        ({"weight_block_size": [64, 64]}, "weight_block_size"),
    ],
)
def test_refused_quantisation(change: dict[str, Any], named: str) -> None:
    block = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], **change}
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_json(tiny_config(quantization_config=block))


@pytest.mark.parametrize("field", ["hidden_size", "index_topk", "index_n_heads", "q_lora_rank"])
def test_a_missing_field_is_named(field: str) -> None:
    fields = tiny_config()
    del fields[field]
    with pytest.raises(CheckpointError, match=f"{field} is missing"):
        ModelConfig.from_json(fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)


@given(field=st.sampled_from(sorted(tiny_config())), value=json_values)
def test_any_value_is_read_or_refused_as_a_checkpoint_error(field: str, value: object) -> None:
    try:
        config = ModelConfig.from_json(tiny_config(**{field: value}))
        config.inv_freq()
        assert config.softmax_scale > 0
    except CheckpointError:
        pass


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"a": ', b"\xff\xfe"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def write_generation(folder: Path, generation: dict[str, Any] | None, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_config(**config)))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))


def test_generation_defaults_are_honoured(tmp_path: Path) -> None:
    fields = {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "eos_token_id": [7, 1]}
    write_generation(tmp_path, {"do_sample": True, "transformers_version": "5", **fields})
    defaults = GenerationDefaults.from_folder(tmp_path)
    assert defaults == GenerationDefaults(
        temperature=0.6, top_p=0.95, top_k=40, eos_token_ids=(7, 1)
    )


def test_without_generation_config_only_the_models_eos_is_known(tmp_path: Path) -> None:
    write_generation(tmp_path, None, eos_token_id=[5, 6])
    assert GenerationDefaults.from_folder(tmp_path) == GenerationDefaults(eos_token_ids=(5, 6))


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    write_generation(tmp_path, {"do_sample": False, "temperature": 0.6})
    assert GenerationDefaults.from_folder(tmp_path).temperature == 0.0


@pytest.mark.parametrize(
    ("field", "value"), [("top_p", 1.5), ("temperature", -1), ("top_k", "all"), ("min_p", 2)]
)
def test_refused_generation_defaults(tmp_path: Path, field: str, value: object) -> None:
    write_generation(tmp_path, {field: value})
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {field} is"):
        GenerationDefaults.from_folder(tmp_path)


def test_reading_a_config_never_imports_torch() -> None:
    code = "import sys, engine.model_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
