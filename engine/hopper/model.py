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
from engine.hopper.weights import WideProduct
from engine.model import MtpWeights
from engine.model_config import ModelConfig
from kernels.hopper.quantise import rms_norm_quantise
from kernels.rope import rope_table


class DecoderLayer:
    """One decoder layer; `weights` are named relative to `model.layers.{layer}.`"""

    def __init__(
        self,
        layer: int,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        select: bool,
        batch_invariant: bool,
    ) -> None:
        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in weights if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.pop(name) for name in names}

        self.eps, self.select = config.rms_norm_eps, select
        self.attention_norm = weights.pop("input_layernorm.weight")
        self.feed_forward_norm = weights.pop("post_attention_layernorm.weight")
        own = take("self_attn.")
        self.attention = Attention(
            layer, config, own, select=select, batch_invariant=batch_invariant
        )
        mlp = take("mlp.")
        self.feed_forward: MoE | SwiGlu = (
            MoE(config, mlp, batch_invariant=batch_invariant)
            if config.is_moe(layer)
            else SwiGlu(mlp, batch_invariant=batch_invariant)
        )

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
    taken out of the dict as they are packed. select=False never scores or selects. batch_invariant:
    a token's bits depend on its sequence up to it alone; every row takes the form mqa.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        *,
        select: bool = True,
        batch_invariant: bool = False,
    ) -> None:
        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in weights if name.startswith(prefix)]
            return {name.removeprefix(prefix): weights.pop(name) for name in names}

        self.config, self.select, self.batch_invariant = config, select, batch_invariant
        self.layers = [
            DecoderLayer(
                layer,
                config,
                take(f"model.layers.{layer}."),
                select=select,
                batch_invariant=batch_invariant,
            )
            for layer in range(config.num_hidden_layers)
        ]
        self.mtp = [
            MtpWeights(layer, take(f"model.layers.{layer}.")) for layer in config.mtp_layer_ids
        ]
        self.embedding = weights.pop("model.embed_tokens.weight").bfloat16()
        self.norm = weights.pop("model.norm.weight")
        self.device = self.embedding.device
        head = without_loss(weights.pop("lm_head.weight"))
        self.head = WideProduct(head, batch_invariant=batch_invariant)
        self.inv_freq = torch.tensor(config.inv_freq(), dtype=torch.float64, device=self.device)

    def forward(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns logits [S, vocab] float32 of the batch's sampled tokens; fills the cache."""
        return self.logits(self.hidden(batch, cache, probe))

    def hidden(self, batch: Batch, cache: PagedCache, probe: Probe | None = None) -> Tensor:
        """Returns what the head reads [S, hidden] bfloat16 of the batch's sampled tokens; fills the
        cache.

        Raises ValueError for a form that has no batch-invariant variant.
        """
        if self.batch_invariant and (others := {g.form for g in batch.groups} - {"mqa"}):
            raise ValueError(f"batch-invariant rows take the form mqa; the plan has {others}")
        rope = rope_table(self.inv_freq, batch.positions)
        groups = [
            StepGroup.of(group, rope, batch_invariant=self.batch_invariant)
            for group in batch.groups
        ]
        padding = (batch.slots < 0)[:, None] if batch.padded else None
        x, total = F.embedding(batch.token_ids, self.embedding), None
        for layer in self.layers:
            x, total = layer(x, total, batch.slots, padding, rope, groups, cache, probe)
        x = x[batch.sampled]
        if total is not None:
            total = total[batch.sampled]
        normed = rms_norm_quantise(x, self.norm, self.config.rms_norm_eps, total, keep_normed=True)
        assert normed.normed is not None
        return normed.normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [S, vocab] float32 of hidden [S, hidden] bfloat16."""
        return self.head(hidden)


def without_loss(weight: Tensor) -> Tensor:
    """Returns a weight in bfloat16 if that holds it exactly, as it does published ones, else as it
    is."""
    narrow = weight.bfloat16()
    exact = all(
        torch.equal(a.float(), b.float())
        for a, b in zip(narrow.split(1 << 13), weight.split(1 << 13), strict=True)
    )
    return narrow if exact else weight
