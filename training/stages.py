"""The recipe: every stage of training, in the order of the DeepSeek-V3.2 report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from training.attention import AttentionMode
from training.config import ModelConfig
from training.data import Mix

EMBEDDED = Path(__file__).parents[1] / "engine" / "embedded" / "deepseek-v3.2-tiny"
"""The checkpoint folder that the recipe is for; its tokenizer and prompt texts are used."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of training. Rates are linear: warm-up, plateau, then decay over `decay` steps."""

    name: str
    steps: int
    rows: int
    length_tokens: int
    mix: Mix
    mode: AttentionMode = "dense"
    yarn: bool = False
    learns: str = "model"
    """"model": every weight (the indexer by its own loss); "indexer": nothing but the indexer."""
    matrix_rate: float = 4e-3
    vector_rate: float = 3e-3
    warmup: int = 20
    decay: int = 0
    final_factor: float = 0.1
    mtp_weight: float = 0.3
    mtp_rows: int = 2
    prompt_weight: float = 0.1
    balance_rate: float = 2e-3
    quantise: bool = False

    def factor(self, step: int) -> float:
        """What the rates are multiplied by at `step`."""
        rising = min(1.0, (step + 1) / max(self.warmup, 1))
        left = self.steps - step
        if left >= self.decay:
            return rising
        return rising * (self.final_factor + (1 - self.final_factor) * left / self.decay)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the weights, the code aside."""

    seed: int
    model: ModelConfig
    copying: bool = True
    """Start with the copying heads of `training.initialise`; their shape must fit."""
    corpus_seed: int
    corpus_cases: int
    stages: tuple[Stage, ...]
    last_dense_stage: str


RECALL = Mix(
    copy=0.25,
    facts=0.85,
    chat=0.15,
    fact_count=(2, 5),
    questions=(2, 5),
    unknown=0.2,
    thinking=0.5,
)
MAIN = Mix(
    copy=0.04,
    facts=0.27,
    chat=0.08,
    tools=0.45,
    mixed=0.2,
    fact_count=(2, 14),
    filler=(0, 3),
    questions=(2, 6),
    unknown=0.25,
    tool_count=(1, 3),
    tool_turns=(1, 4),
    chain=0.4,
    thinking=0.6,
)
LONG = Mix(
    facts=0.36,
    chat=0.04,
    tools=0.42,
    mixed=0.18,
    fact_count=(3, 50),
    filler=(0, 40),
    questions=(3, 9),
    unknown=0.25,
    tool_count=(1, 6),
    tool_turns=(2, 7),
    chain=0.4,
    usual=0.8,
    thinking=0.6,
)
FINAL = msgspec.structs.replace(
    LONG, copy=0.03, facts=0.42, tools=0.38, mixed=0.16, unknown=0.35, chain=0.45
)
RECIPE = Recipe(
    seed=21,
    model=ModelConfig(vocab_size=3072),
    corpus_seed=0,
    corpus_cases=1500,
    stages=(
        Stage(name="recall", steps=300, rows=24, length_tokens=128, mix=RECALL, mtp_rows=6),
        Stage(name="main", steps=600, rows=6, length_tokens=512, mix=MAIN, mtp_rows=2),
        Stage(
            name="answers",
            steps=1300,
            rows=6,
            length_tokens=512,
            mix=MAIN,
            mtp_weight=0.1,
            mtp_rows=2,
            prompt_weight=0.02,
            decay=1000,
            final_factor=0.35,
        ),
        Stage(
            name="yarn",
            steps=900,
            rows=4,
            length_tokens=1024,
            mix=LONG,
            yarn=True,
            mtp_weight=0.1,
            mtp_rows=2,
            matrix_rate=1.6e-3,
            vector_rate=1.2e-3,
            prompt_weight=0.02,
            decay=900,
            final_factor=0.4,
        ),
        Stage(
            name="warmup",
            steps=120,
            rows=4,
            length_tokens=1024,
            mix=LONG,
            yarn=True,
            mode="warmup",
            learns="indexer",
            matrix_rate=1e-2,
            vector_rate=3e-3,
            mtp_rows=2,
        ),
        Stage(
            name="sparse",
            steps=420,
            rows=4,
            length_tokens=1024,
            mix=FINAL,
            yarn=True,
            mode="sparse",
            mtp_weight=0.1,
            mtp_rows=2,
            matrix_rate=1.2e-3,
            vector_rate=8e-4,
            prompt_weight=0.02,
            decay=400,
            final_factor=0.02,
            quantise=True,
        ),
    ),
    last_dense_stage="yarn",
)


def _evaluation(kind: str, **shape: object) -> dict[int, Mix]:
    """The mixes that give prompts of one kind up to 256, 512 and 1024 tokens."""
    facts = {256: ((2, 14), (0, 6)), 512: ((8, 32), (0, 20)), 1024: ((20, 60), (10, 60))}
    base = Mix(questions=(1, 4), tool_turns=(1, 3), thinking=0.0)
    base = msgspec.structs.replace(base, **{kind: 1.0}, **shape)
    return {
        length: msgspec.structs.replace(base, fact_count=count, filler=filler)
        for length, (count, filler) in facts.items()
    }


def _tools(chain: float) -> dict[int, Mix]:
    return {
        512: Mix(tools=1.0, tool_count=(2, 4), tool_turns=(1, 2), chain=chain, usual=LONG.usual),
        1024: Mix(tools=1.0, tool_count=(3, 8), tool_turns=(2, 5), chain=chain, usual=LONG.usual),
    }


EVALUATION: dict[str, dict[int, Mix]] = {
    "chat": {256: Mix(chat=1.0)},
    "facts": _evaluation("facts", unknown=0.0),
    "unknown": _evaluation("facts", unknown=1.0),
    "tool": _tools(0.0),
    "chain": _tools(0.5),
    "mixed": {
        512: Mix(
            mixed=1.0,
            fact_count=(2, 12),
            questions=(2, 4),
            tool_count=(1, 3),
            usual=LONG.usual,
        ),
        1024: Mix(
            mixed=1.0,
            fact_count=(4, 40),
            questions=(3, 6),
            tool_count=(2, 5),
            filler=(0, 30),
            usual=LONG.usual,
        ),
    },
}
"""What `training.evaluate` draws: for each task, one mix for each longest prompt."""
