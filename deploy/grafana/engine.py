"""Steps, their prediction, and the two processes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from api.metrics import names
from deploy.grafana.panels import (
    Query,
    board,
    distribution,
    lines,
    mean,
    quantile,
    rate,
    ratio,
    read,
    total,
)

RESTARTS = {"engine": names.ENGINE_RESTARTS, "API": names.API_RESTARTS}


def make() -> Dashboard:
    """Returns the board."""
    share = "{{phase}}"
    executing = rate(names.STEP_SECONDS, part="sum")
    return board(
        "engine",
        "Engine",
        "Steps and how well they are predicted; memory and the processes.",
        [
            (
                "Steps",
                [
                    lines(
                        "Step p99",
                        "Execution; prefill: any row prefills.",
                        [Query(quantile(0.99, names.STEP_SECONDS, "phase"), share)],
                        "s",
                    ),
                    lines(
                        "Step, measured and predicted",
                        "Means. The scheduler plans by the prediction.",
                        [
                            Query(mean(names.STEP_SECONDS, "phase"), f"{share} measured"),
                            Query(
                                ratio(
                                    rate(names.STEP_PREDICTED, "phase"),
                                    rate(names.STEP_SECONDS, "phase", part="count"),
                                ),
                                f"{share} predicted",
                            ),
                        ],
                        "s",
                    ),
                    lines(
                        "Error of the prediction",
                        "Median of |predicted - measured| / measured.",
                        [Query(quantile(0.5, names.STEP_ERROR, "phase"), share)],
                        "percentunit",
                    ),
                    lines(
                        "Steps",
                        "Per second.",
                        [Query(rate(names.STEP_SECONDS, "phase", part="count"), share)],
                        "suffix: /s",
                    ),
                    lines(
                        "Overhead",
                        "Share of the engine's time that planning and taking tokens in takes.",
                        [
                            Query(
                                ratio(
                                    rate(names.STEP_OVERHEAD),
                                    f"({rate(names.STEP_OVERHEAD)} + {executing})",
                                ),
                                "overhead",
                            )
                        ],
                        "percentunit",
                    ),
                    lines(
                        "Backlog drains",
                        "Tokens per second, as admission reckons.",
                        [Query(total(names.DRAIN_RATE), "tokens")],
                        "suffix: tok/s",
                    ),
                    distribution("Tokens per step", "Steps by size.", names.STEP_SIZE, "none"),
                    distribution("Seconds per step", "Steps by time.", names.STEP_SECONDS, "s"),
                ],
            ),
            (
                "Processes",
                [
                    lines(
                        "Since the engine's last word",
                        "It reports four times a second between steps.",
                        [Query(read(names.SNAPSHOT_AGE), "{{instance}}")],
                        "s",
                        width=6,
                    ),
                    lines(
                        "Engine memory",
                        "The memory equation.",
                        [Query(total(names.MEMORY, "use"), "{{use}}")],
                        "bytes",
                        width=6,
                        stacked=True,
                    ),
                    lines(
                        "API memory",
                        "Resident, of the processes that speak HTTP.",
                        [Query(read(names.API_RESIDENT), "{{instance}}")],
                        "bytes",
                        width=6,
                    ),
                    lines(
                        "API processor",
                        "Cores that the processes that speak HTTP use.",
                        [Query(rate(names.API_PROCESSOR, "instance"), "{{instance}}")],
                        "none",
                        width=6,
                    ),
                    lines(
                        "Processes started anew",
                        "Within the hour, in place of one that died or was silent for too long.",
                        [
                            Query(f"increase({read(restarts)}[1h])", f"{{{{instance}}}} {who}")
                            for who, restarts in RESTARTS.items()
                        ],
                        "none",
                        width=6,
                    ),
                    lines(
                        "Scrape",
                        "What writing these metrics takes; others are served in between.",
                        [Query(read(names.SCRAPE_SECONDS), "{{instance}}")],
                        "s",
                        width=6,
                    ),
                    lines(
                        "Ready",
                        "1: requests are taken. Draining: 1 from a signal to stop until the end.",
                        [
                            Query(read(names.READY), "ready {{instance}}"),
                            Query(read(names.DRAINING), "draining {{instance}}"),
                        ],
                        "none",
                        width=12,
                    ),
                ],
            ),
        ],
    )
