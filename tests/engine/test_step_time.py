"""The predictor a replica starts with, and what it makes of the steps it sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cost_model.predictor import StepPredictor, StepSums
from engine.cache import CacheLayout
from engine.model_config import ModelConfig
from engine.step_time import DEFAULT_MACHINE, machine_of, step_predictor
from tests.engine.replica import FIELDS

CPU = torch.device("cpu")
TOP_K = FIELDS["index_topk"]


def predictor(**how: Any) -> StepPredictor:
    layout = CacheLayout(how.pop("latent", "float32"), how.pop("index", "float32"))
    dense = how.pop("dense", False)
    return step_predictor(ModelConfig.from_json(FIELDS), layout, torch.float32, CPU, dense=dense)


def test_a_first_guess_grows_with_the_work() -> None:
    guess = predictor()
    decode = StepSums.decode_row(500, TOP_K)
    chunks = [decode + StepSums.prefill_chunk(0, count, TOP_K) for count in (1, 64, 512)]
    times = [guess.predict(sums) for sums in (decode, *chunks)]
    assert 0 < times[0] < times[1] < times[2] < times[3] < 1.0


def test_a_step_costs_something_however_small_it_is() -> None:
    """Otherwise the first steps of a few rows would make larger ones look hopeless."""
    guess = predictor()
    one, many = StepSums.decode_row(10, TOP_K), StepSums()
    for _ in range(32):
        many += one
    assert guess.predict(many) < 16 * guess.predict(one)


def test_dense_attention_is_costed_without_an_indexer() -> None:
    assert predictor(dense=True).top_k == 0
    assert predictor().top_k == TOP_K


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_every_cache_has_a_cost(dtype: Any) -> None:
    assert predictor(latent=dtype, index=dtype).predict(StepSums.decode_row(100, TOP_K)) > 0


def test_it_learns_a_machine_that_is_ten_times_slower() -> None:
    learned, guess = predictor(), predictor()
    for number in range(60):
        sums = StepSums.decode_row(100 + number, TOP_K)
        if number % 2:
            sums += StepSums.prefill_chunk(0, 64 + number, TOP_K)
        learned.observe(sums, 10 * guess.predict(sums))
    sums = StepSums.decode_row(150, TOP_K) + StepSums.prefill_chunk(0, 100, TOP_K)
    assert learned.predict(sums) == pytest.approx(10 * guess.predict(sums), rel=0.1)
    target_s = learned.predict(sums)
    chunk = learned.largest_chunk(StepSums.decode_row(150, TOP_K), 0, 512, target_s)
    assert 80 <= chunk <= 120


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GeForce RTX 4090", DEFAULT_MACHINE),
    ],
)
def test_data_sheets_are_found_by_the_devices_name(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert machine_of(torch.device("cuda")).name == expected
    assert machine_of(CPU).name == "cpu"
