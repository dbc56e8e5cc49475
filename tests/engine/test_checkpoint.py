"""engine.checkpoint and engine.hub: weights out of folders, and folders out of names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.checkpoint import dequantise, load_weights, shard_files
from engine.hub import EMBEDDED_MODEL, resolve_model
from engine.model_config import CheckpointError, ModelConfig
from engine.tensors import expected_tensors
from tests.checkpoints import (
    is_fp8_linear,
    quantise_blocks,
    random_weights,
    tensor_shapes,
    tiny_config,
    write_checkpoint,
)

# Several blocks in both directions, the last ones ragged, as kv_a_proj's 576 rows are.
RAGGED = {"hidden_size": 200, "kv_lora_rank": 130, "q_lora_rank": 136, "num_hidden_layers": 2}


def load(folder: Path, **options: object) -> dict[str, Tensor]:
    settings = {"dtype": torch.float32, "device": "cpu", "progress": False} | options
    return load_weights(folder, ModelConfig.from_folder(folder), **settings)  # type: ignore[arg-type]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_expected_tensors_are_the_published_ones() -> None:
    fields = tiny_config()
    table = expected_tensors(ModelConfig.from_json(fields))
    assert {name: spec.shape for name, spec in table.items()} == tensor_shapes(fields)
    assert {n for n, spec in table.items() if spec.role == "linear"} == {
        name for name in table if is_fp8_linear(name)
    }


def test_the_published_checkpoint_has_92425_tensors_with_its_scales() -> None:
    from transformers import DeepseekV32Config

    fields = DeepseekV32Config().to_dict() | {"num_nextn_predict_layers": 1}
    table = expected_tensors(ModelConfig.from_json(fields))
    linears = [spec for spec in table.values() if spec.role == "linear"]
    assert len(linears) == 45_932
    assert len(table) + len(linears) == 92_425


@pytest.mark.parametrize("shards", [1, 3])
def test_float32_weights_come_back_as_stored(tmp_path: Path, shards: int) -> None:
    fields = tiny_config()
    weights = random_weights(fields)
    write_checkpoint(tmp_path, fields, weights, shards=shards)
    assert_equal(load(tmp_path), weights)


def test_decisive_tensors_stay_float32_in_bfloat16(tmp_path: Path) -> None:
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, random_weights(fields))
    weights = load(tmp_path, dtype=torch.bfloat16)
    float32 = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert {name for name in weights if name not in float32} == {
        name
        for name in weights
        if is_fp8_linear(name) or name.endswith(("embed_tokens.weight", "eh_proj.weight"))
    }


def test_bfloat16_checkpoints_are_read(tmp_path: Path) -> None:
    fields = tiny_config()
    weights = {name: w.bfloat16() for name, w in random_weights(fields).items()}
    write_checkpoint(tmp_path, fields, weights)
    assert_equal(load(tmp_path), {name: weight.float() for name, weight in weights.items()})


@pytest.mark.parametrize("shards", [1, 3])
def test_fp8_weights_are_dequantised_with_ragged_blocks(tmp_path: Path, shards: int) -> None:
    fields = tiny_config(**RAGGED)
    weights = random_weights(fields)
    write_checkpoint(tmp_path, fields, weights, fp8=True, shards=shards)
    found = load(tmp_path)
    blocks = 0
    for name, weight in weights.items():
        if not is_fp8_linear(name):
            assert torch.equal(found[name], weight), name
            continue
        quantised, scale = quantise_blocks(weight)
        for i, j in torch.cartesian_prod(*map(torch.arange, scale.shape)).tolist():
            block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            assert torch.equal(found[name][block], quantised[block].float() * scale[i, j]), name
            blocks += 1
        # Three mantissa bits: rounding moves a value by at most 2**-4 of itself.
        assert (found[name] - weight).abs().max() <= 2**-4 * weight.abs().max()
    assert blocks > sum(map(is_fp8_linear, weights))


def test_keep_fp8_returns_the_stored_bytes_and_scales(tmp_path: Path) -> None:
    fields = tiny_config(**RAGGED)
    weights = random_weights(fields)
    write_checkpoint(tmp_path, fields, weights, fp8=True, shards=2)
    found = load(tmp_path, keep_fp8=True)
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    quantised, scale = quantise_blocks(weights[name])
    assert found[name].dtype == torch.float8_e4m3fn
    assert torch.equal(found[name].view(torch.uint8), quantised.view(torch.uint8))
    assert torch.equal(found[name + "_scale_inv"], scale)


@settings(max_examples=30)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), seed=st.integers(0, 99))
def test_dequantise_is_one_scale_per_block(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 128), -(-columns // 128), generator=generator) + 0.1
    per_element = scale[torch.arange(rows) // 128][:, torch.arange(columns) // 128]
    assert torch.equal(dequantise(weight, scale, torch.float32), weight.float() * per_element)


def test_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    fields = tiny_config()
    weights = random_weights(fields)
    write_checkpoint(tmp_path, fields, weights)
    found = load(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    assert_equal(found, weights)


@pytest.mark.parametrize("stored", ["absent", "equal", "different"])
def test_mtp_embedding_and_head(tmp_path: Path, stored: str) -> None:
    fields = tiny_config()
    weights = random_weights(fields)
    own = {
        "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight": "lm_head.weight",
    }
    for copy in own:
        if stored == "absent":
            del weights[copy]
        elif stored == "different":
            weights[copy] += 1
    write_checkpoint(tmp_path, fields, weights)
    found = load(tmp_path)
    for copy, main in own.items():
        assert (found[copy] is found[main]) == (stored != "different")
        assert torch.equal(found[copy], weights.get(copy, weights[main]))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(weights)
    save_file(weights, file)


NORM = "model.layers.1.input_layernorm.weight"
LINEAR = "model.layers.1.self_attn.o_proj.weight"
SCALE = LINEAR + "_scale_inv"
ROUTER = "model.layers.1.mlp.gate.weight"


@pytest.mark.parametrize(
    ("fp8", "change", "faults"),
    [
        (False, lambda w: w.pop(NORM), [f"{NORM}: missing; expected shape [64]"]),
        (
            False,
            lambda w: w.update({NORM: torch.ones(65)}),
            [f"{NORM}: expected shape [64], found [65]"],
        ),
        (
            False,
            lambda w: w.update({LINEAR: torch.ones(80, 64)}),
            [f"{LINEAR}: expected shape [64, 80], found [80, 64]"],
        ),
        (
            False,
            lambda w: w.update({"model.layers.9.extra": torch.ones(2, 3)}),
            ["model.layers.9.extra: not part of this model; found shape [2, 3]"],
        ),
        (
            False,
            lambda w: (w.pop(NORM), w.pop(ROUTER)),
            ["2 tensors", f"{NORM}: missing", f"{ROUTER}: missing; expected shape [8, 64]"],
        ),
        (
            False,
            lambda w: w.update({LINEAR: w[LINEAR].to(torch.int8)}),
            [f"{LINEAR}: stored as I8; allowed: BF16, F16, F32, F8_E4M3"],
        ),
        (
            False,
            lambda w: w.update({ROUTER: w[ROUTER].to(torch.float8_e4m3fn)}),
            [f"{ROUTER}: stored as F8_E4M3; allowed: BF16, F16, F32"],
        ),
        (True, lambda w: w.pop(SCALE), [f"{SCALE}: missing; expected shape [1, 1]"]),
        (
            True,
            lambda w: w.update({SCALE: torch.ones(1, 2)}),
            [f"{SCALE}: expected shape [1, 1], found [1, 2]"],
        ),
        (
            True,
            lambda w: w.update({LINEAR: torch.ones(64, 80)}),
            [f"{SCALE}: not part of this model"],
        ),
        (
            True,
            lambda w: w.update({SCALE: w[SCALE].to(torch.int32)}),
            [f"{SCALE}: stored as I32; allowed: F32, BF16"],
        ),
    ],
)
def test_faulty_tensors_are_named(
    tmp_path: Path, fp8: bool, change: Callable[[dict[str, Tensor]], object], faults: list[str]
) -> None:
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, random_weights(fields), fp8=fp8)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    for fault in faults:
        assert fault in str(refused.value)


def test_many_faults_are_counted_and_ten_listed(tmp_path: Path) -> None:
    fields = tiny_config()
    weights = random_weights(fields)
    write_checkpoint(tmp_path, fields, {n: w for n, w in weights.items() if ".experts." not in n})
    missing = sum(".experts." in name for name in weights)
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    lines = str(refused.value).splitlines()
    assert f"{missing} tensors do not fit config.json" in lines[0]
    assert len(lines) == 12
    assert lines[-1] == f"  and {missing - 10} more"


@pytest.mark.parametrize("keep_bytes", [0, 4, 100, 50_000, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep_bytes: int) -> None:
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, random_weights(fields), shards=2)
    file = tmp_path / "model-00002-of-000002.safetensors"
    file.write_bytes(file.read_bytes()[:keep_bytes])
    with pytest.raises(CheckpointError, match=rf"{file.name}: corrupt or truncated"):
        load(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, random_weights(fields), shards=3)
    (tmp_path / "model-00002-of-000003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 files missing: model-00002-of-000003"):
        load(tmp_path)


def test_a_tensor_stored_twice_is_named(tmp_path: Path) -> None:
    fields = tiny_config()
    weights = random_weights(fields)
    write_checkpoint(tmp_path, fields, weights)
    save_file({NORM: weights[NORM]}, tmp_path / "model-extra.safetensors")
    with pytest.raises(CheckpointError, match=f"{NORM} is also stored in"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", 7])
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, name: object) -> None:
    index = {"weight_map": {NORM: name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map is"):
        shard_files(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, random_weights(fields))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only as pickle"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\*\.safetensors"):
        shard_files(tmp_path)


def test_progress_is_drawn_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, random_weights(fields))
    load(tmp_path, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "weights: 100%" in shown.err
    load(tmp_path, progress=False)
    assert capsys.readouterr().err == ""


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub unreachable, and a cache that holds one model; returns the model's snapshot."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--winnow--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    fields = tiny_config()
    return write_checkpoint(model / "snapshots" / COMMIT, fields, random_weights(fields))


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_id_is_found_offline(offline_hub: Path, revision: str | None) -> None:
    folder = resolve_model("winnow/tiny", revision)
    assert folder.samefile(offline_hub)
    assert NORM in load(folder)


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("winnow/other", None, "winnow/other: no such folder, not in the hub's cache"),
        ("winnow/tiny", "v2", "winnow/tiny at revision v2: no such folder, not in the hub's cache"),
        ("no/such/folder", None, "no/such/folder: no such folder, and no hub id"),
        ("", "main", "a local folder has no revision 'main'"),
    ],
)
def test_an_unknown_model_is_refused(model: str, revision: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve_model(model, revision)


def test_folders_resolve_to_themselves(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("") == EMBEDDED_MODEL
