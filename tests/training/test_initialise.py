"""What is wired in before training: spellings of one word, and copying."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from training.config import ModelConfig
from training.initialise import initialise
from training.model import Context, DeepseekV32
from training.probe import induction
from training.stages import EMBEDDED, RECIPE

TOKENIZER = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


def _initialised(copying: bool) -> DeepseekV32:
    torch.manual_seed(0)
    model = DeepseekV32(RECIPE.model)
    initialise(model, TOKENIZER, 0, copying=copying)
    return model


@torch.no_grad()
def _median_rank(model: DeepseekV32) -> float:
    """Median rank of the right token in the second copy of random tokens; 0 is the likeliest."""
    once = torch.randint(16, 3072, (4, 32), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((once, once), 1)
    context = Context(RECIPE.model, "dense", False, torch.float32)
    hidden, _ = model(ids, torch.arange(64).expand_as(ids), torch.ones_like(ids), context)
    logits = model.logits(hidden[:, 32:-1], torch.float32)
    return float((logits > logits.gather(-1, ids[:, 33:, None])).sum(-1).float().median())


def test_copying_has_a_head_start() -> None:
    vocabulary = RECIPE.model.vocab_size
    assert _median_rank(_initialised(True)) < vocabulary / 10
    assert _median_rank(_initialised(False)) > vocabulary / 4


def test_induction_of_an_untrained_model_is_near_chance() -> None:
    context = Context(RECIPE.model, "dense", False, torch.float32)
    assert induction(_initialised(False), context) < 0.05


def test_spellings_of_one_word_are_alike() -> None:
    rows = _initialised(False).model.embed_tokens.weight.detach()
    rows = rows - rows.mean(0)

    def alike(first: str, second: str) -> float:
        ids = [TOKENIZER.encode(text).ids for text in (first, second)]
        assert all(len(one) == 1 for one in ids)
        return float(torch.cosine_similarity(rows[ids[0][0]], rows[ids[1][0]], dim=0))

    assert alike(" Oslo", "Oslo") > alike(" Oslo", " Rome") + 0.3


def test_a_shape_that_does_not_fit_is_refused() -> None:
    model = DeepseekV32(ModelConfig(vocab_size=RECIPE.model.vocab_size, kv_lora_rank=64))
    with pytest.raises(ValueError, match="kv_lora_rank"):
        initialise(model, TOKENIZER, 0)
