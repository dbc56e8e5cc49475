"""Start of training: embeddings that already know which tokens are spellings of one word.

" Oslo", "Oslo" and " oslo" are three tokens. In a run of a few million tokens there is no time to
learn for each word that they are one, so their embeddings share a part, and the leading space and
the capital letter are common directions. The head starts as a scaled copy of the embedding, so that
copying a token from the prompt works for every token as soon as attention finds it.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from training.model import DeepseekV32

EMBEDDING_STD = 0.5
HEAD_STD = 0.03


@torch.no_grad()
def initialise_embeddings(model: DeepseekV32, tokenizer: Tokenizer, seed: int) -> None:
    """Overwrites embedding and head of `model`, a function of the vocabulary and `seed`."""
    generator = torch.Generator().manual_seed(seed)
    size, width = model.config.vocab_size, model.config.hidden_size
    own = torch.randn(size, width, generator=generator)
    space, capital = torch.randn(2, width, generator=generator)
    words: dict[str, torch.Tensor] = {}
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token], skip_special_tokens=False)
        word = text.strip(" ")
        if not word.isalpha():
            continue
        shared = words.setdefault(word.lower(), torch.randn(width, generator=generator))
        vector = 0.9 * shared + 0.3 * own[token]
        if text.startswith(" "):
            vector = vector + 0.5 * space
        if word[0].isupper():
            vector = vector + 0.5 * capital
        own[token] = vector
    own = own / own.pow(2).mean(-1, keepdim=True).sqrt()
    model.model.embed_tokens.weight.copy_(own * EMBEDDING_STD)
    model.lm_head.weight.copy_(own * HEAD_STD)
