"""Is it well, how much does it do, what does it cost."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from api.metrics import names
from deploy.grafana.panels import Query, board, figure, lines, quantile, rate, read, total


def make() -> Dashboard:
    """Returns the board."""
    return board(
        "overview",
        "Overview",
        "Whether the server is well, what it does and what that costs.",
        [
            (
                "Now",
                [
                    figure("Engines up", "That answer.", total(names.ENGINE_UP), "none"),
                    figure("Running", "Sequences with a slot.", total(names.RUNNING), "none"),
                    figure("Waiting", "Sequences without.", total(names.WAITING), "none"),
                    figure(
                        "Output",
                        "Sampled tokens.",
                        f"{rate(names.INTER_TOKEN, part='count')} + {rate(names.FIRST_TOKENS)}",
                        "suffix: tok/s",
                    ),
                    figure(
                        "First token p99",
                        "From a request's arrival.",
                        quantile(0.99, names.FIRST_TOKEN),
                        "s",
                    ),
                    figure(
                        "Inter-token p99",
                        "Where the engine samples.",
                        quantile(0.99, names.INTER_TOKEN),
                        "s",
                    ),
                ],
            ),
            (
                "Traffic",
                [
                    lines(
                        "Tokens",
                        "By phase and source; cached prompt tokens need no computing.",
                        [Query(rate(names.TOKENS, "phase", "source"), "{{phase}} {{source}}")],
                        "suffix: tok/s",
                    ),
                    lines(
                        "Sequences",
                        "With and without a slot.",
                        [
                            Query(total(names.RUNNING), "running"),
                            Query(total(names.WAITING), "waiting"),
                        ],
                        "none",
                    ),
                    lines(
                        "Pages in use",
                        "Share of the cache that running requests hold.",
                        [Query(read(names.PAGE_USAGE), "{{instance}}")],
                        "percentunit",
                    ),
                ],
            ),
            (
                "Ends",
                [
                    lines(
                        "Finished choices",
                        "By reason; abort: the client left.",
                        [Query(rate(names.FINISHED, "finish_reason"), "{{finish_reason}}")],
                        "suffix: /s",
                    ),
                    lines(
                        "Refusals",
                        "Requests answered with an error, by its code.",
                        [Query(rate(names.REFUSALS, "reason"), "{{reason}}")],
                        "suffix: /s",
                    ),
                    lines(
                        "Answers",
                        "By class of HTTP status.",
                        [Query(rate(names.HTTP_REQUESTS, "code"), "{{code}}")],
                        "suffix: /s",
                    ),
                    lines(
                        "Answers by route",
                        "Everything a client can call; probes are not counted.",
                        [Query(rate(names.HTTP_REQUESTS, "route"), "{{route}}")],
                        "suffix: /s",
                        width=12,
                    ),
                    lines(
                        "Requests in flight",
                        "Open answers, streams included.",
                        [Query(total(names.HTTP_IN_FLIGHT), "in flight")],
                        "none",
                        width=12,
                    ),
                ],
            ),
        ],
    )
