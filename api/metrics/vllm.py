"""The same values under vLLM's names, so that boards and gateways made for it work unchanged.

These names hold a colon, which Prometheus keeps for recording rules; they are theirs, not ours.
Type and meaning match; buckets are our own.

Source: vLLM's metrics reference; the Gateway API inference extension's model server protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from api.metrics import names
from api.metrics.metrics import Metrics
from api.metrics.values import Labels, histogram_family, number_family

SAME = {
    names.RUNNING: "vllm:num_requests_running",
    names.WAITING: "vllm:num_requests_waiting",
    names.PAGE_USAGE: "vllm:kv_cache_usage_perc",
    names.PREEMPTIONS: "vllm:num_preemptions_total",
    names.FIRST_TOKEN: "vllm:time_to_first_token_seconds",
    names.INTER_TOKEN: "vllm:inter_token_latency_seconds",
    names.PER_TOKEN: "vllm:request_time_per_output_token_seconds",
    names.REQUEST_SECONDS: "vllm:e2e_request_latency_seconds",
    names.QUEUE_SECONDS: "vllm:request_queue_time_seconds",
}
"""Ours -> theirs, where only the name differs."""
FINISHED = {"stop": "stop", "length": "length", "tool_calls": "stop", "abort": "abort"}
"""Our finish reasons -> theirs; an error is an error."""


def vllm_families(metrics: Metrics) -> Iterator[Family]:
    """Yields about a dozen metrics under vLLM's names."""
    numbers: Mapping[names.Metric, Mapping[Labels, float]]
    numbers = metrics.state() | metrics.values.numbers()
    histograms = metrics.values.histograms()
    for metric, name in SAME.items():
        if metric in numbers:
            yield number_family(metric, numbers[metric], metrics.base, name)
        elif metric in histograms:
            yield histogram_family(metric, histograms[metric], metrics.base, name)
    tokens = numbers.get(names.TOKENS, {})
    cached = tokens.get(("prefill", "cached"), 0.0)
    prompt = cached + tokens.get(("prefill", "computed"), 0.0)
    generated = metrics.values.histogram(names.INTER_TOKEN).total
    first = metrics.values.number(names.FIRST_TOKENS).value
    for name, help, value in (
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", prompt),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", cached),
        ("vllm:prompt_tokens", "Prompt tokens.", prompt),
        ("vllm:generation_tokens", "Sampled tokens.", generated + first),
    ):
        yield _counter(metrics, name, help, {(): value})
    success: dict[Labels, float] = {}
    for (reason,), count in numbers[names.FINISHED].items():
        theirs = (FINISHED.get(reason, "error"),)
        success[theirs] = success.get(theirs, 0.0) + count
    yield _counter(
        metrics, "vllm:request_success", "Choices by their end.", success, ("finished_reason",)
    )
    yield from _cache_config(metrics, numbers)


def _counter(
    metrics: Metrics,
    name: str,
    help: str,
    series: Mapping[Labels, float],
    labels: Labels = (),
) -> Family:
    family = CounterMetricFamily(name, help, labels=[*names.BASE_LABELS, *labels])
    for own, value in series.items():
        family.add_metric([*metrics.base, *own], value)
    return family


def _cache_config(
    metrics: Metrics, numbers: Mapping[names.Metric, Mapping[Labels, float]]
) -> Iterator[Family]:
    for info in numbers.get(names.ENGINE_INFO, {}):
        facts = dict(zip(names.ENGINE_INFO.labels, info, strict=True))
        labels = [*names.BASE_LABELS, "block_size", "num_gpu_blocks"]
        family = GaugeMetricFamily("vllm:cache_config_info", "1; the cache.", labels=labels)
        family.add_metric([*metrics.base, facts["page_tokens"], facts["total_pages"]], 1.0)
        yield family
