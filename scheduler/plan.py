"""What the engine is told to do in one step, and what it reports back.

The scheduler decides, the engine executes; these structs are all that passes between them, so a
recorded run of plans and results replays to identical decisions.

    plan = scheduler.plan()
    result = runner.execute(plan)
    news = scheduler.commit(result)
"""

from __future__ import annotations

from typing import Literal

import msgspec

from scheduler.logprobs import TokenLogprobs
from scheduler.request import Sampling

Form = Literal["mha", "masked_mha", "mqa", "dense_mqa"]
"""How attention of a row is computed.

mha         expanded keys, dense causal: prefill while every query sees at most top_k tokens
masked_mha  expanded keys, masked to the selected tokens: prefill up to the break-even
mqa         absorbed queries, latents of the selected tokens: decode, long prefill
dense_mqa   absorbed queries, latents of the whole context: decode within top_k

masked_mha and mqa score and select; the dense two give the same result within top_k tokens, and
beyond it are what `--attention dense` asks for.
"""

Sample = Literal["none", "last", "every"]
"""Which tokens of a row have their logits looked at; see `Row.sample`."""


class NewSlot(msgspec.Struct, frozen=True):
    """A sequence takes an engine slot; `token_ids` are its known tokens (prompt first)."""

    slot: int
    request_id: str
    choice: int
    token_ids: list[int]
    prompt_tokens: int
    sampling: Sampling
    pages: list[int]
    """Pages it starts with, those of a prefix hit included."""


class PageMove(msgspec.Struct, frozen=True):
    """A page's latent rows and index keys copied together, all layers."""

    source: int
    target: int


class Prepare(msgspec.Struct, frozen=True):
    """Changes to the engine's mirrors, applied before the rows run, in this order."""

    new_slots: tuple[NewSlot, ...] = ()
    new_pages: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(slot, page ids to append)."""
    copies: tuple[PageMove, ...] = ()


class Row(msgspec.Struct, frozen=True, gc=False):
    """`count` tokens of one slot, from position `start`.

    The tokens come from the engine's mirror: the prompt, or what it sampled itself. The scheduler
    may therefore plan a token it has not seen yet.
    """

    slot: int
    start: int
    count: int
    sample: Sample
    """Which of its tokens' logits are wanted. `last`: one token is sampled behind the row. `every`:
    the log-probabilities of the known tokens behind the row's own are wanted, and where nothing is
    known behind the last one, a token is sampled there."""
    form: Form


class StepPlan(msgspec.Struct, frozen=True):
    step: int
    rows: tuple[Row, ...]
    prepare: Prepare = Prepare()
    forget: tuple[int, ...] = ()
    """Slots whose mirrors are dropped before anything else happens."""


class StepResult(msgspec.Struct, frozen=True):
    step: int
    token_ids: list[int]
    """One per row; -1 where the row samples nothing. A row that should have sampled, and could not,
    has -1 too: its choice ends with an error."""
    logprobs: list[TokenLogprobs | None]
    seconds: float
    """Wall time of the step on the engine's side."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """Of each row with `sample: every`, by its place: of the known tokens from `start + 1` on."""
