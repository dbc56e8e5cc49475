"""Start of training: what a few million tokens are too few to discover is wired in.

Embeddings: " Oslo", "Oslo" and " oslo" are three tokens. There is no time to learn for each word
that they are one, so their embeddings share a part, and the leading space and the capital letter
are common directions. All embeddings share one constant direction, which gives every layer
something that does not depend on the token: positional heads need it. The head starts as a scaled
copy.

Copying: the answer to a question about the prompt is a copy from the prompt. Large models discover
the circuit for it, induction heads (Olsson et al. 2022), after some billion tokens; random
initialisation had not found it here after two million. So it is there from the start, and training
goes on from it:

    layer 0        heads that attend 1, 2 and 3 tokens back and write what they saw beside the token
    layers 1, 2    heads that look for a place whose last three tokens are the current last three,
                   and copy the token that stands there

Everything else starts at random.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training.attention import LatentAttention
from training.layers import inverse_frequencies
from training.model import DecoderLayer, DeepseekV32

EMBEDDING_STD = 0.5
HEAD_STD = 0.06
CONSTANT_SHARE = 0.25
"""Share of an embedding's energy that lies in the direction common to all."""

OFFSETS = (1, 2, 3)
OFFSET_WIDTH = 64
"""Dimensions in which each offset's token is written."""
COPY_LAYERS = (1, 2)
COPY_HEADS = 6
MATCH_WIDTH = 32
"""Dimensions in which each of the three tokens is compared."""
MATCHED = (12, 10, 10)
"""How many of them one head compares, by offset: together a head's non-rotary width."""
MATCH_GAIN = 8.0
COPY_GAIN = 6.0
BESIDE_GAIN = 0.5
SHARP_PAIRS, SHARP_GAIN, BLUNT_GAIN = 4, 36.0, 6.0
"""The fast rotary pairs decide which offset a head sees; the slow ones break ties."""


@torch.no_grad()
def initialise(
    model: DeepseekV32, tokenizer: Tokenizer, seed: int, *, copying: bool = True
) -> None:
    """Overwrites embedding, head and, with `copying`, the copying heads.

    A function of the vocabulary and `seed`. Raises ValueError for a shape that the copying heads
    do not fit into.
    """
    config = model.config
    if copying and (
        config.qk_nope_head_dim != sum(MATCHED)
        or config.v_head_dim != MATCH_WIDTH
        or config.kv_lora_rank != 4 * MATCH_WIDTH
        or config.q_lora_rank < len(MATCHED) * MATCH_WIDTH
    ):
        raise ValueError(
            f"copying heads need nope {sum(MATCHED)}, v {MATCH_WIDTH}, kv_lora_rank "
            f"{4 * MATCH_WIDTH} and q_lora_rank of at least {len(MATCHED) * MATCH_WIDTH}"
        )
    generator = torch.Generator().manual_seed(seed)
    constant = _orthogonal(generator, 1, config.hidden_size)[0]
    content = _word_vectors(model, tokenizer, generator)
    content -= (content @ constant)[:, None] * constant
    content /= content.pow(2).mean(-1, keepdim=True).sqrt()
    height = (CONSTANT_SHARE * config.hidden_size) ** 0.5
    mixed = (1 - CONSTANT_SHARE) ** 0.5 * content + height * constant
    model.model.embed_tokens.weight.copy_(EMBEDDING_STD * mixed)
    model.lm_head.weight.copy_(HEAD_STD * content)
    if not copying:
        return
    reader = _orthogonal(generator, OFFSET_WIDTH, config.hidden_size)
    places = _orthogonal(generator, config.hidden_size, config.hidden_size)
    beside = [places[:, OFFSET_WIDTH * i : OFFSET_WIDTH * (i + 1)] for i in range(len(OFFSETS))]
    _wire_looking_back(model, mixed, constant / height, reader, beside)
    for layer in COPY_LAYERS:
        _wire_copying(model, layer, generator, reader, beside)


def _attention(model: DeepseekV32, layer: int) -> LatentAttention:
    decoder = model.model.layers[layer]
    assert isinstance(decoder, DecoderLayer)
    return decoder.self_attn


def _orthogonal(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """[rows, columns] with orthonormal rows."""
    square = torch.randn(columns, columns, generator=generator)
    return torch.linalg.qr(square).Q[:rows].contiguous()


def _word_vectors(model: DeepseekV32, tokenizer: Tokenizer, generator: torch.Generator) -> Tensor:
    """[vocab, hidden] random, but alike for the spellings of one word."""
    size, width = model.config.vocab_size, model.config.hidden_size
    own = torch.randn(size, width, generator=generator)
    space, capital = torch.randn(2, width, generator=generator)
    words: dict[str, Tensor] = {}
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
    return own


def _wire_looking_back(
    model: DeepseekV32, inputs: Tensor, constant: Tensor, reader: Tensor, beside: list[Tensor]
) -> None:
    """Two heads of layer 0 for each offset: they attend to the token that many places back.

    The score of a query and a key `d` places apart is a sum of cos((d - offset) * frequency).
    constant . input is 1 for every token; reader [64, hidden] is what is passed on, into the
    directions beside[i] [hidden, 64].
    """
    config, attention = model.config, _attention(model, 0)
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    latent, value = config.kv_lora_rank, config.v_head_dim
    down = attention.kv_a_proj_with_mqa.weight
    down[: len(reader)] = reader
    down[latent:] *= 0.2
    down[latent::2] += 3.0 * constant
    attention.q_a_proj.weight[0] = constant * constant.norm() ** -1
    query_latent = F.rms_norm(F.linear(inputs, attention.q_a_proj.weight), (config.q_lora_rank,))
    one = query_latent[:, 0].mean()
    seen = F.rms_norm(F.linear(inputs, down[:latent]), (latent,))[:, : len(reader)].std()
    query = attention.q_b_proj.weight.view(heads, config.qk_head_dim, -1)
    expand = attention.kv_b_proj.weight.view(heads, nope + value, latent)
    out = attention.o_proj.weight.view(config.hidden_size, heads, value)
    frequency = inverse_frequencies(config, yarn=False).tolist()
    for index, offset in enumerate(OFFSETS):
        for half in range(OFFSET_WIDTH // value):
            head = index * (OFFSET_WIDTH // value) + half
            part = slice(half * value, (half + 1) * value)
            query[head] *= 0.2
            for pair, turn in enumerate(frequency):
                gain = (SHARP_GAIN if pair < SHARP_PAIRS else BLUNT_GAIN) / one
                query[head, nope + 2 * pair, 0] = gain * math.cos(-offset * turn)
                query[head, nope + 2 * pair + 1, 0] = gain * math.sin(-offset * turn)
            expand[head, nope:] = torch.eye(latent)[part]
            out[:, head] = beside[index][:, part] * BESIDE_GAIN / seen


def _wire_copying(
    model: DeepseekV32,
    layer: int,
    generator: torch.Generator,
    reader: Tensor,
    beside: list[Tensor],
) -> None:
    """Heads of `layer` that match (now, 1 back, 2 back) against (1, 2, 3 back) and copy."""
    config, attention = model.config, _attention(model, layer)
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    views = [_orthogonal(generator, MATCH_WIDTH, OFFSET_WIDTH) for _ in OFFSETS]
    copied = _orthogonal(generator, MATCH_WIDTH, config.hidden_size)
    sought = (reader, beside[0].T, beside[1].T)
    for i, view in enumerate(views):
        block = slice(MATCH_WIDTH * i, MATCH_WIDTH * (i + 1))
        attention.q_a_proj.weight[block] = view @ sought[i]
        attention.kv_a_proj_with_mqa.weight[block] = view @ beside[i].T
    attention.q_a_proj.weight[len(views) * MATCH_WIDTH :] *= 0.5
    last = slice(len(views) * MATCH_WIDTH, config.kv_lora_rank)
    attention.kv_a_proj_with_mqa.weight[last] = copied
    query = attention.q_b_proj.weight.view(heads, config.qk_head_dim, -1)
    expand = attention.kv_b_proj.weight.view(heads, nope + value, config.kv_lora_rank)
    out = attention.o_proj.weight.view(config.hidden_size, heads, value)
    for head in range(COPY_HEADS):
        dims = torch.cat(
            [
                MATCH_WIDTH * i + torch.randperm(MATCH_WIDTH, generator=generator)[:count]
                for i, count in enumerate(MATCHED)
            ]
        )
        query[head] *= 0.15
        query[head, :nope] = MATCH_GAIN * torch.eye(config.q_lora_rank)[dims]
        expand[head, :nope] = torch.eye(config.kv_lora_rank)[dims]
        expand[head, nope:] = torch.eye(config.kv_lora_rank)[last]
        out[:, head] = copied.T * COPY_GAIN / COPY_HEADS
