"""`winnow bench model`: what it runs, and that it runs; no figure is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import msgspec
import pytest
import torch

from benchmarks.cli import main
from benchmarks.model import ModelBench, run
from benchmarks.random_model import FULL, check_memory, model_config, random_weights
from cost_model.shape import V32
from engine.cache import CacheLayout
from engine.config import ConfigError
from engine.tensors import expected_tensors
from scheduler.plan import Row

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


def test_pages_are_counted_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 80 * 2**30))
    arguments = "--layers 6 --batch 1 64 --context 131072 --chunk 64 --steps 10"
    assert main(["model", *arguments.split()]) == 2
    # 64 sequences of 131,136 tokens; a token takes 6 * (656 + 132) bytes.
    error = capsys.readouterr().err
    assert "6 layers take 39.1 GiB and 131,136 pages of 64 tokens 37.0 GiB" in error
    assert "NVIDIA H100 has 80.0 GiB" in error and "--batch or --context" in error
    cuda, layout = torch.device("cuda"), CacheLayout("fp8", "fp8")
    model = model_config("v3.2", 6, cuda)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 140 * 2**30))
    check_memory(model, layout, 131_136, cuda)


class Device:
    """A GPU whose kernels take known times, and a network and graphs that run on it.

    Launched by itself, a kernel costs the time of its launch, too: more than embedding and head.
    """

    embedding_and_head_s, layer_kernels_s, layer_gaps_s = 0.5, 3.0, 0.25
    launches_s = 20.0

    def __init__(self) -> None:
        self.layers = [object()] * 4
        self.waited_s = self.busy_s = 0.0

    def launch(self, *_: object) -> None:
        kernels_s = self.embedding_and_head_s + len(self.layers) * self.layer_kernels_s
        self.busy_s += kernels_s
        self.waited_s += self.launches_s + kernels_s

    forward = launch

    def replay(self, _: object) -> None:
        kernels_s = self.embedding_and_head_s + 4 * self.layer_kernels_s
        self.busy_s += kernels_s
        self.waited_s += kernels_s + 4 * self.layer_gaps_s

    def find(self, rows: tuple[Row, ...]) -> str | None:
        return "bucket" if all(row.count == 1 for row in rows) else None


class OnDevice(ModelBench):
    """Times by the device's own clock."""

    def __init__(self, device: Device) -> None:
        self.model, self.network = model_config("tiny", 4, CPU), device  # type: ignore[assignment]
        self.clock = device
        self.runner = mock.Mock(graphs=device)

    def _device_seconds(self, run: Callable[[], object], steps: int) -> float:
        before = self.clock.waited_s
        run()
        return self.clock.waited_s - before

    def _kernel_seconds(self, run: Callable[[], object]) -> float | None:
        before = self.clock.busy_s
        run()
        return self.clock.busy_s - before


def test_a_layer_is_what_a_graph_takes_without_embedding_and_head() -> None:
    """Launches of what stands outside the layers, which the graph has not, are not subtracted."""
    device = Device()
    bench = OnDevice(device)
    decode = Row(slot=0, start=9, count=1, sample="last", form="mqa")
    assert bench.layer_seconds((decode,), 3) == (3.25, 3.0)
    assert len(device.layers) == 4, "it has its layers again"


def test_without_a_graph_a_layer_bears_the_launches() -> None:
    prefill = Row(slot=0, start=0, count=8, sample="last", form="mha")
    assert OnDevice(Device()).layer_seconds((prefill,), 3) == (3.0 + 20.0 / 4, 3.0)


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
