"""DeepSeek-V3.2: embedding, decoder layers, head.

x = x + Attention(RMSNorm(x));   x = x + FeedForward(RMSNorm(x));   logits = head(RMSNorm(x))
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention import Attention, Probe
from engine.batch import Batch
from engine.cache import PagedCache
from engine.feed_forward import MoE, dense_mlp
from engine.model_config import ModelConfig
from kernels.linear import Linear
from kernels.moe import SwiGlu
from kernels.norm import rms_norm
from kernels.rope import rope_table


class Network(Protocol):
    """What the runner needs of a model, on whatever operators it is built."""

    config: ModelConfig
    device: torch.device

    def forward(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns logits [S, vocab] float32 of the batch's sampled tokens; fills the cache."""
        ...

    def hidden(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns what the head reads [S, hidden] of the same tokens; fills the cache."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [S, vocab] float32 of hidden [S, hidden]."""
        ...


class DecoderLayer:
    """One decoder layer; `weights` are named relative to `model.layers.{layer}.`"""

    def __init__(
        self,
        layer: int,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        index_fp8: bool,
        select: bool,
        batch_invariant: bool,
    ) -> None:
        def below(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

        self.eps = config.rms_norm_eps
        self.attention_norm = weights["input_layernorm.weight"]
        self.feed_forward_norm = weights["post_attention_layernorm.weight"]
        self.attention = Attention(
            layer,
            config,
            below("self_attn."),
            index_fp8=index_fp8,
            select=select,
            batch_invariant=batch_invariant,
        )
        mlp = below("mlp.")
        weights.clear()  # what an operator has packed is not kept twice
        self.feed_forward: MoE | SwiGlu = (
            MoE(config, mlp, batch_invariant=batch_invariant)
            if config.is_moe(layer)
            else dense_mlp(mlp, batch_invariant=batch_invariant)
        )

    def __call__(
        self,
        x: Tensor,
        batch: Batch,
        rope: Tensor,
        cache: PagedCache,
        probe: Probe | None,
    ) -> Tensor:
        h = rms_norm(x, self.attention_norm, self.eps)
        x = x + self.attention(h, batch, rope, cache, probe)
        return x + self.feed_forward(rms_norm(x, self.feed_forward_norm, self.eps))


class MtpWeights:
    """Weights of one multi-token-prediction layer, loaded and held for speculative decoding.

    Its embedding and head are the main model's unless the checkpoint stores its own.
    """

    def __init__(self, layer: int, weights: dict[str, Tensor]) -> None:
        self.layer = layer
        self.weights = weights

    @property
    def bytes(self) -> int:
        return sum(w.numel() * w.element_size() for w in self.weights.values())


class DeepseekV32:
    """The model, on one device, in one compute dtype.

    weights: checkpoint names -> tensors as `engine.checkpoint.load_weights` returns them. They are
    taken out of the dict as they are packed, so that no tensor is held twice.
    select=False never scores or selects (dense attention, no index keys). batch_invariant: on the
    CPU, and when all rows have the form mqa, a token's logits depend on its sequence alone, to the
    last bit, and on nothing else in the step.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        index_fp8: bool = False,
        select: bool = True,
        batch_invariant: bool = False,
    ) -> None:
        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in weights if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.pop(name) for name in names}

        self.config = config
        self.layers = [
            DecoderLayer(
                layer,
                config,
                take(f"model.layers.{layer}."),
                index_fp8=index_fp8,
                select=select,
                batch_invariant=batch_invariant,
            )
            for layer in range(config.num_hidden_layers)
        ]
        self.mtp = [
            MtpWeights(layer, take(f"model.layers.{layer}.")) for layer in config.mtp_layer_ids
        ]
        self.embedding = weights.pop("model.embed_tokens.weight")
        self.norm = weights.pop("model.norm.weight")
        self.device = self.embedding.device
        self.head = Linear(weights.pop("lm_head.weight"), batch_invariant=batch_invariant)
        self.inv_freq = torch.tensor(config.inv_freq(), dtype=torch.float64, device=self.device)

    def forward(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns logits [S, vocab] float32 of the batch's sampled tokens; fills the cache."""
        return self.logits(self.hidden(batch, cache, probe))

    def hidden(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns what the head reads [S, hidden] of the batch's sampled tokens; fills the
        cache."""
        rope = rope_table(self.inv_freq, batch.positions)
        x = F.embedding(batch.token_ids, self.embedding)
        for layer in self.layers:
            x = layer(x, batch, rope, cache, probe)
        return rms_norm(x[batch.sampled], self.norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [S, vocab] float32 of hidden [S, hidden]."""
        return self.head(hidden.float())
