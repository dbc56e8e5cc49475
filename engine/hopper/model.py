"""DeepSeek-V3.2 of the kernels for Hopper: the surface of `engine.model.DeepseekV32`.

Residual additions, norms and the quantisation of what follows are one kernel: a layer hands on its
output and the sum it is still to be added to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention import Probe
from engine.batch import Batch
from engine.cache import PagedCache
from engine.hopper.attention import Attention, StepGroup
from engine.hopper.feed_forward import MoE, SwiGlu
from engine.model import MtpWeights
from engine.model_config import ModelConfig
from kernels.hopper.quantise import rms_norm_quantise
from kernels.norm import rms_norm
from kernels.rope import rope_table


class DecoderLayer:
    """One decoder layer; `weights` are named relative to `model.layers.{layer}.`"""

    def __init__(
        self, layer: int, config: ModelConfig, weights: dict[str, Tensor], *, select: bool
    ) -> None:
        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in weights if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.pop(name) for name in names}

        self.eps, self.select = config.rms_norm_eps, select
        self.attention_norm = weights.pop("input_layernorm.weight")
        self.feed_forward_norm = weights.pop("post_attention_layernorm.weight")
        self.attention = Attention(layer, config, take("self_attn."), select=select)
        mlp = take("mlp.")
        self.feed_forward: MoE | SwiGlu = MoE(config, mlp) if config.is_moe(layer) else SwiGlu(mlp)

    def __call__(
        self,
        x: Tensor,
        total: Tensor | None,
        slots: Tensor,
        padding: Tensor | None,
        rope: Tensor,
        groups: list[StepGroup],
        cache: PagedCache,
        probe: Probe | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the layer's output, still to be added, and the sum [T, hidden] before it.

        x, total: the same of the layer before; None: x is the embedding. padding [T, 1] bool:
        tokens that fill up the batch; None: there are none.
        """
        normed = rms_norm_quantise(x, self.attention_norm, self.eps, total, keep_normed=self.select)
        x = self.attention(normed, slots, rope, groups, cache, probe)
        sparse = isinstance(self.feed_forward, MoE)
        normed = rms_norm_quantise(
            x, self.feed_forward_norm, self.eps, normed.summed, keep_normed=sparse
        )
        if isinstance(self.feed_forward, MoE):
            return self.feed_forward(normed, padding), normed.summed
        return self.feed_forward(normed), normed.summed


class HopperDeepseekV32:
    """The model on one device: FP8 products and caches, bfloat16 between them.

    weights: as `engine.checkpoint.load_weights` returns them with keep_fp8 and bfloat16. They are
    taken out of the dict as they are packed. select=False never scores or selects.
    """

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], *, select: bool = True
    ) -> None:
        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in weights if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.pop(name) for name in names}

        self.config, self.select = config, select
        self.layers = [
            DecoderLayer(layer, config, take(f"model.layers.{layer}."), select=select)
            for layer in range(config.num_hidden_layers)
        ]
        self.mtp = [
            MtpWeights(layer, take(f"model.layers.{layer}.")) for layer in config.mtp_layer_ids
        ]
        self.embedding = weights.pop("model.embed_tokens.weight").bfloat16()
        self.norm = weights.pop("model.norm.weight")
        self.device = self.embedding.device
        self.head = Head(weights.pop("lm_head.weight"))
        self.inv_freq = torch.tensor(config.inv_freq(), dtype=torch.float64, device=self.device)

    def forward(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns logits [S, vocab] float32 of the batch's sampled tokens; fills the cache."""
        return self.logits(self.hidden(batch, cache, probe))

    def hidden(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns what the head reads [S, hidden] bfloat16 of the batch's sampled tokens; fills the
        cache."""
        rope = rope_table(self.inv_freq, batch.positions)
        groups = [StepGroup.of(group, rope) for group in batch.groups]
        padding = (batch.slots < 0)[:, None] if batch.padded else None
        x, total = F.embedding(batch.token_ids, self.embedding), None
        for layer in self.layers:
            x, total = layer(x, total, batch.slots, padding, rope, groups, cache, probe)
        x = x[batch.sampled]
        if total is not None:
            x = x + total[batch.sampled]
        return rms_norm(x, self.norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [S, vocab] float32 of hidden [S, hidden] bfloat16."""
        return self.head(hidden)


class Head:
    """Logits in float32. A weight that bfloat16 holds exactly, as published ones do, is kept so."""

    def __init__(self, weight: Tensor) -> None:
        narrow = weight.bfloat16()
        exact = all(
            torch.equal(a.float(), b)
            for a, b in zip(narrow.split(1 << 13), weight.split(1 << 13), strict=True)
        )
        self.weight = narrow if exact else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [S, vocab] float32 of x [S, hidden] bfloat16; products are added in float32."""
        if self.weight.dtype == torch.bfloat16 and x.device.type == "cuda":
            return torch.mm(x, self.weight.T, out_dtype=torch.float32)
        return F.linear(x.float(), self.weight.float())
