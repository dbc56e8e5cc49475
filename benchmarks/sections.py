"""What `winnow bench` measures, one table each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from benchmarks import context as contexts
from benchmarks import forms as forms_of_prefill
from benchmarks import peers, serving
from benchmarks.profile import OperatorTime, operators
from benchmarks.report import milliseconds, table
from benchmarks.step import (
    Clock,
    StepTimes,
    decode_stopwatch,
    drain,
    load,
    measure_decode,
    measure_prefill,
)
from engine.config import EngineConfig
from engine.model_config import ModelConfig
from scheduler.request import Sampling

PROFILED_STEPS = 20
WARM_UP_TOKENS = 16


class Section(msgspec.Struct, frozen=True):
    """One result: a title, Markdown tables and the numbers behind them."""

    title: str
    text: str
    results: Sequence[Any]


class StepLine(msgspec.Struct, frozen=True):
    """A decode step and a prefill of one batch and context."""

    batch: int
    context: int
    decode: StepTimes
    prefill_s: float | None
    operators: list[OperatorTime]


def steps(
    folder: Path,
    *,
    batches: Sequence[int],
    context_tokens: Sequence[int],
    count: int,
    clock: Clock,
    temperature: float,
    repeats: int,
    profile_top: int,
    **settings: Any,
) -> Section:
    """`count` decode steps and `repeats` prefills, taken apart; profile_top: operators listed."""
    lines = []
    for context in context_tokens:
        tokens = context + count + PROFILED_STEPS + WARM_UP_TOKENS
        replica = load(folder, sequences=max(batches), tokens=tokens, **settings)
        for batch in batches:
            shape: dict[str, Any] = {"batch": batch, "context": context, "clock": clock}
            times = measure_decode(replica, **shape, steps=count, temperature=temperature)
            prefill_s = measure_prefill(replica, **shape, repeats=repeats) if repeats else None
            dearest = []
            if profile_top:
                endless = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)
                watch = decode_stopwatch(replica, **shape, sampling=endless)
                dearest = operators(watch, PROFILED_STEPS, top=profile_top)
                drain(watch.scheduler, watch.runner)
            lines.append(StepLine(batch, context, times, prefill_s, dearest))
    text = [f"{clock} time, ms; a step is forward + outside", _step_table(lines)]
    for line in lines:
        if line.operators:
            text += [f"Decode, batch {line.batch}, context {line.context}:"]
            text += [_operator_table(line.operators)]
    return Section("One step", "\n\n".join(text), lines)


def _step_table(lines: list[StepLine]) -> str:
    header = ["batch x context", "step", "forward", "outside", "plan", "batch", "sample", "commit"]
    header += ["tokens/s", "prefill"]
    rows = []
    for line in lines:
        d = line.decode
        parts = (d.step_s, d.forward_s, d.overhead_s, d.plan_s, d.batch_s, d.sample_s, d.commit_s)
        prefill = "" if line.prefill_s is None else milliseconds(line.prefill_s)
        rows.append(
            [
                f"{line.batch} x {line.context}",
                *map(milliseconds, parts),
                f"{line.batch / d.step_s:.0f}",
                prefill,
            ]
        )
    return table(header, rows)


def _operator_table(dearest: list[OperatorTime]) -> str:
    total = sum(operator.self_us for operator in dearest)
    calls = sum(operator.calls for operator in dearest)
    rows = [
        [o.name, o.shapes[:60], f"{o.calls:.0f}", f"{o.self_us:.0f}", f"{o.self_us / total:.1%}"]
        for o in dearest
    ]
    rows.append(["all", "", f"{calls:.0f}", f"{total:.0f}", "100.0%"])
    return table(["operator", "shapes", "calls", "us", "share"], rows)


def line_up(
    folder: Path, exported: Path, *, sequences: int, tokens: int, threads: int, **settings: Any
) -> list[peers.Peer]:
    """Returns Winnow, Winnow with --batch-invariant, transformers, and llama.cpp when installed.

    exported: `folder` as `export_float32` writes it. Each takes `sequences` of `tokens` tokens;
    Winnow's also what they decode while others' prompts take a step for every few tokens.
    """
    ahead = sequences * -(-tokens // EngineConfig().prefill_floor_tokens)
    room: dict[str, Any] = {"sequences": sequences, "tokens": tokens + ahead, "threads": threads}
    found: list[peers.Peer] = [
        peers.Winnow("winnow", load(folder, **room, **settings)),
        peers.Winnow(
            "winnow, batch-invariant", load(folder, **room, **settings, batch_invariant=True)
        ),
        peers.Transformers(exported),
    ]
    if peers.llama_cpp_found(ModelConfig.from_folder(exported)):
        from benchmarks.llama_cpp import LlamaCpp

        found.append(LlamaCpp(exported, sequences=sequences, tokens=tokens, threads=threads))
    return found


def generation(
    folder: Path,
    *,
    batches: list[int],
    prompt_tokens: list[int],
    tokens: int,
    repeats: int,
    threads: int,
    **settings: Any,
) -> Section:
    """Greedy generation beside the peers. Raises ParityError before anything is timed."""
    with TemporaryDirectory() as written:
        everyone = line_up(
            folder,
            peers.export_float32(folder, Path(written)),
            sequences=max(batches),
            tokens=max(prompt_tokens) + tokens + WARM_UP_TOKENS,
            threads=threads,
            **settings,
        )
        found = peers.compare(
            everyone,
            ModelConfig.from_folder(folder).vocab_size,
            batches=batches,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            repeats=repeats,
        )
    ours = {(g.batch, g.prompt_tokens): g for g in found if g.who == "winnow"}
    rows = []
    for g in found:
        own = ours[g.batch, g.prompt_tokens]
        rows.append(
            [
                f"{g.batch} x {g.prompt_tokens}, {g.who}",
                milliseconds(g.prefill_s),
                f"{g.prefill_s / own.prefill_s:.2f}x",
                milliseconds(g.decode_step_s),
                " to ".join(milliseconds(end(g.decode_step_runs_s)) for end in (min, max)),
                f"{g.tokens_per_s:.0f}",
                f"{g.decode_step_s / own.decode_step_s:.2f}x",
            ]
        )
    header = ["batch x prompt", "prefill, ms", "winnow's", "decode step, ms", "of all repeats"]
    header.append("tokens/s")
    parted = [f"{g.parted} in {g.batch} x {g.prompt_tokens}, {g.who}" for g in found if g.parted]
    text = "Greedy tokens were equal"
    if parted:
        text += f", but for few sequences behind tied index scores: {'; '.join(parted)}"
    text += ".\n\n" + table([*header, "winnow's"], rows)
    return Section("Generation", text, found)


def over_http(
    folder: Path,
    *,
    clients: Sequence[int],
    requests: int,
    prompt_tokens: int,
    tokens: int,
    alone: bool,
    threads: int,
) -> Section:
    """Clients that stream chat answers, beside `transformers serve` unless `alone`."""
    found = []
    with TemporaryDirectory() as written:
        servers = [("winnow", folder, serving.winnow_command(folder, threads), "/ready")]
        if not alone:
            theirs = peers.export_float32(folder, Path(written))
            serving.add_chat_template(theirs)
            command = serving.transformers_command(theirs)
            servers.append(("transformers serve", theirs, command, "/health"))
        for who, served, command, ready in servers:
            name = served.resolve().name if who == "winnow" else str(served)
            news = serving.messages(served, prompt_tokens)
            with serving.server(command, ready, threads=threads) as address:
                for count in clients:
                    shape = {"clients": count, "requests": requests, "tokens": tokens}
                    found.append(
                        serving.measure(
                            who, address, name, news, prompt_tokens=prompt_tokens, **shape
                        )
                    )
    ours = {one.clients: one for one in found if one.who == "winnow"}
    rows = [
        _serving_row(one, ours[one.clients]) for one in sorted(found, key=lambda one: one.clients)
    ]
    text = (
        f"Messages of {prompt_tokens} tokens, answers of up to {tokens}, {requests} requests a "
        "client. All clients start together: their first requests are the burst.\n\n"
    )
    header = ["", "first token in the burst, p50, ms", "winnow's", "max, ms", "winnow's"]
    header += ["later, p50, ms", "winnow's", "tokens/s", "winnow's"]
    return Section("Over HTTP", text + table(header, rows), found)


def _serving_row(one: serving.ServingTimes, ours: serving.ServingTimes) -> list[str]:
    row = [f"{one.clients} clients, {one.who}"]
    for theirs_s, own_s in (
        (one.burst_p50_s, ours.burst_p50_s),
        (one.burst_max_s, ours.burst_max_s),
        (one.later_p50_s, ours.later_p50_s),
    ):
        if theirs_s is None or own_s is None:
            row += ["", ""]
        else:
            row += [milliseconds(theirs_s), f"{theirs_s / own_s:.2f}x"]
    speed = one.tokens_per_s
    return [*row, f"{speed:.0f}", f"{speed / ours.tokens_per_s:.2f}x"]


def over_context(
    folder: Path,
    *,
    context_tokens: list[int],
    count: int,
    clock: Clock,
    plot: Path | None,
    caption: str,
    **settings: Any,
) -> Section:
    """The decode step of one sequence as its context grows, sparse and dense."""
    found = contexts.over_context(folder, context_tokens, steps=count, clock=clock, **settings)
    if plot:
        contexts.plot(found, plot, caption)
    return Section("A decode step over the context", contexts.growth_table(found), found)


def over_forms(
    folder: Path, *, context_tokens: list[int], repeats: int, clock: Clock, threads: int
) -> Section:
    """Prefill of one prompt in each of its forms."""
    found = forms_of_prefill.over_forms(
        folder, context_tokens, repeats=repeats, clock=clock, threads=threads
    )
    rows = [
        [
            f"{one.context:,}",
            milliseconds(one.expanded_s),
            milliseconds(one.absorbed_s),
            f"{one.expanded_s / one.absorbed_s:.2f}",
            one.chosen,
        ]
        for one in found
    ]
    header = ["prompt", "expanded, ms", "absorbed, ms", "ratio", "chosen at its end"]
    return Section("Forms of prefill", f"{clock} time\n\n{table(header, rows)}", found)
