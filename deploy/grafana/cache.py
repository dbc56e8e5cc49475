"""What the pages hold, and whose reasoning they keep."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from api.metrics import names
from deploy.grafana.panels import Query, board, figure, lines, rate, ratio, total


def make() -> Dashboard:
    """Returns the board."""
    cached = rate(names.TOKENS, where='source="cached"')
    prompts = rate(names.TOKENS, where='phase="prefill",source!="pre_warmed"')
    return board(
        "cache",
        "Cache and retention",
        "What the pages hold, what prompts find there, and which reasoning is kept.",
        [
            (
                "Pages",
                [
                    lines(
                        "Pages by state",
                        "live: in use; awaited: a tool loop comes back; stable: a prefix; dead: "
                        "reasoning that nobody will read again; free. Together all there are.",
                        [Query(total(names.PAGES, "state"), "{{state}}")],
                        "none",
                        width=12,
                        stacked=True,
                    ),
                    lines(
                        "Evictions",
                        "Idle pages given up, by what they were. Awaited ones mean that tool loops "
                        "compute their context again.",
                        [Query(rate(names.EVICTED, "state"), "{{state}}")],
                        "suffix: pages/s",
                    ),
                    figure(
                        "Preemptions",
                        "Running sequences whose pages others needed, per second.",
                        rate(names.PREEMPTIONS),
                        "none",
                    ),
                ],
            ),
            (
                "Prefixes",
                [
                    lines(
                        "Prefix hits",
                        "Share of prompt tokens found in the cache.",
                        [Query(ratio(cached, prompts), "hits")],
                        "percentunit",
                    ),
                    lines(
                        "Prompt tokens",
                        "Computed, found, or computed before they were asked for.",
                        [
                            Query(
                                rate(names.TOKENS, "source", where='phase="prefill"'), "{{source}}"
                            )
                        ],
                        "suffix: tok/s",
                        stacked=True,
                    ),
                    lines(
                        "Backlog",
                        "Prompt tokens that still have to be computed.",
                        [Query(total(names.BACKLOG), "tokens")],
                        "none",
                    ),
                ],
            ),
            (
                "Reasoning",
                [
                    lines(
                        "Reasoning at the end of turns",
                        "Kept for a tool loop, or dropped with the next user message.",
                        [Query(rate(names.ENDED_REASONING, "fate"), "{{fate}}")],
                        "suffix: tok/s",
                    ),
                    lines(
                        "Restored reasoning",
                        "Put back into prompts whose client had dropped it.",
                        [Query(rate(names.RESTORED_REASONING), "restored")],
                        "suffix: tok/s",
                    ),
                    lines(
                        "Pre-warming",
                        "Computed in idle steps for the next message, and found by it.",
                        [
                            Query(rate(names.PRE_WARMED), "computed"),
                            Query(rate(names.PRE_WARM_HITS), "hit"),
                            Query(total(names.PRE_WARMS), "turns waiting"),
                        ],
                        "none",
                    ),
                ],
            ),
        ],
    )
