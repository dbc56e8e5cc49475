"""Accuracy on held-out cases, through the serving engine: `python -m training.evaluate`."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from api.chat.encoding import Encoder
from engine.llm import LLM
from engine.messages import Sampling
from training.agent import Generate, Outcome, play
from training.data import Mix, draw_case
from training.stages import EMBEDDED, EVALUATION, LONG
from training.tasks.case import Case

LENGTHS = (256, 512, 1024)


class Cell(msgspec.Struct, frozen=True):
    """One row of the table."""

    task: str
    thinking: bool
    up_to_tokens: int
    cases: int
    accuracy: float


def draw_cases(
    encoder: Encoder, mixes: dict[str, dict[int, Mix]], per_cell: int, seed: int
) -> list[tuple[Case, bool]]:
    """`per_cell` held-out cases for each task, prompt length and mode, the same for one seed.

    A case belongs to the shortest length of LENGTHS that its prompt fits.
    """
    drawn: list[tuple[Case, bool]] = []
    for task, by_length in mixes.items():
        for length, mix in by_length.items():
            shorter = max((one for one in LENGTHS if one < length), default=0)
            for thinking in (False, True):
                rng = Random(f"evaluation {seed} {task} {length} {thinking}")
                found = 0
                while found < per_cell:
                    case = draw_case(rng, mix, "held-out")
                    tools = case.tools or None
                    prompt = encoder.encode(case.given, tools=tools, thinking=thinking)
                    if case.task == task and shorter < len(prompt.token_ids) <= length:
                        drawn.append((case, thinking))
                        found += 1
    return drawn


def spelled(mixes: dict[str, dict[int, Mix]], usual: float) -> dict[str, dict[int, Mix]]:
    """The mixes with that share of tool and parameter names in their usual spelling."""
    return {
        task: {length: msgspec.structs.replace(mix, usual=usual) for length, mix in lengths.items()}
        for task, lengths in mixes.items()
    }


def engine_generate(llm: LLM, encoder: Encoder) -> Generate:
    """Greedy generation by the engine."""

    def generate(prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        sampling = Sampling(
            max_tokens=max_new_tokens, temperature=0.0, stop_token_ids=encoder.stop_token_ids
        )
        return [one.token_ids for one in llm.generate(list(prompts), sampling, progress=True)]

    return generate


def tabulate(outcomes: Sequence[Outcome]) -> list[Cell]:
    """Accuracy by task, mode and prompt length."""
    cells: dict[tuple[str, bool, int], list[bool]] = defaultdict(list)
    for one in outcomes:
        length = next(limit for limit in LENGTHS if one.prompt_tokens <= limit)
        cells[(one.task, one.thinking, length)].append(one.right)
    return [
        Cell(task, thinking, length, len(right), sum(right) / len(right))
        for (task, thinking, length), right in sorted(cells.items())
    ]


def show(cells: Sequence[Cell]) -> str:
    """The table as text: one line for each task and mode, one column for each length."""
    lines = [f"{'task':10} {'mode':8} " + " ".join(f"{'<=' + str(one):>12}" for one in LENGTHS)]
    for task, thinking in sorted({(cell.task, cell.thinking) for cell in cells}):
        entries = []
        for length in LENGTHS:
            here = [
                cell
                for cell in cells
                if (cell.task, cell.thinking, cell.up_to_tokens) == (task, thinking, length)
            ]
            entries.append(f"{here[0].accuracy:6.1%} ({here[0].cases:3})" if here else "-")
        mode = "thinking" if thinking else "chat"
        lines.append(f"{task:10} {mode:8} " + " ".join(f"{entry:>12}" for entry in entries))
    for task in (*sorted({cell.task for cell in cells}), "all"):
        here = [cell for cell in cells if task in (cell.task, "all")]
        total = sum(cell.cases for cell in here)
        right = sum(cell.accuracy * cell.cases for cell in here)
        lines.append(f"{task} {right / total:.1%} of {total} cases")
    return "\n".join(lines)


def main() -> None:
    """Command line of `python -m training.evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint folder (default: the embedded one)")
    parser.add_argument("--cases", type=int, default=20, help="per task, mode and prompt length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attention", default="auto", choices=("auto", "sparse", "dense"))
    parser.add_argument(
        "--usual",
        type=float,
        default=LONG.usual,
        help="share of tool and parameter names in their usual spelling; the others have any, "
        "that one included (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="also write every outcome to this file")
    parser.add_argument("--failures", type=int, default=0, help="print so many failed cases")
    arguments = parser.parse_args()
    encoder = Encoder.from_folder(Path(arguments.model) if arguments.model else EMBEDDED)
    llm = LLM(arguments.model, attention=arguments.attention)
    mixes = spelled(EVALUATION, arguments.usual)
    cases = draw_cases(encoder, mixes, arguments.cases, arguments.seed)
    outcomes = play(cases, encoder, engine_generate(llm, encoder))
    cells = tabulate(outcomes)
    print(show(cells))
    failed = [(case, one) for (case, _), one in zip(cases, outcomes, strict=True) if not one.right]
    for case, one in failed[: arguments.failures]:
        wanted = case.turns[-1].replies[-1].content
        print(
            f"\n{one.task}, {one.prompt_tokens} tokens: {case.turns[-1].user[-80:]!r}\n"
            f"  said   {one.said!r}\n  wanted {wanted!r}"
        )
    if arguments.json:
        report = {"cells": cells, "outcomes": outcomes}
        arguments.json.write_text(json.dumps(msgspec.to_builtins(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
