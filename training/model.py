"""DeepSeek-V3.2 in differentiable form; parameter names are those of the checkpoint.

Only the routed experts differ: they are stacked here and split when the checkpoint is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attention import AttentionMode, LatentAttention
from training.config import ModelConfig
from training.layers import Linear, RMSNorm, Rotation
from training.moe import Experts, GatedMLP, MoE, Router


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); the residual stays in fp32."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = index < config.first_k_dense_replace
        self.mlp: nn.Module = (
            GatedMLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)
        )

    def forward(
        self, x: Tensor, rotation: Rotation, visible: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """(new residual fp32 [B, T, hidden], index loss)."""
        normalised = self.input_layernorm(x, context.dtype)
        attended, loss = self.self_attn(
            normalised, rotation, visible, context.softmax_scale, context.mode
        )
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, context.dtype)), loss


class SharedHead(nn.Module):
    """The MTP layer's final norm; its head is the main head, copied when exported."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class NextTokenLayer(DecoderLayer):
    """Multi-token prediction: joins the next token's embedding with the main model's output."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)


class Context:
    """How one forward pass is computed: compute dtype, attention mode, YaRN on or off."""

    def __init__(self, config: ModelConfig, mode: AttentionMode, yarn: bool, dtype: torch.dtype):
        self.mode, self.yarn, self.dtype = mode, yarn, dtype
        self.softmax_scale = config.softmax_scale(yarn)


class Body(nn.Module):
    """Embedding, decoder layers (the MTP layer last) and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        main = [DecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        extra = [
            NextTokenLayer(config, config.num_hidden_layers + index)
            for index in range(config.num_nextn_predict_layers)
        ]
        self.layers = nn.ModuleList([*main, *extra])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DeepseekV32(nn.Module):
    """The model; `forward` gives final hidden states, `predict_next` those of the MTP layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(
        self, token_ids: Tensor, positions: Tensor, documents: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """(hidden states after the final norm, fp32 [B, T, hidden]; index loss summed over layers).

        token_ids, positions and documents are int64 [B, T]; tokens see only their own document.
        """
        rotation = Rotation(self.config, positions, context.yarn)
        visible = visible_keys(documents)
        x = F.embedding(token_ids, self.model.embed_tokens.weight)
        loss = torch.zeros(())
        for layer in list(self.model.layers)[: self.config.num_hidden_layers]:
            x, index = layer(x, rotation, visible, context)
            loss = loss + index
        return self.model.norm(x, torch.float32), loss

    def predict_next(
        self,
        hidden: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        documents: Tensor,
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        """(hidden states that predict the token after the next one, index loss of the MTP layer).

        Position i joins hidden[i] with the embedding of token i + 1, so the last position of the
        row is dropped: the result is fp32 [B, T - 1, hidden].
        """
        layer = self.model.layers[self.config.num_hidden_layers]
        assert isinstance(layer, NextTokenLayer)
        embedded = F.embedding(token_ids[:, 1:], self.model.embed_tokens.weight)
        joined = torch.cat(
            (layer.enorm(embedded, context.dtype), layer.hnorm(hidden[:, :-1], context.dtype)), -1
        )
        rotation = Rotation(self.config, positions[:, :-1], context.yarn)
        x, loss = layer(
            layer.eh_proj(joined).float(), rotation, visible_keys(documents[:, :-1]), context
        )
        return layer.shared_head.norm(x, torch.float32), loss

    def logits(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """fp32 [..., vocab] of final hidden states."""
        output: Tensor = self.lm_head(hidden.to(dtype)).float()
        return output

    def quantise(self, on: bool) -> None:
        """Turns FP8 rounding of the weights that the checkpoint stores in FP8 on or off."""
        for name, module in self.named_modules():
            if isinstance(module, Experts) or (isinstance(module, Linear) and stored_in_fp8(name)):
                module.quantise = on

    def routers(self) -> list[Router]:
        """The routers of all MoE layers, the MTP layer's included."""
        return [module for module in self.modules() if isinstance(module, Router)]


def stored_in_fp8(name: str) -> bool:
    """Whether the checkpoint holds the linear layer `name` in FP8 rather than bf16."""
    return not name.endswith(("lm_head", "eh_proj", "weights_proj", "mlp.gate"))


def visible_keys(documents: Tensor) -> Tensor:
    """bool [B, T, T]: key s is visible to query t if s <= t and both are of one document."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return causal & (documents.unsqueeze(2) == documents.unsqueeze(1))
