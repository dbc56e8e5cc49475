"""How long clients wait, and for what."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from api.metrics import names
from deploy.grafana.panels import board, distribution, figure, lines, quantiles, rate, ratio, read

FIRST_TOKEN_GOAL_S = "2.0"
INTER_TOKEN_GOAL_S = "0.1"
"""Bucket edges that the alerts hold the server to; a share below an edge is exact."""


def within(metric: names.Metric, edge: str) -> str:
    """Returns the share of observations up to a bucket's edge."""
    good = rate(metric, part="bucket", where=f'le="{edge}"')
    return ratio(good, rate(metric, part="count"))


def make() -> Dashboard:
    """Returns the board."""
    return board(
        "latency",
        "Latency",
        "How long clients wait for the first token, between tokens and for the end.",
        [
            (
                "Goals",
                [
                    figure(
                        f"First token within {FIRST_TOKEN_GOAL_S} s",
                        "Share of requests.",
                        within(names.FIRST_TOKEN, FIRST_TOKEN_GOAL_S),
                        "percentunit",
                        width=8,
                    ),
                    figure(
                        f"Gaps within {INTER_TOKEN_GOAL_S} s",
                        "Share of tokens.",
                        within(names.INTER_TOKEN, INTER_TOKEN_GOAL_S),
                        "percentunit",
                        width=8,
                    ),
                    figure(
                        "Inter-token target",
                        "What the scheduler plans its steps for.",
                        f"max({read(names.INTER_TOKEN_TARGET)})",
                        "s",
                        width=8,
                    ),
                ],
            ),
            (
                "Waiting",
                [
                    lines(
                        "First token",
                        "From a request's arrival to its first token.",
                        quantiles(names.FIRST_TOKEN),
                        "s",
                    ),
                    lines(
                        "Between tokens",
                        "Gaps where the engine samples, one per token.",
                        quantiles(names.INTER_TOKEN),
                        "s",
                    ),
                    lines(
                        "Per output token",
                        "Of each request: (end - first token) / (tokens - 1).",
                        quantiles(names.PER_TOKEN),
                        "s",
                    ),
                    lines(
                        "Whole request",
                        "From its arrival to its end.",
                        quantiles(names.REQUEST_SECONDS),
                        "s",
                        width=12,
                    ),
                    lines(
                        "In the queue",
                        "Until a sequence has a slot.",
                        quantiles(names.QUEUE_SECONDS),
                        "s",
                        width=12,
                    ),
                ],
            ),
            (
                "Distributions",
                [
                    distribution("First token", "Requests by time.", names.FIRST_TOKEN, "s"),
                    distribution("Between tokens", "Tokens by gap.", names.INTER_TOKEN, "s"),
                    distribution("Prompts", "By tokens.", names.PROMPT_SIZE, "none"),
                    distribution("Answers", "Choices by tokens.", names.OUTPUT_SIZE, "none"),
                ],
            ),
        ],
    )
