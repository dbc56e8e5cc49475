"""A plain float64 DeepSeek-V3.2, written from the papers, to hold the engine against.

One sequence at a time, no cache, no batching, nothing fused: every line is a formula. It shares
nothing with the engine, not even the reading of the configuration.

Sources: DeepSeek-V3 report (MLA eq. 1-11, DeepSeekMoE eq. 12-16), DeepSeek-V3.2 report (indexer
eq. 1, sparse attention eq. 2), "YaRN" (Peng et al. 2023, eq. 15-20).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Sabotage = Literal[
    "indexer rope interleaved",
    "relu after weight",
    "hadamard on keys only",
    "selection bias in weights",
    "no attention temperature",
]
"""Known mistakes of other implementations; a parity test that misses one proves nothing."""


@dataclass
class Trace:
    """What a forward pass computed, for T tokens of one sequence."""

    logits: Tensor
    """[T, vocab]."""
    scores: list[Tensor]
    """Per layer [T, T]: index scores, -inf outside the causal range."""
    selected: list[Tensor]
    """Per layer [T, T] bool: the tokens each query attends to."""


class ReferenceModel:
    """The formulas with one set of weights.

    fields: a decoded config.json. weights: name -> tensor, as published, dequantised.
    fp8_caches: latents, index keys and index queries are rounded as the FP8 caches round them.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        weights: dict[str, Tensor],
        *,
        fp8_caches: bool = False,
        sabotage: Sabotage | None = None,
    ) -> None:
        self.fields = fields
        self.fp8_caches = fp8_caches
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.sabotage = sabotage

    def __call__(
        self,
        token_ids: list[int],
        *,
        dense: bool = False,
        forced: list[Tensor] | None = None,
        last_queries: int = 0,
    ) -> Trace:
        """The trace of `token_ids`.

        dense: every query attends to its whole prefix. forced: selections to attend to instead of
        the indexer's own, which `Trace.selected` still reports. last_queries: in the last layer,
        compute and report only this many (then no [T, T] matrix is needed there).
        """
        c, w = self.fields, self.weights
        tokens = len(token_ids)
        everything = slice(0, tokens)
        angles = torch.outer(torch.arange(tokens, dtype=torch.float64), inv_freq(c))
        x = w["model.embed_tokens.weight"][token_ids]
        trace = Trace(x, [], [])
        for layer in range(c["num_hidden_layers"]):
            part = Weights(w, f"model.layers.{layer}.")
            h = rms_norm(x, part["input_layernorm.weight"], c["rms_norm_eps"])
            last = last_queries and layer == c["num_hidden_layers"] - 1
            rows = slice(tokens - last_queries, tokens) if last else everything
            causal = torch.arange(tokens) <= torch.arange(tokens)[rows, None]
            scores = self.index_scores(h, part, angles, rows).masked_fill(~causal, -math.inf)
            own = top_k_mask(scores, c["index_topk"])
            trace.scores.append(scores)
            trace.selected.append(own)
            visible = causal if dense else own if forced is None else forced[layer]
            x = x[rows] + self.attention(h, part, angles, rows, visible)
            h = rms_norm(x, part["post_attention_layernorm.weight"], c["rms_norm_eps"])
            if layer < c["first_k_dense_replace"]:
                x = x + gated_mlp(h, part.below("mlp."))
            else:
                x = x + self.experts(h, part.below("mlp."))
        final = rms_norm(x, w["model.norm.weight"], c["rms_norm_eps"])
        trace.logits = final @ w["lm_head.weight"].T
        return trace

    def query_latent(self, h: Tensor, part: Weights) -> Tensor:
        """[T, q_lora_rank]: the normalised query latent that attention and indexer share."""
        norm = part["self_attn.q_a_layernorm.weight"]
        return rms_norm(h @ part["self_attn.q_a_proj.weight"].T, norm, self.fields["rms_norm_eps"])

    def index_scores(self, h: Tensor, part: Weights, angles: Tensor, rows: slice) -> Tensor:
        """[rows, T]: I[t, s] = sum_j w[t, j] · ReLU(q[t, j] · k[s]), unmasked."""
        heads, width = self.fields["index_n_heads"], self.fields["index_head_dim"]
        rope = self.fields["qk_rope_head_dim"]
        indexer = part.below("self_attn.indexer.")
        queries = self.query_latent(h[rows], part) @ indexer["wq_b.weight"].T
        queries = queries.view(-1, heads, width)
        keys = F.layer_norm(
            h @ indexer["wk.weight"].T,
            (width,),
            indexer["k_norm.weight"],
            indexer["k_norm.bias"],
            eps=1e-6,
        )
        interleaved = self.fields.get("indexer_rope_interleave", False)
        rotate = rotate_neighbours if interleaved else rotate_halves
        if self.sabotage == "indexer rope interleaved":
            rotate = rotate_neighbours
        turned = rotate(queries[..., :rope], angles[rows])
        queries = torch.cat((turned, queries[..., rope:]), dim=-1)
        keys = torch.cat((rotate(keys[..., :rope], angles), keys[..., rope:]), dim=-1)
        # Rotating both sides by an orthogonal matrix changes no score, only how they round.
        if self.fp8_caches:
            queries = fp8_round(queries @ hadamard_matrix(width), width)
            keys = fp8_round(keys @ hadamard_matrix(width), width)
        if self.sabotage == "hadamard on keys only":
            keys = keys @ hadamard_matrix(width)
        weights = (h[rows] @ indexer["weights_proj.weight"].T) / math.sqrt(heads * width)
        scores = torch.zeros(len(weights), len(keys), dtype=torch.float64)
        for head in range(heads):
            dots = queries[:, head] @ keys.T
            if self.sabotage == "relu after weight":
                scores += (dots * weights[:, head, None]).relu()
            else:
                scores += dots.relu() * weights[:, head, None]
        return scores

    def attention(
        self, h: Tensor, part: Weights, angles: Tensor, rows: slice, visible: Tensor
    ) -> Tensor:
        """[rows, hidden]: MLA in its expanded form, each query over its `visible` tokens."""
        c = self.fields
        heads, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        latent, value = c["kv_lora_rank"], c["v_head_dim"]
        down = h @ part["self_attn.kv_a_proj_with_mqa.weight"].T
        shared_key = rotate_neighbours(down[:, latent:], angles)
        norm = part["self_attn.kv_a_layernorm.weight"]
        latents = rms_norm(down[:, :latent], norm, c["rms_norm_eps"])
        if self.fp8_caches:
            latents, shared_key = fp8_round(latents, 128), shared_key.bfloat16().double()
        queries = self.query_latent(h[rows], part) @ part["self_attn.q_b_proj.weight"].T
        queries = queries.view(-1, heads, nope + rope)
        expanded = (latents @ part["self_attn.kv_b_proj.weight"].T).view(-1, heads, nope + value)
        scale = 1 / math.sqrt(nope + rope)
        if self.sabotage != "no attention temperature":
            scale *= attention_temperature(c) ** 2
        outputs = []
        for head in range(heads):
            content = queries[:, head, :nope] @ expanded[:, head, :nope].T
            position = rotate_neighbours(queries[:, head, nope:], angles[rows]) @ shared_key.T
            logits = ((content + position) * scale).masked_fill(~visible, -math.inf)
            outputs.append(logits.softmax(dim=-1) @ expanded[:, head, nope:])
        return torch.cat(outputs, dim=-1) @ part["self_attn.o_proj.weight"].T

    def experts(self, x: Tensor, mlp: Weights) -> Tensor:
        """[T, hidden]: DeepSeekMoE with group-limited routing and a shared expert."""
        c = self.fields
        affinity = (x @ mlp["gate.weight"].T).sigmoid()
        biased = affinity + mlp["gate.e_score_correction_bias"]
        grouped = biased.view(x.shape[0], c["n_group"], -1)
        group_scores = grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = top_k_mask(group_scores, c["topk_group"])
        candidates = grouped.masked_fill(~kept[..., None], -math.inf).flatten(1)
        chosen = top_k_mask(candidates, c["num_experts_per_tok"])
        basis = biased if self.sabotage == "selection bias in weights" else affinity
        gates = basis.masked_fill(~chosen, 0.0)
        gates = gates / gates.sum(dim=-1, keepdim=True) * c["routed_scaling_factor"]
        out = gated_mlp(x, mlp.below("shared_experts."))
        for expert in range(c["n_routed_experts"]):
            routed = chosen[:, expert]
            y = gated_mlp(x[routed], mlp.below(f"experts.{expert}."))
            out[routed] += gates[routed, expert, None] * y
        return out


class Weights:
    """The weights whose names start with a prefix, looked up by the rest of the name."""

    def __init__(self, weights: dict[str, Tensor], prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def below(self, prefix: str) -> Weights:
        return Weights(self.weights, self.prefix + prefix)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    scaled: Tensor = weight * x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled


def gated_mlp(x: Tensor, mlp: Weights) -> Tensor:
    gate, up = x @ mlp["gate_proj.weight"].T, x @ mlp["up_proj.weight"].T
    return (F.silu(gate) * up) @ mlp["down_proj.weight"].T


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """The k largest finite scores of each row, equal ones to the lowest position."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, chosen in zip(scores, mask, strict=True):
        best = torch.sort(row, descending=True, stable=True).indices[:k]
        chosen[best[row[best] > -math.inf]] = True
    return mask


def inv_freq(fields: dict[str, Any]) -> Tensor:
    """[R/2]: angle per position of each rotary pair, with YaRN's ramp between kept and slowed."""
    width, base = fields["qk_rope_head_dim"], fields["rope_theta"]
    pairs = torch.arange(width // 2, dtype=torch.float64)
    kept: Tensor = base ** (-2 * pairs / width)
    yarn = fields["rope_scaling"]
    if yarn is None:
        return kept
    bounds = [
        width
        * math.log(yarn["original_max_position_embeddings"] / (2 * math.pi * turns))
        / (2 * math.log(base))
        for turns in (yarn["beta_fast"], yarn["beta_slow"])
    ]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), width - 1)
    slowed = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    table: Tensor = kept * (1 - slowed) + kept / yarn["factor"] * slowed
    return table


def attention_temperature(fields: dict[str, Any]) -> float:
    yarn = fields["rope_scaling"]
    return 0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1 if yarn else 1.0


def rotate_neighbours(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the pairs (x[2i], x[2i+1]) of x [T, ..., R] by angles [T, R/2]."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn(x, angles)).flatten(-2)


def rotate_halves(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the pairs (x[i], x[i + R/2]) of x [T, ..., R] by angles [T, R/2]."""
    pairs = torch.complex(*x.chunk(2, dim=-1)) * turn(x, angles)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """exp(i · angle), shaped to multiply the pairs of x."""
    rotation = torch.polar(torch.ones_like(angles), angles)
    return rotation if x.dim() == 2 else rotation[:, None]


def fp8_round(x: Tensor, group: int) -> Tensor:
    """x with each group of values rounded to e4m3 times a power-of-two scale."""
    groups = x.unflatten(-1, (-1, group))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp_min(1e-4)
    scale = 2 ** (largest / 448).log2().ceil()
    rounded: Tensor = (groups / scale).to(torch.float8_e4m3fn).double() * scale
    return rounded.flatten(-2)


def hadamard_matrix(width: int) -> Tensor:
    """Sylvester's orthonormal matrix of a power-of-two width."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / math.sqrt(width)
