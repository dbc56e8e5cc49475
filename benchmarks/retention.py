"""What retention saves and what overload does: `python -m benchmarks.retention`.

Agents in conversations of several turns, each of tool steps and an answer, served in the simulator
by the scheduler that serves for real, once by plain LRU over the same pages, once with retention,
once with pre-warming as well. All figures of one table come from one run of this command and from
the same conversations.

working set   every page that the open conversations have, in each form that was computed of it
computed again, per request   tokens in steps that served a request, first computation not counted
utilisation   of the work that steps as long as the inter-token target have room for, with room
              for all pages and nothing pre-warmed
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tqdm import tqdm

from benchmarks.report import describe, machine, table
from cost_model.machines import machine_named
from cost_model.shape import shape_named
from loadtest.conversations import ConversationShape
from loadtest.replica import Settings
from loadtest.studies import (
    FIRST_TOKEN_TARGET_S,
    Group,
    Overload,
    Run,
    Stream,
    agents_run,
    curve,
    overload_run,
)

THIRD = 1 / 3
SHARES = (0.2, THIRD, 0.5, 0.6, 0.75, 1.0)
CHAT_SHARES = (THIRD, 1.0)
AGENT_FACTORS = (0.5, 1.0, 1.5)
LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
AGENTS = ConversationShape()
CHAT = ConversationShape(
    tool_steps=(0, 0), reasoning_tokens=(0, 0), user_tokens=(200, 2000), answer_tokens=(200, 800)
)
"""Where retention does not help: no reasoning and no tools, so no page dies or is awaited."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was run."""

    by_share: list[Run]
    by_agents: list[Run]
    chat: list[Run]
    overload: list[Overload]


def main(arguments: Sequence[str]) -> int:
    """Runs everything and prints it; returns the exit status."""
    options = _options().parse_args(list(arguments))
    group = Group(
        shape=shape_named(options.model),
        machine=machine_named(options.gpu),
        gpus=options.gpus,
        seed=options.seed,
        warm_up_s=options.warm_up,
        until_s=options.warm_up + options.duration,
    )
    print(describe(machine(["msgspec", "numpy"])))
    print(
        f"{group.gpus} x {group.machine.name}, {group.shape.name}; {options.agents} agents, seed "
        f"{group.seed}; {options.duration:g} s on the virtual clock after {group.warm_up_s:g} s\n"
    )
    if options.held:
        print(_held(agents_run(group, AGENTS, options.agents, "no pre-warm")))
        return 0
    begin_s = time.process_time()
    with tqdm(disable=None, unit="run") as bar:
        answer = run(group, options.agents, bar)
    show(answer)
    print(f"\n{time.process_time() - begin_s:,.0f} s of CPU time")
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(answer), indent=1))
    if options.plot is not None:
        from cost_model.plots import save
        from loadtest import plots

        save(plots.retention(answer.by_share, answer.by_agents, answer.chat, "chat"), options.plot)
    return 0


def run(group: Group, agents: int, bar: tqdm[None]) -> Answer:
    """Runs agents by cache size and by number, chats, and a stream at rising load."""

    def noted(one: Run) -> Run:
        bar.update()
        return one

    ample = noted(agents_run(group, AGENTS, agents, "no pre-warm"))
    by_share = [noted(one) for one in curve(group, AGENTS, ample, SHARES)]
    by_share += [ample, noted(agents_run(group, AGENTS, agents, "retention"))]
    by_agents: list[Run] = []
    for factor in AGENT_FACTORS:
        if factor == 1.0:
            by_agents += _third(by_share)
            continue
        more = noted(agents_run(group, AGENTS, round(factor * agents), "no pre-warm"))
        by_agents += [noted(one) for one in curve(group, AGENTS, more, [THIRD])]
    chats = noted(agents_run(group, CHAT, 2 * agents, "no pre-warm"))
    chat = [noted(one) for one in curve(group, CHAT, chats, CHAT_SHARES)]
    overload = []
    for load in LOADS:
        overload.append(overload_run(group, Stream(), load, Settings()))
        bar.update()
    return Answer(by_share=by_share, by_agents=by_agents, chat=chat, overload=overload)


def show(answer: Answer) -> None:
    """Prints tables and the ratios this project set itself numbers for."""
    third = {one.policy: one for one in _third(answer.by_share)}
    roomy_plain, roomy_warm = answer.by_share[-2:]
    lru, plain, warm = (third[name] for name in ("plain LRU", "no pre-warm", "retention"))
    peak = max(one.report.goodput_tokens_per_s for one in answer.overload)
    worst = answer.overload[-1].report
    lines = [
        (
            "computed again, of plain LRU: with pre-warm",
            _ratio(warm.recomputed_per_request, lru.recomputed_per_request),
            "<= 0.60",
        ),
        (
            "  without pre-warm",
            _ratio(plain.recomputed_per_request, lru.recomputed_per_request),
            "",
        ),
        (
            "first token of the user's next message, of that without pre-warm",
            _ratio(warm.user_first_token_s, plain.user_first_token_s),
            "<= 0.30",
        ),
        (
            "  with room for all pages",
            _ratio(roomy_warm.user_first_token_s, roomy_plain.user_first_token_s),
            "<= 0.30",
        ),
        (
            "p99 between tokens at 3x load, of the target",
            f"{worst.inter_token_s.p99 / worst.inter_token_target_s:.2f}",
            "<= 1.20",
        ),
        ("goodput at 3x load, of the peak", _ratio(worst.goodput_tokens_per_s, peak), ">= 0.90"),
        ("longest time to a refusal, ms", f"{1e3 * worst.longest_refusal_s:.1f}", "<= 50"),
        ("error of retry-after, median", f"{100 * worst.retry.p50:.0f} %", "<= 20 %"),
    ]
    print(table((f"cache for a third, {100 * lru.utilisation:.0f} % used", "", "target"), lines))
    print(f"\n{_held(roomy_plain)}")
    for name, runs in (
        ("by cache size", answer.by_share),
        ("by number of agents", answer.by_agents),
        ("chat without reasoning and tools: nothing dies, so nothing is gained", answer.chat),
    ):
        print(f"\n{name}\n")
        print(table(HEADER, [_line(one) for one in runs]))
    print(f"\nrequests that share nothing, first token wanted in {FIRST_TOKEN_TARGET_S:g} s\n")
    print(table(LOAD_HEADER, [_load_line(one) for one in answer.overload]))


HEADER = (
    "policy",
    "agents",
    "used",
    "cache",
    "live",
    "again per request",
    "pre-warmed",
    "cached",
    "user mean s",
    "user p50 s",
    "requests per s",
)
LOAD_HEADER = (
    "load",
    "requests",
    "refused",
    "in time",
    "goodput per s",
    "first p99 s",
    "gap p99 ms",
    "refusal ms",
    "retry error",
)


def _held(roomy: Run) -> str:
    """A table of what the pages of a working set are for, and what follows for a third of them."""
    whole = roomy.working_set_pages
    busy = roomy.live_pages + roomy.awaited_pages
    shares = (
        ("answers that run", roomy.live_pages),
        ("turns that wait for a tool", roomy.awaited_pages),
        ("users who think", roomy.asked_again_pages - busy),
        ("forms that nobody asks for again", whole - roomy.asked_again_pages),
    )
    lines = [(name, f"{pages / whole:.2f}") for name, pages in shares]
    wait_s = roomy.least_wait_s(THIRD * whole)
    lines.append(("least wait of a turn with a third of the pages, s", f"{wait_s:.1f}"))
    return table(("of the working set, with room for all pages", ""), lines)


def _third(runs: Sequence[Run]) -> list[Run]:
    return [one for one in runs if abs(one.cache_share - THIRD) < 0.01]


def _line(one: Run) -> list[str]:
    found = one.report
    user = found.first_token_s.get("user")
    done = max(1, found.completed)
    return [
        one.policy,
        f"{one.agents}",
        f"{100 * one.utilisation:.0f} %",
        f"{one.cache_share:.2f}",
        f"{one.live_pages / found.pages:.2f}",
        f"{one.recomputed_per_request:,.0f}",
        f"{found.pre_warmed_tokens / done:,.0f}",
        f"{100 * found.hit_rate:.0f} %",
        "" if user is None else f"{user.mean:.2f}",
        "" if user is None else f"{user.p50:.2f}",
        f"{found.completed / found.seconds:.2f}",
    ]


def _load_line(one: Overload) -> list[str]:
    found = one.report
    return [
        f"{one.load:g}",
        f"{found.requests:,}",
        f"{sum(found.refused.values()):,}",
        f"{100 * found.in_time:.0f} %",
        f"{found.goodput_tokens_per_s:,.0f}",
        f"{found.first_token_s['all'].p99:.2f}",
        f"{1e3 * found.inter_token_s.p99:.1f}",
        f"{1e3 * found.longest_refusal_s:.1f}",
        f"{100 * found.retry.p50:.0f} %" if found.retry.count else "",
    ]


def _ratio(value: float, of: float) -> str:
    return f"{value / of:.2f}" if of else "-"


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--model", default="v3.2")
    parser.add_argument("--agents", type=int, default=45)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=150.0, help="seconds left out")
    parser.add_argument("--duration", type=float, default=300.0, help="seconds measured")
    parser.add_argument(
        "--held", action="store_true", help="only print what the working set consists of"
    )
    parser.add_argument("--plot", type=Path, help="draw a .png or .svg")
    parser.add_argument("--json", type=Path, help="write everything that was run")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
