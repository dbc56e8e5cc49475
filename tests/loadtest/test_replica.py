from __future__ import annotations

import msgspec
import pytest

from cost_model.capacity import PAGE_TOKENS, capacity
from cost_model.errors import CostError
from cost_model.machines import MACHINES
from cost_model.model import total
from cost_model.predictor import StepPredictor, StepSums
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import V31, V32
from loadtest.replica import Settings, StepTimes, replica
from scheduler.plan import Row

H800 = MACHINES["h800"]


def decode(context: int, slot: int = 0) -> Row:
    return Row(slot, context, 1, "last", "mqa")


def prefill(start: int, count: int) -> Row:
    return Row(0, start, count, "none", "mqa")


def test_every_gpu_brings_its_pages() -> None:
    held = capacity(V32, H800, gpus=32, context=PAGE_TOKENS, price=2.0)
    of = replica(V32, H800, 32, Settings())
    assert of.config.total_pages == 32 * held.pages
    assert of.usd_per_hour == 2.0


def test_a_decode_step_takes_what_the_cost_model_says_at_its_batch() -> None:
    times = StepTimes(replica(V32, H800, 32, Settings()))
    for rows_per_gpu in (1, 16, 128):
        model = Roofline(
            V32,
            H800,
            RooflineChoices(batch=rows_per_gpu, tokens_per_read=1, expert_parallel_gpus=32),
        )
        context = 9000
        expected = float(total(model.seconds("decode", context))) * rows_per_gpu
        rows = [decode(context)] * (32 * rows_per_gpu)
        assert times.seconds(rows) == pytest.approx(expected, rel=1e-3)


def test_a_step_is_as_long_as_its_busiest_gpu() -> None:
    times = StepTimes(replica(V32, H800, 32, Settings()))
    near = [decode(1)] * 32
    assert times.seconds(near) == pytest.approx(times.seconds(near[:1]), rel=1e-4)
    assert times.seconds([*near, decode(1)]) > 1.005 * times.seconds(near)


def test_prefill_is_divided_among_the_gpus() -> None:
    one = StepTimes(replica(V32, H800, 32, Settings()))
    two = StepTimes(replica(V32, H800, 64, Settings()))
    seconds = [times.seconds([prefill(4096, 8192)]) - times.seconds([]) for times in (one, two)]
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.01)
    model = Roofline(V32, H800, RooflineChoices(tokens_per_read=1, expert_parallel_gpus=32))
    expected = total(model.seconds("prefill", range(4096, 4096 + 8192))).sum() / 32
    assert seconds[0] == pytest.approx(expected, rel=0.1)


def test_the_predictor_begins_near_the_truth() -> None:
    of = replica(V32, H800, 32, Settings())
    predictor, times = StepPredictor(of.coefficients, 2048), StepTimes(of)
    for rows in (8 * 32, 64 * 32, 128 * 32):
        sums = StepSums(rows, rows * 8001, rows * 2048)
        assert predictor.predict(sums) == pytest.approx(
            times.seconds([decode(8000)] * rows), rel=0.05
        )
    sums = StepSums.prefill_chunk(8192, 4096, 2048)
    assert predictor.predict(sums) == pytest.approx(times.seconds([prefill(8192, 4096)]), rel=0.15)


def test_without_an_indexer_rows_are_dense() -> None:
    of = replica(V31, H800, 32, Settings())
    assert of.config.forms.form(90_000, 1) == "dense_mqa"
    times = StepTimes(of)
    far, near = (times.seconds([decode(context)] * 320) for context in (64_000, 1000))
    assert far > 1.5 * near


def test_plain_lru_makes_all_pages_alike() -> None:
    weighted = Settings(cost_doubling_tokens=9000)
    assert replica(V32, H800, 32, weighted).config.cost_doubling_tokens == 9000
    plain = replica(V32, H800, 32, msgspec.structs.replace(weighted, retention=False)).config
    assert (plain.cost_doubling_tokens, plain.max_pre_warms) == (0, 0)
    assert replica(V32, H800, 32, Settings(pre_warm=False)).config.max_pre_warms == 0


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CostError, match="gpus is 8"):
        replica(V32, H800, 8, Settings())


@pytest.mark.parametrize("fields", [{"pages": 0}, {"inter_token_target_s": -1.0}, {"queue_s": 0.0}])
def test_a_setting_outside_its_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(CostError, match=f"{next(iter(fields))} is .*; allowed: above 0"):
        replica(V32, H800, 32, Settings(**fields))  # type: ignore[arg-type]
