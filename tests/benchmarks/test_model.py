"""`winnow bench model`: what it runs, and that it runs; no figure is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.cli import main
from benchmarks.model import run
from benchmarks.random_model import FULL, model_config, random_weights
from cost_model.shape import V32
from engine.config import ConfigError
from engine.tensors import expected_tensors

CPU = torch.device("cpu")


def test_full_width_is_the_published_model() -> None:
    for name in V32.__struct_fields__:
        if name not in ("name", "num_nextn_predict_layers"):
            assert getattr(FULL, name) == getattr(V32, name), name
    # 1/sqrt(192) times YaRN's temperature squared.
    assert FULL.softmax_scale == pytest.approx(192**-0.5 * 1.3688879454**2)


def test_depth_is_cut_and_a_layer_of_experts_is_left() -> None:
    for layers, dense in ((1, 0), (2, 1), (6, 1)):
        model = model_config("tiny", layers, CPU)
        assert model.num_hidden_layers == layers and model.first_k_dense_replace == dense
        assert model.num_nextn_predict_layers == 0


def test_what_cannot_run_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--layers is 0"):
        model_config("tiny", 0, CPU)
    with pytest.raises(ConfigError, match="reach position 140000; the model has 131072"):
        run(
            config="tiny",
            layers=1,
            batches=[1],
            contexts=[130_000],
            chunk=10_000,
            steps=1,
            eager=True,
        )
    with pytest.raises(ConfigError, match="no CUDA device"):
        model_config("v3.2", 6, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 140 * 2**30))
    cuda = torch.device("cuda")
    assert model_config("v3.2", 6, cuda).first_k_dense_replace == 3
    with pytest.raises(ConfigError, match=r"61 layers take 62\d\.\d GiB; NVIDIA H200 has 140.0"):
        model_config("v3.2", 61, cuda)


def test_random_weights_are_a_checkpoint() -> None:
    model = model_config("tiny", 2, CPU)
    weights = random_weights(model, CPU, fp8=True)
    for name, spec in expected_tensors(model).items():
        assert weights[name].shape == spec.shape
        assert (weights[name].dtype == torch.float8_e4m3fn) == (spec.role == "linear")
    values = weights["model.layers.1.mlp.experts.3.up_proj.weight"].float()
    scale = weights["model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"]
    assert values.isfinite().all()
    spread = float((values * scale[0, 0]).std()) * model.hidden_size**0.5
    assert 0.3 < spread < 3, "a product is about as large as its input"


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["model", "--layers", "6"]) == 2
    assert "--config tiny runs here" in capsys.readouterr().err


def test_the_tiny_shape_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    arguments = "--config tiny --layers 2 --batch 1 2 --context 70 140 --chunk 32 --steps 1"
    assert main(["model", *arguments.split(), "--threads", "1", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "decode 2 x 1 at 140" in text and "prefill 1 x 32 at 70" in text
    (results,) = json.loads(file.read_bytes())["results"].values()
    lines = [line for line in results if "phase" in line]
    assert len(lines) == 2 * 2 + 3 and all(line["step_s"] > 0 for line in lines)
    growths = [line for line in results if "grown_s" in line]
    assert [(one["shortest"], one["longest"]) for one in growths] == [(70, 140)] * 2
    assert msgspec.json.encode(results)
