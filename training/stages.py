"""The recipe: every stage of training, in the order of the DeepSeek-V3.2 report."""

from __future__ import annotations

import msgspec

from training.attention import AttentionMode
from training.data import Mix


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
    vocab_size: int
    corpus_cases: int
    stages: tuple[Stage, ...]
    last_dense_stage: str


RECALL = Mix(facts=0.85, chat=0.15, fact_count=(2, 5), questions=(2, 5), thinking=0.4)
RECIPE = Recipe(
    seed=20,
    vocab_size=3072,
    corpus_cases=1500,
    stages=(
        Stage(name="recall", steps=1200, rows=24, length_tokens=128, mix=RECALL, mtp_rows=6),
    ),
    last_dense_stage="yarn",
)
