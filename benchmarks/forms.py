"""Prefill in each of its two forms: where a machine should change from one to the other.

Up to the break-even position `--attention auto` expands keys and values per head and masks those
that were not selected; behind it, queries are absorbed and attend to the gathered latents.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tqdm import tqdm

from benchmarks.step import Clock, load, measure_prefill
from engine.loading import Replica

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
STEP_TOKENS = 512
_BREAK_EVENS = {"expanded": 1 << 30, "absorbed": 0}


class FormTimes(msgspec.Struct, frozen=True):
    """One prompt alone in the server, prefilled in steps of STEP_TOKENS."""

    context: int
    expanded_s: float
    """Form `masked_mha`."""
    absorbed_s: float
    """Form `mqa`."""
    chosen: str
    """The form that `--attention auto` takes at the prompt's last token."""


def over_forms(
    folder: Path, contexts: Sequence[int], *, repeats: int, clock: Clock, threads: int
) -> list[FormTimes]:
    """Returns both forms' prefill times; the forms take turns, each figure is a median."""
    replica = load(
        folder, sequences=1, tokens=max(contexts) + 1, step_tokens=STEP_TOKENS, threads=threads
    )
    forms = replica.scheduler.config.forms
    found = []
    for context in tqdm(contexts, desc="forms of prefill", leave=False):
        times: dict[str, list[float]] = {form: [] for form in _BREAK_EVENS}
        for _ in range(repeats):
            for form, break_even in _BREAK_EVENS.items():
                times[form].append(_prefill_s(replica, break_even, context, clock))
        chosen = "absorbed" if forms.form(context - 2, 2) == "mqa" else "expanded"
        medians = {f"{form}_s": statistics.median(each) for form, each in times.items()}
        found.append(FormTimes(context, **medians, chosen=chosen))
    return found


def _prefill_s(replica: Replica, break_even: int, context: int, clock: Clock) -> float:
    config = replica.scheduler.config
    forms = msgspec.structs.replace(config.forms, break_even_tokens=break_even)
    config = msgspec.structs.replace(config, forms=forms)
    return measure_prefill(replica, batch=1, context=context, repeats=1, clock=clock, config=config)
