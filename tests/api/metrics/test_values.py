"""api.metrics.values: our histogram against the client library's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram

from api.metrics import names
from api.metrics.values import Histogram, Values, histogram_family, number_family

EDGES = (0.1, 1.0, 10.0)
BASE = ("m", "0", "mixed")
observations = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0000001, 10.0, 11.0, math.inf])
        | st.floats(0, 20, allow_nan=False),
        st.integers(0, 5),
    ),
    max_size=20,
)


@given(observations)
def test_a_weight_is_as_many_observations(seen: list[tuple[float, int]]) -> None:
    ours = Histogram(EDGES)
    theirs = TheirHistogram("h", "", buckets=EDGES, registry=CollectorRegistry())
    for value, weight in seen:
        if weight:
            ours.observe(value, weight)
        for _ in range(weight):
            theirs.observe(value)
    samples = {
        (s.name, s.labels.get("le")): s.value for metric in theirs.collect() for s in metric.samples
    }
    assert dict(ours.cumulative()) == {
        le: value for (name, le), value in samples.items() if name == "h_bucket"
    }
    assert ours.total == samples["h_count", None]
    assert ours.sum == pytest.approx(samples["h_sum", None])


def test_a_series_is_bound_once() -> None:
    values = Values()
    first = values.number(names.TOKENS, "prefill", "cached")
    first.add(3)
    assert values.number(names.TOKENS, "prefill", "cached") is first
    assert values.numbers()[names.TOKENS] == {("prefill", "cached"): 3.0}
    assert values.histogram(names.STEP_SIZE) is values.histogram(names.STEP_SIZE)


def test_labels_and_kind_must_fit() -> None:
    with pytest.raises(AssertionError, match="winnow_tokens_total"):
        Values().number(names.TOKENS, "prefill")
    with pytest.raises(AssertionError, match="winnow_running"):
        Values().histogram(names.Metric("winnow_running", "gauge", ""))


def test_families_have_the_base_labels() -> None:
    family = number_family(names.TOKENS, {("decode", "computed"): 2.0}, BASE)
    (sample,) = family.samples
    assert sample.name == "winnow_tokens_total" and sample.value == 2
    assert sample.labels == {
        "model_name": "m",
        "engine": "0",
        "role": "mixed",
        "phase": "decode",
        "source": "computed",
    }
    histogram = Histogram(names.STEP_S)
    histogram.observe(0.03)
    counted = histogram_family(names.STEP_SECONDS, {("decode",): histogram}, BASE)
    assert {s.name for s in counted.samples} == set(names.STEP_SECONDS.sample_names)
    assert {s.value for s in counted.samples if s.labels.get("le") == "0.03"} == {1}
