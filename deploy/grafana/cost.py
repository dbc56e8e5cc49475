"""What tokens cost, and what they should."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from api.metrics import names
from deploy.grafana.panels import Query, board, figure, lines, rate, ratio, read


def measured_usd_per_s() -> str:
    """Returns what the devices cost per second, by phase."""
    return f"{rate(names.GPU_SECONDS, 'phase')} * scalar(max({read(names.PRICE)})) / 3600"


def computed() -> str:
    """Returns computed tokens per second by phase, pre-warmed ones included."""
    return rate(names.TOKENS, "phase", where='source!="cached"')


def make() -> Dashboard:
    """Returns the board."""
    expected = rate(names.EXPECTED_COST, "phase")
    million = "1e6 * "
    return board(
        "cost",
        "Cost",
        "What tokens cost, measured in GPU-seconds, against the cost model at the same positions.",
        [
            (
                "Per million tokens",
                [
                    lines(
                        "Measured",
                        "GPU-seconds x price over the tokens that were computed.",
                        [Query(million + ratio(measured_usd_per_s(), computed()), "{{phase}}")],
                        "currencyUSD",
                    ),
                    lines(
                        "Expected",
                        "The cost model, each token where it stood in its context.",
                        [Query(million + ratio(expected, computed()), "{{phase}}")],
                        "currencyUSD",
                    ),
                    lines(
                        "Measured over expected",
                        "Does not depend on the mix of requests; with the report's model and "
                        "machine, expected is its figure 3.",
                        [Query(ratio(measured_usd_per_s(), expected), "{{phase}}")],
                        "none",
                        logarithmic=True,
                    ),
                ],
            ),
            (
                "Where tokens stand",
                [
                    lines(
                        "Expected by position",
                        "The cost model's curve: what a token costs at a position.",
                        [
                            Query(
                                f"max by (phase, position) ({read(names.EXPECTED_PRICE)})",
                                "{{phase}} at {{position}}",
                            )
                        ],
                        "currencyUSD",
                    ),
                    lines(
                        "Mean context",
                        "Tokens that a computed token can see.",
                        [
                            Query(
                                ratio(rate(names.CONTEXT_TOKENS, "phase"), computed()), "{{phase}}"
                            )
                        ],
                        "none",
                    ),
                    lines(
                        "Attended",
                        "Share of the context that the indexer selects.",
                        [
                            Query(
                                ratio(
                                    rate(names.SELECTED_TOKENS, "phase"),
                                    rate(names.CONTEXT_TOKENS, "phase"),
                                ),
                                "{{phase}}",
                            )
                        ],
                        "percentunit",
                    ),
                ],
            ),
            (
                "Where time goes",
                [
                    lines(
                        "Busy",
                        "Share of the time in which a phase computes.",
                        [Query(rate(names.GPU_SECONDS, "phase"), "{{phase}}")],
                        "percentunit",
                        width=7,
                        stacked=True,
                    ),
                    lines(
                        "FLOPs",
                        "Counted, by component.",
                        [Query(rate(names.MODEL_FLOPS, "component"), "{{component}}")],
                        "flops",
                        width=7,
                        stacked=True,
                    ),
                    lines(
                        "Spent",
                        "USD per hour that steps take, by phase.",
                        [Query(f"3600 * {measured_usd_per_s()}", "{{phase}}")],
                        "currencyUSD",
                        width=6,
                        stacked=True,
                    ),
                    figure(
                        "Price",
                        "Of one device and hour.",
                        f"max({read(names.PRICE)})",
                        "currencyUSD",
                    ),
                ],
            ),
        ],
    )
