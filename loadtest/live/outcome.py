"""Everything that a run has to say: what was asked, what was seen, and whether it is enough."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadtest.live.figures import Figures
from loadtest.live.verdict import Verdict


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes, and what text and report show."""

    begun: str
    """Date and time, with the zone."""
    server: str
    model: str
    plan: str
    """One line: what was sent."""
    command: str
    versions: dict[str, str]
    failures: tuple[str, ...]
    """Errors of the load generator itself."""
    warnings: tuple[str, ...]
    """What makes the figures less than they seem."""
    figures: Figures
    verdict: Verdict


def warnings(
    figures: Figures, failures: Sequence[str] = (), *, interrupted: bool
) -> tuple[str, ...]:
    """Returns what a reader must know before the figures. failures: of the load generator."""
    found = []
    if failures:
        times = "once" if len(failures) == 1 else f"{len(failures):,} times"
        found.append(
            f"The load generator itself failed {times} and stopped sending: the figures are of the "
            f"part that ran, and the sessions that broke off are not the server's fault. The first "
            f"error was {failures[0]}"
        )
    elif interrupted:
        found.append("The run was interrupted: the figures are of the part that ran.")
    window, whole = figures.window, figures.all
    if not whole.answered:
        found.append("No request that was sent in the steady-state window was answered.")
        return tuple(found)
    if not window.steady:
        found.append(
            f"Not steady: {window.growth:.1f} times as many requests were in flight in the last "
            "third of the window as in the first. The server does not keep up with this load, and "
            "latencies grow with the length of the run."
        )
    if figures.uncounted:
        found.append(
            f"The server did not count the tokens of {figures.uncounted:,} answers; each chunk was "
            "taken for one token."
        )
    if figures.lag.p99.value > LAG_LIMIT_S:
        found.append(
            f"The load generator was late itself: {1000 * figures.lag.p99.value:.1f} ms at p99, "
            f"above {1000 * LAG_LIMIT_S:g} ms, so latencies are no more exact than that. "
            + (
                "It computed meanwhile: give it fewer streams."
                if figures.computing.p99.value > LAG_LIMIT_S
                else "It was ready and waited for a core: give it one of its own."
            )
        )
    if whole.errors.get("unfinished"):
        found.append(
            f"{whole.errors['unfinished']:,} requests were still running when the run ended; they "
            "count as failed."
        )
    if whole.asked_calls and whole.calls < 0.9 * whole.asked_calls:
        found.append(
            f"Only {whole.calls:,} of {whole.asked_calls:,} answers held the tool call that was "
            "asked for, so tool loops are shorter than the profile means them to be."
        )
    return tuple(found)


LAG_LIMIT_S = 0.010
"""p99 of the load generator's own lag, above which its figures are doubtful."""
