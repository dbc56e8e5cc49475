"""Dense absorbed MLA: query rows over every latent row of their request that they may see.

What sparse MLA would compute with every visible token chosen; the form of V3.1 and of
`--attention dense`, and what selection is checked against.

Source: DeepSeek-V2 report, eq. 37-47 (absorbed form).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.sparse_mla import sparse_mla


def dense_mla(
    q: Tensor,
    cache: Tensor,
    page_tables: Tensor,
    visible: Tensor,
    scale: float,
    *,
    latent: int,
    page_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Returns per-head averages of the latents [T, H, C] in q's dtype and the scores' natural
    log-sum-exp [T, H] float32.

    q [T, H, C + R], T = B * n: n rows of each of B requests, neighbours; cache as in
    `kernels.sparse_mla.sparse_mla`; page_tables [B, P] int32 or int64, -1 behind the last page;
    visible [T] int32 or int64: the row sees positions below visible[t] of its request, at most
    P * page_tokens. A row that sees nothing gives 0, and -inf as its log-sum-exp.
    Raises ValueError when T is no multiple of B.
    """
    requests, pages = page_tables.shape
    if requests == 0 or q.shape[0] % requests:
        raise ValueError(f"q has {q.shape[0]} rows; they must be a multiple of {requests} requests")
    positions = torch.arange(pages * page_tokens, device=q.device)
    slots = page_tables.long()[:, positions // page_tokens] * page_tokens
    slots = (slots + positions % page_tokens).repeat_interleave(q.shape[0] // requests, 0)
    slots = slots.masked_fill(positions >= visible[:, None], -1)
    return sparse_mla(q, cache, slots, scale, latent=latent)
