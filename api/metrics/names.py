"""Every metric by name, kind, labels and buckets: the one list that code, boards and tests follow.

Base units (seconds, bytes, tokens, ratios of 0 to 1), `_total` on counters, never a colon. Every
series also has the labels of BASE_LABELS. A label's values are a closed set, so the number of
series has a bound; nothing that a client can choose becomes a label.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

BASE_LABELS = ("model_name", "engine", "role")
"""What is served, which data-parallel engine it is, and whether it prefills, decodes or both."""

FIRST_TOKEN_S = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 120),
)
TOKEN_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.012, 0.015, 0.018, 0.02, 0.022, 0.025, 0.03),
    *(0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.2, 0.5, 1, 2, 5),
)
"""Dense where inter-token targets lie; the usual ones, 20, 50 and 100 ms, are edges."""
REQUEST_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600, 1800)
WAIT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
STEP_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 2)
ERROR_RATIO = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
STEP_TOKENS = tuple(2**power for power in range(0, 15, 2))
PROMPT_TOKENS = tuple(2**power for power in range(4, 18))
"""2,048, the model's top-k, is an edge."""
OUTPUT_TOKENS = tuple(2**power for power in range(0, 17, 2))

CODES = ("2xx", "4xx", "5xx")
REFUSAL_REASONS = (
    "queue_full",
    "backlog_full",
    "deadline_unreachable",
    "deadline_missed",
    "too_many_requests",
    "token_rate_exceeded",
    "invalid_api_key",
    "too_many_grammars",
    "invalid_grammar",
    "context_length_exceeded",
    "loading",
    "stopping",
    "engine_dead",
    "request_too_large",
    "invalid_request",
    "other",
)
FINISH_REASONS = ("stop", "length", "tool_calls", "abort", "error")
FLOP_COMPONENTS = ("linear", "core", "indexer")
COST_POSITIONS = (0, 2048, 8192, 32768, 65536, 131071)
"""Where the expected cost of a token is shown, as far as the window goes."""


class Metric(msgspec.Struct, frozen=True):
    """One metric as it is written down in the exposition format."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Beside BASE_LABELS; at most one may have more than a handful of values."""
    edges: tuple[float, ...] = ()
    """Upper edges of a histogram's buckets, +Inf left out."""

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names its series have."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


METRICS: dict[str, Metric] = {}


def _metric(
    name: str,
    kind: Kind,
    help: str,
    labels: tuple[str, ...] = (),
    edges: tuple[float, ...] = (),
) -> Metric:
    metric = METRICS[name] = Metric(f"winnow_{name}", kind, help, labels, edges)
    return metric


# The engine's state, as its last snapshot has it.
ENGINE_UP = _metric("engine_up", "gauge", "1 while the engine answers, else 0.")
ENGINE_RESTARTS = _metric(
    "engine_restarts_total", "counter", "Engines that took the place of one that died."
)
API_RESTARTS = _metric(
    "api_process_restarts_total", "counter", "API processes that took the place of one that died."
)
READY = _metric("ready", "gauge", "1 while new requests should be sent here, else 0.")
DRAINING = _metric("draining", "gauge", "1 from a signal to stop until the end, else 0.")
ENGINE_INFO = _metric(
    "engine_info",
    "gauge",
    "1; what is served, on what.",
    ("version", "model_type", "device", "dtype", "page_tokens", "total_pages", "max_model_len"),
)
SNAPSHOT_AGE = _metric(
    "snapshot_age_seconds", "gauge", "Since the engine last said how it is; it does 4 times a s."
)
RUNNING = _metric("requests_running", "gauge", "Sequences with a slot.")
WAITING = _metric("requests_waiting", "gauge", "Sequences that wait for one.")
BACKLOG = _metric("backlog_tokens", "gauge", "Prompt tokens that still have to be computed.")
DRAIN_RATE = _metric("drain_tokens_per_second", "gauge", "How fast the backlog lessens.")
PAGES = _metric("pages", "gauge", "Pages of the cache by state; together all of them.", ("state",))
PAGE_USAGE = _metric("page_usage_ratio", "gauge", "Share of the pages that running requests hold.")
MEMORY = _metric("memory_bytes", "gauge", "The engine's memory by use.", ("use",))
PREEMPTIONS = _metric(
    "preemptions_total", "counter", "Running sequences whose pages others needed."
)
EVICTED = _metric("evicted_pages_total", "counter", "Idle pages given up, by class.", ("state",))
PRE_WARMED = _metric(
    "pre_warmed_tokens_total", "counter", "Tokens computed for messages that had not come."
)
PRE_WARM_HITS = _metric(
    "pre_warm_hit_tokens_total", "counter", "Pre-warmed tokens that a prompt has found."
)
PRE_WARMS = _metric("pre_warms_waiting", "gauge", "Answered turns whose next form waits.")
ENDED_REASONING = _metric(
    "reasoning_tokens_total",
    "counter",
    "Reasoning at the end of turns, which the next prompt keeps (a tool loop) or drops.",
    ("fate",),
)
RESTORED_REASONING = _metric(
    "restored_reasoning_tokens_total",
    "counter",
    "Reasoning put back into prompts whose client had dropped it.",
)
INTER_TOKEN_TARGET = _metric(
    "inter_token_target_seconds", "gauge", "What --inter-token-target-s says; 0: nothing."
)

# Steps.
STEP_SECONDS = _metric(
    "step_seconds",
    "histogram",
    "Execution of a step; phase prefill if any row prefills.",
    ("phase",),
    STEP_S,
)
STEP_PREDICTED = _metric(
    "step_predicted_seconds_total", "counter", "What the same steps were to take.", ("phase",)
)
STEP_ERROR = _metric(
    "step_prediction_error_ratio",
    "histogram",
    "|predicted - measured| / measured of each step.",
    ("phase",),
    ERROR_RATIO,
)
STEP_OVERHEAD = _metric(
    "step_overhead_seconds_total", "counter", "Planning steps and taking their tokens in."
)
STEP_SIZE = _metric("step_tokens", "histogram", "Tokens computed in a step.", (), STEP_TOKENS)
INTER_TOKEN = _metric(
    "inter_token_seconds",
    "histogram",
    "Between a token of a choice and the one before, where the engine samples them.",
    (),
    TOKEN_S,
)
QUEUE_SECONDS = _metric("queue_seconds", "histogram", "From the queue to a slot.", (), WAIT_S)

# Tokens and what they cost.
TOKENS = _metric(
    "tokens_total",
    "counter",
    "Tokens by phase; of prompts also those that need not be computed, or were for a later one.",
    ("phase", "source"),
)
FIRST_TOKENS = _metric("first_tokens_total", "counter", "Choices that got their first token.")
CONTEXT_TOKENS = _metric(
    "context_tokens_total", "counter", "Sum over computed tokens of what each can see.", ("phase",)
)
SELECTED_TOKENS = _metric(
    "selected_tokens_total",
    "counter",
    "Sum over computed tokens of what each attends to.",
    ("phase",),
)
GPU_SECONDS = _metric(
    "gpu_seconds_total",
    "counter",
    "Time of steps x devices; that of a mixed step is shared out as the cost model expects.",
    ("phase",),
)
MODEL_FLOPS = _metric(
    "model_flops_total", "counter", "Counted FLOPs of the computed tokens.", ("component",)
)
PRICE = _metric("gpu_price_usd_per_hour", "gauge", "Of one device.")
EXPECTED_COST = _metric(
    "expected_cost_usd_total",
    "counter",
    "What the computed tokens cost by the cost model, each where it stands in its context.",
    ("phase",),
)
EXPECTED_PRICE = _metric(
    "expected_usd_per_million_tokens",
    "gauge",
    "The cost model's curve, at some positions.",
    ("phase", "position"),
)
COST_MODEL = _metric(
    "cost_model_info", "gauge", "1; which cost model expects.", ("preset", "machine")
)

# Requests.
FIRST_TOKEN = _metric(
    "time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to its first token.",
    (),
    FIRST_TOKEN_S,
)
PER_TOKEN = _metric(
    "time_per_output_token_seconds",
    "histogram",
    "Of each request, (end - first token) / (tokens - 1).",
    (),
    TOKEN_S,
)
REQUEST_SECONDS = _metric(
    "request_seconds", "histogram", "From a request's arrival to its end.", (), REQUEST_S
)
PROMPT_SIZE = _metric("prompt_tokens", "histogram", "Tokens of a prompt.", (), PROMPT_TOKENS)
OUTPUT_SIZE = _metric("output_tokens", "histogram", "Tokens of a choice.", (), OUTPUT_TOKENS)
FINISHED = _metric(
    "finished_choices_total",
    "counter",
    "Choices by their end; abort: the client left.",
    ("finish_reason",),
)
REFUSALS = _metric(
    "refusals_total", "counter", "Requests answered with an error, by its code.", ("reason",)
)

# HTTP.
HTTP_REQUESTS = _metric(
    "http_requests_total", "counter", "Answers by route and class of status.", ("route", "code")
)
HTTP_IN_FLIGHT = _metric("http_requests_in_flight", "gauge", "Requests that are being answered.")
API_RESIDENT = _metric(
    "api_resident_bytes", "gauge", "Memory of the processes that speak HTTP, together."
)
API_PROCESSOR = _metric(
    "api_processor_seconds_total", "counter", "Processor time of the same processes."
)
SCRAPE_SECONDS = _metric(
    "last_scrape_seconds", "gauge", "What writing these metrics took the last time."
)
