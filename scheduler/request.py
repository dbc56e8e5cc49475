"""What one generation asks for and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from scheduler.logprobs import TokenLogprobs
from scheduler.retention import Span
from scheduler.runs import Run

__all__ = ["FinishReason", "ReasoningBudget", "Sampling", "Sequence", "Span"]

FinishReason = Literal["stop", "length", "abort", "error"]


class ReasoningBudget(msgspec.Struct, frozen=True):
    """How long a choice may reason before it is made to answer."""

    max_tokens: int
    """Generated tokens after which `end_token` is the only one that can be sampled."""
    end_token: int
    also_ended_by: tuple[int, ...] = ()
    """Other tokens after which a choice reasons no more."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are drawn; the OpenAI fields and the extensions common to vLLM and SGLang.

    The API validates ranges at its edge and names the field; the engine trusts them.
    """

    max_tokens: int
    """Upper limit of generated tokens, at least 1."""
    temperature: float = 1.0
    """0 picks the most likely token (ties: the lowest id)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    seed: int = 0
    """Draws depend on (seed, choice, position) only, never on the batch."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    """Token id -> value added to its logit."""
    logprobs: int | None = None
    """None: no logprobs; n: the sampled token's and those of the n most likely."""
    min_tokens: int = 0
    """No stop token is sampled before this many tokens."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may be sampled; none: all may."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences of which the last token is not sampled behind the others."""
    reasoning: ReasoningBudget | None = None
    """For a prompt that ends in open reasoning."""
    prompt_logprobs: int | None = None
    """None: none; n: the log-probability of every prompt token but the first, and those of the n
    most likely at its place. The whole prompt is computed for the first choice, whatever of it is
    cached."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of one request: its tokens, its pages, and how many tokens are in the cache."""

    request_id: str
    choice: int
    prompt_ids: list[int]
    """Shared with whoever gave it; never changed."""
    sampling: Sampling
    root_key: bytes
    arrival: int
    keys: list[bytes] = field(default_factory=list)
    """Identity of each full page so far (scheduler.prefix)."""
    priority: int = 0
    tenant: str = ""
    continues: bool = False
    """It goes on with work whose pages are kept for it: a turn whose tools have answered, or what
    was preempted."""
    stop_tokens: frozenset[int] = frozenset()
    end_tokens: int = 0
    """Tokens, the prompt's included, after which it ends whatever it says."""

    prompt_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    """Generated tokens; the last one may not be in the cache yet."""
    output_limit: int = 0
    """Of them, by `end_tokens`."""
    computed_tokens: int = 0
    """Tokens whose latent and index key are in the cache, from the start."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of the prompt's tokens from the second on, as far as they are known; None: not wanted."""
    pages: list[int] = field(default_factory=list)
    run: Run | None = None
    """Its pages that the pool knows, all it holds of them; the last of the runs."""
    capacity_tokens: int = 0
    """Tokens that its pages hold."""
    published_pages: int = 0
    """Leading pages that the pool knows by their identity."""
    full_tokens: int = 0
    """Computed tokens at which the next page is full."""
    cached_tokens: int | None = None
    """Prompt tokens found in the cache when it was first admitted; None before."""
    backlog_tokens: int = 0
    """Prompt tokens it still has to compute, as far as is known."""
    charged_tokens: int = 0
    """Generated tokens that its tenant was charged for."""
    slot: int = -1
    """Row in the engine's mirrors while running, else -1."""
    waiting: bool = False
    passed: int = 0
    """Requests that started before it while it was next and found no room."""

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.prompt_ids)
        self.output_limit = self.end_tokens - self.prompt_tokens
        if self.sampling.prompt_logprobs is not None and self.choice == 0:
            self.prompt_logprobs = []

    @property
    def token_ids(self) -> list[int]:
        """A copy of all known tokens: prompt and generated ones."""
        return self.prompt_ids + self.output_ids

    @property
    def generated_tokens(self) -> int:
        return len(self.output_ids)

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + len(self.output_ids)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of its prompt are still to come."""
        found = self.prompt_logprobs
        return found is not None and len(found) < self.prompt_tokens - 1

    @property
    def reusable_tokens(self) -> int:
        """Tokens that need not be computed again if they are cached. One at least is left: its
        logits start the answer. Those of the prompt's tokens may be wanted, too."""
        if self.prompt_logprobs is not None and self.wants_prompt_logprobs:
            return len(self.prompt_logprobs)
        return self.known_tokens - 1

    def tokens_from(self, start: int) -> list[int]:
        """Returns the known tokens from a position on, without a look at those before."""
        prompt_tokens = self.prompt_tokens
        if start >= prompt_tokens:
            return self.output_ids[start - prompt_tokens :]
        return self.prompt_ids[start:] + self.output_ids

    @property
    def rank(self) -> tuple[int, int]:
        """Place by priority and arrival; the highest of the running is preempted first."""
        return self.priority, self.arrival
