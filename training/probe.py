"""A cheap look at held-out accuracy during training: are all reference tokens the likeliest ones?

For a model that decodes greedily this equals reproducing the reference reply token for token; the
real measure, through the serving engine, is `python -m training.evaluate`.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

import torch

from api.chat.encoding import Encoder
from training.data import COPY_FIRST_TOKEN, Mix, draw_case, encode_case
from training.model import Context, DeepseekV32

ROWS = 8


@torch.no_grad()
def induction(
    model: DeepseekV32, context: Context, rows: int = 4, length_tokens: int = 32
) -> float:
    """Share of tokens that the model predicts in the second copy of random tokens [x; x].

    x is `length_tokens` long; the copy's first token cannot be known and does not count. This is
    the skill that every answer from the prompt rests on.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    once = torch.randint(COPY_FIRST_TOKEN, vocabulary, (rows, length_tokens), generator=generator)
    ids = torch.cat((once, once), 1)
    was_training = model.training
    model.eval()
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    hidden, _ = model(ids, positions, torch.ones_like(ids), context)
    likeliest = model.logits(hidden[:, length_tokens:-1], context.dtype).argmax(-1)
    model.train(was_training)
    return float((likeliest == ids[:, length_tokens + 1 :]).float().mean())


@torch.no_grad()
def probe(
    model: DeepseekV32,
    encoder: Encoder,
    mixes: dict[str, Mix],
    context: Context,
    cases: int,
    length_tokens: int,
) -> dict[str, float]:
    """Share of held-out cases with an exactly right last turn, by "mix task mode".

    `cases` conversations are drawn for each mix and mode; longer ones than `length_tokens` are
    left out.
    """
    user = encoder.tokenizer.token_to_id("<｜User｜>")
    assert user is not None, "the encoder has checked that the token exists"
    right: dict[str, list[bool]] = defaultdict(list)
    encoded = []
    for label, mix in mixes.items():
        for thinking in (False, True):
            rng = Random(f"probe {label} {thinking}")
            for _ in range(cases):
                case = draw_case(rng, mix, "held-out")
                one = encode_case(encoder, case, thinking)
                if len(one.token_ids) <= length_tokens:
                    encoded.append((f"{label}.{case.task}.{'think' if thinking else 'chat'}", one))
    encoded.sort(key=lambda pair: len(pair[1].token_ids))
    model.eval()
    for start in range(0, len(encoded), ROWS):
        part = encoded[start : start + ROWS]
        length = max(len(one.token_ids) for _, one in part)
        ids = torch.zeros(len(part), length, dtype=torch.int64)
        for row, (_, one) in enumerate(part):
            ids[row, : len(one.token_ids)] = torch.tensor(one.token_ids)
        positions = torch.arange(length).expand_as(ids)
        hidden, _ = model(ids, positions, torch.ones_like(ids), context)
        for row, (label, one) in enumerate(part):
            last_user = len(one.token_ids) - 1 - one.token_ids[::-1].index(user)
            targets = [i for i in range(last_user, len(one.token_ids)) if one.generated[i]]
            likeliest = model.logits(hidden[row, [i - 1 for i in targets]], context.dtype).argmax(
                -1
            )
            right[label].append(likeliest.tolist() == [one.token_ids[i] for i in targets])
    model.train()
    return {label: sum(values) / len(values) for label, values in sorted(right.items())}
