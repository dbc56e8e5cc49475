"""Steps that compute and write nothing: they compile the kernels, and show what a step needs.

Their tokens have slot -1, and all their contexts are one page, read again and again; so they run on
a cache of a single page, before it is known how many there is memory for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from engine.batch import Batch, KernelRows, PrefillRows, RowGroup
from engine.cache import PagedCache
from engine.config import PAGE_TOKENS
from engine.hopper.graphs import Bucket, decode_batch
from engine.hopper.sampler import compile_draws, draw
from engine.model import Network
from engine.sampler import choose, logprobs_of
from engine.sampler_state import SamplerState
from engine.token_masks import AllowedTokens, unpack
from scheduler.forms import FormPolicy
from scheduler.plan import Form
from scheduler.request import Sampling

PREFILL_TOKENS = (2, 4, 8, 16, 17, 32, 33, 64, 65, 128, 129, 256, 512, 1024, 2048)
"""Chunks that meet the variants of the kernels: their tiles are chosen by the number of tokens."""
FEW, MANY = 16, 512
"""Chunks of a long context: rows of scores that share their search among programs, and do not."""


EVERYTHING = Sampling(
    max_tokens=8,
    min_tokens=8,
    frequency_penalty=0.5,
    presence_penalty=0.5,
    repetition_penalty=1.5,
    logit_bias={2: 1.0},
    bad_words=((3,), (4, 5)),
    logprobs=20,
)
"""Each adjustment that a request may ask of logits, beside what its grammar allows."""


class Chunk(NamedTuple):
    """A prefill step of one sequence."""

    form: Form
    tokens: int
    context: int
    """Positions that its last token sees."""


def prefill_batch(chunk: Chunk, device: torch.device) -> Batch:
    """Returns a batch of a chunk's shape that reads page 0 and writes nothing."""
    form, tokens, context = chunk
    positions = torch.arange(context - tokens, context, device=device)
    pages = torch.zeros(1, -(-context // PAGE_TOKENS), dtype=torch.int32, device=device)
    visible = (positions + 1).int()
    both = torch.tensor([[tokens], [context]], device=device)
    prefill = PrefillRows.of(pages, visible, both, [tokens], [context]) if tokens > 1 else None
    rows = KernelRows(slice(0, tokens), pages, visible, context, prefill)
    every = torch.arange(tokens, device=device)
    bounds = context - tokens + 1, context
    group = RowGroup(form, every, pages, positions + 1, (0,), bounds, rows)
    nowhere = torch.full_like(positions, -1)
    ids = torch.zeros_like(positions)
    return Batch(ids, positions, nowhere, (group,), every[-1:], padded=True)


def largest_chunks(
    forms: FormPolicy, *, step_tokens: int, longest: int, score_bytes: int
) -> list[Chunk]:
    """Returns the prefill steps that need the most memory, one or two a form.

    step_tokens: tokens of a step; longest: of a context; score_bytes: limit of a step's scores.
    """
    widest = min(longest, max(step_tokens, score_bytes // (4 * step_tokens)))
    deepest = max(1, min(step_tokens, score_bytes // (4 * longest)))
    if forms.attention == "dense":
        return [Chunk("mha", min(step_tokens, longest), longest)]
    chunks = [Chunk("mqa", min(step_tokens, widest), widest), Chunk("mqa", deepest, longest)]
    if forms.attention == "auto":
        within = min(forms.top_k, longest)
        chunks.append(Chunk("mha", min(step_tokens, within), within))
    even = min(forms.break_even_tokens, longest)
    if even > 1:
        tokens = max(1, min(step_tokens, even, score_bytes // (4 * even)))
        chunks.append(Chunk("masked_mha", tokens, even))
    return chunks


def peak_bytes(model: Network, cache: PagedCache, batches: list[Batch]) -> int:
    """Returns the most memory that one of these steps holds beside weights and pages, on CUDA."""
    return _peak_bytes(model.device, (partial(model.forward, batch, cache) for batch in batches))


def sampling_peak_bytes(rows: int, vocab_size: int, device: torch.device) -> int:
    """Returns the most memory that sampling for `rows` rows holds, on CUDA, their logits too."""
    return _peak_bytes(device, [partial(draw_everything, rows, vocab_size, device)])


def _peak_bytes(device: torch.device, steps: Iterable[Callable[[], object]]) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        for step in steps:
            step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def draw_everything(rows: int, vocab_size: int, device: torch.device) -> None:
    """Draws for `rows` rows that ask for all there is: grammars, penalties, biases, logprobs."""
    logits = torch.zeros(rows, vocab_size, device=device)
    words = torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32, device=device)
    allowed = AllowedTokens(list(range(rows)), unpack(words, vocab_size))
    states = [SamplerState.start(EVERYTHING, 0, [0, 0], 1, (1,)) for _ in range(rows)]
    tokens = choose(logits, states, [2] * rows, allowed, draw)
    logprobs_of(logits, tokens.tolist(), [EVERYTHING.logprobs] * rows)


def compile_kernels(
    model: Network,
    cache: PagedCache,
    forms: FormPolicy,
    *,
    step_tokens: int,
    longest: int,
    progress: bool = True,
) -> None:
    """Runs small prefill steps in every form until each kernel they can meet is compiled, and
    draws a token."""
    chunks = list(small_chunks(forms, step_tokens=step_tokens, longest=longest))
    with torch.inference_mode():
        for chunk in tqdm(chunks, desc="kernels", unit="step", disable=not progress):
            model.forward(prefill_batch(chunk, model.device), cache)
        compile_draws(model.config.vocab_size, model.device)


def small_chunks(forms: FormPolicy, *, step_tokens: int, longest: int) -> Iterator[Chunk]:
    """Yields a prefill step for each of PREFILL_TOKENS that fits, in each form that can occur."""
    kinds: list[tuple[Form, int]] = [("mha", 1 if forms.attention != "sparse" else 0)]
    if forms.attention != "dense":
        kinds += [("masked_mha", 1 if forms.break_even_tokens > 1 else 0)]
        kinds += [("mqa", 1), ("mqa", forms.top_k + 1)]
    for tokens in PREFILL_TOKENS:
        for form, least in kinds:
            context = max(tokens, least)
            if least and tokens <= step_tokens and context <= longest:
                yield Chunk(form, tokens, context)
    context = 2 * forms.top_k
    while forms.attention != "dense" and context <= longest:
        for tokens in {min(tokens, step_tokens) for tokens in (FEW, MANY)}:
            yield Chunk("mqa", tokens, context)
        context *= 2


def compile_decode(
    model: Network, cache: PagedCache, wanted: list[Bucket], *, progress: bool = True
) -> None:
    """Runs a decode step of each bucket, for engines without graphs."""
    with torch.inference_mode():
        for bucket in tqdm(wanted, desc="decode", unit="step", disable=not progress):
            model.forward(full_decode_batch(bucket, model.device), cache)


def full_decode_batch(bucket: Bucket, device: torch.device) -> Batch:
    """Returns a decode step of a bucket's shape, whose rows see its whole context."""
    columns = torch.zeros(4, bucket.rows, dtype=torch.int64, device=device)
    columns[1], columns[2] = bucket.context - 1, -1
    pages = -(-bucket.context // PAGE_TOKENS)
    table = torch.zeros(1, pages, dtype=torch.int32, device=device)
    return decode_batch(bucket, columns.flatten(), table)
