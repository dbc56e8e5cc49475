"""How long DeepSeek-V3.2 and V3.2-Speciale think: the report's output tokens by benchmark.

Source: DeepSeek-V3.2 report, Table 3, "Benchmark performance and efficiency of reasoning models",
columns "DeepSeek-V3.2 Thinking" and "DeepSeek-V3.2 Speciale": each cell holds the score and, in
parentheses, the output tokens in thousands.
"""

from __future__ import annotations

from typing import Literal

Variant = Literal["v3.2", "speciale"]

OUTPUT_TOKENS: dict[Variant, dict[str, int]] = {
    "v3.2": {
        "AIME 2025": 16_000,
        "HMMT Feb 2025": 19_000,
        "HMMT Nov 2025": 18_000,
        "IMOAnswerBench": 27_000,
        "LiveCodeBench": 16_000,
        "Codeforces": 42_000,
        "GPQA Diamond": 7_000,
        "HLE": 21_000,
    },
    "speciale": {
        "AIME 2025": 23_000,
        "HMMT Feb 2025": 27_000,
        "HMMT Nov 2025": 25_000,
        "IMOAnswerBench": 45_000,
        "LiveCodeBench": 27_000,
        "Codeforces": 77_000,
        "GPQA Diamond": 16_000,
        "HLE": 35_000,
    },
}
QUESTION_TOKENS = 300
"""Ours: the report does not say how long the questions are."""
