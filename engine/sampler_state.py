"""What sampling remembers of one slot: how to draw, what was drawn, and both on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.transfer import brought
from scheduler.request import Sampling


@dataclass
class SlotTensors:
    """A slot's own part of what adjusts logits: brought to the device once, then kept up to date
    token by token. None: nothing of the kind was asked for."""

    only: Tensor | None
    """[A] int64: the tokens that may be drawn."""
    ends_reasoning: Tensor | None
    """[1] int64: the token that closes the reasoning."""
    never: Tensor | None
    """[N] int64: bad words of one token."""
    biased: Tensor | None
    """[B] int64: tokens whose logits are changed."""
    biases: Tensor | None
    """[B] float32: by so much."""
    stops: Tensor | None
    """[E] int64: tokens that may not be drawn before min_tokens."""
    counts: Tensor | None
    """[vocab] float32: how often each token was generated; for the penalties."""
    in_prompt: Tensor | None
    """[vocab] bool; for the repetition penalty."""


@dataclass
class SamplerState:
    """What sampling has to remember of one slot."""

    sampling: Sampling
    choice: int
    prompt_ids: Sequence[int] = ()
    """Kept until they are on the device, and only when a repetition penalty needs them."""
    output_ids: list[int] = field(default_factory=list)
    """Generated tokens in order."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that may not be drawn before min_tokens."""
    reasons: bool = False
    """Has a reasoning budget, and nothing has ended its reasoning yet."""
    _tensors: SlotTensors | None = None

    @classmethod
    def start(
        cls,
        sampling: Sampling,
        choice: int,
        token_ids: list[int],
        prompt_tokens: int,
        eos_token_ids: tuple[int, ...],
    ) -> SamplerState:
        """The state of a slot whose known tokens are `token_ids`, the first ones its prompt."""
        repetition = sampling.repetition_penalty != 1.0
        ends = () if sampling.ignore_eos else eos_token_ids
        state = cls(
            sampling,
            choice,
            token_ids[:prompt_tokens] if repetition else (),
            stop_tokens=tuple(dict.fromkeys((*ends, *sampling.stop_token_ids))),
            reasons=sampling.reasoning is not None,
        )
        for token in token_ids[prompt_tokens:]:
            state.add(token)
        return state

    def add(self, token: int) -> None:
        """Takes in a token that was sampled."""
        self.output_ids.append(token)
        if self._tensors is not None and self._tensors.counts is not None:
            self._tensors.counts[token] += 1
        budget = self.sampling.reasoning
        if self.reasons and budget is not None:
            self.reasons = token != budget.end_token and token not in budget.also_ended_by

    @property
    def must_end_reasoning(self) -> bool:
        budget = self.sampling.reasoning
        return self.reasons and budget is not None and len(self.output_ids) >= budget.max_tokens

    @property
    def restricted(self) -> bool:
        """Whether some tokens may not be sampled next, whatever their logits are."""
        s = self.sampling
        return bool(s.allowed_token_ids or s.bad_words) or self.must_end_reasoning

    @property
    def penalised(self) -> bool:
        s = self.sampling
        return bool(s.frequency_penalty or s.presence_penalty or s.repetition_penalty != 1.0)

    @property
    def too_short_to_stop(self) -> bool:
        return len(self.output_ids) < self.sampling.min_tokens and bool(self.stop_tokens)

    @property
    def adjusts(self) -> bool:
        """Whether the next token is drawn from anything but the logits as they are."""
        biased = bool(self.sampling.logit_bias)
        return self.restricted or self.penalised or biased or self.too_short_to_stop

    def bad_tokens(self) -> list[int]:
        """Tokens that would now complete a bad word of several tokens."""
        output = self.output_ids
        return [
            last
            for *before, last in self.sampling.bad_words
            if before and output[-len(before) :] == before
        ]

    def tensors(self, like: Tensor) -> SlotTensors:
        """Returns the slot's tensors for logits like these, [..., vocab]."""
        if self._tensors is None:
            self._tensors = self._made(like)
            self.prompt_ids = ()
        return self._tensors

    def _made(self, like: Tensor) -> SlotTensors:
        s, device, vocab = self.sampling, like.device, like.shape[-1]

        def ids(values: Sequence[int]) -> Tensor | None:
            return brought(torch.tensor(values, dtype=torch.int64), device) if values else None

        def counted(values: Sequence[int]) -> Tensor:
            found = brought(torch.tensor(values, dtype=torch.int64), device)
            return torch.zeros(vocab, device=device).index_add_(
                0, found, torch.ones(len(values), device=device)
            )

        return SlotTensors(
            only=ids(s.allowed_token_ids),
            ends_reasoning=ids([s.reasoning.end_token] if s.reasoning is not None else []),
            never=ids([word[0] for word in s.bad_words if len(word) == 1]),
            biased=ids(list(s.logit_bias)),
            biases=brought(torch.tensor(list(s.logit_bias.values())), device)
            if s.logit_bias
            else None,
            stops=ids(self.stop_tokens),
            counts=counted(self.output_ids) if self.penalised else None,
            in_prompt=counted(self.prompt_ids) > 0 if s.repetition_penalty != 1.0 else None,
        )
