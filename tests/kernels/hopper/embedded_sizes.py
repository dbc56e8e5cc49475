"""Compiles the kernels for sm_90 at the embedded checkpoint's sizes; prints what went wrong.

A program of its own: where kernels are interpreted, nothing can be compiled.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

from kernels.hopper.report import specialisations
from kernels.hopper.specialisation import Specialisation, compile_for_hopper

HIDDEN, QUERY_RANK, LATENT, ROPE, NOPE, VALUE, HEADS = 256, 128, 128, 32, 32, 32, 16
INDEX_HEADS, INDEX_WIDTH, TOP_K = 8, 128, 64
EXPERTS, GROUPS, KEPT, ACTIVE = 16, 4, 2, 4
ROW_BYTES = LATENT + 4 + 2 * ROPE

OF_ROWS = {"C": LATENT, "R": ROPE}
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("latent_writer", "fp8"): OF_ROWS
    | {"GROUP": 128, "GROUPS": 1, "HALF": ROPE // 2, "ALIGNED": False},
    ("index_key_writer", "fp8"): {"D": INDEX_WIDTH, "R": ROPE},
    ("index_query", "fp8"): {"J": INDEX_HEADS, "R": ROPE, "BLOCK_T": 64 // INDEX_HEADS},
    ("indexer_logits", "64_heads"): {"J": INDEX_HEADS, "BLOCK_Q": 128 // INDEX_HEADS},
    ("paged_indexer_logits", "1_row"): {"J": INDEX_HEADS, "ROWS_POW2": 2},
    ("topk", "prefill"): {"K": TOP_K, "K_POW2": TOP_K, "TARGET": math.isqrt(TOP_K * 8192)},
    ("topk", "decode"): {"K": TOP_K, "K_POW2": TOP_K, "TARGET": math.isqrt(TOP_K * 8192)},
    ("sparse_mla", "fp8 h16"): OF_ROWS | {"ROW": ROW_BYTES},
    ("sparse_mla", "fp8 h16 partial"): OF_ROWS | {"ROW": ROW_BYTES},
    ("sparse_mla", "bf16 h16"): OF_ROWS | {"ROW": LATENT + ROPE},
    ("dense_mla", "fp8 h16"): OF_ROWS | {"ROW": ROW_BYTES},
    ("dense_mla", "fp8 h16 partial"): OF_ROWS | {"ROW": ROW_BYTES},
    ("dense_mha", "dense, 192 and 128 wide"): {"NOPE": NOPE, "ROPE": ROPE, "VALUE": VALUE},
    ("dense_mha", "masked, 192 and 128 wide"): {"NOPE": NOPE, "ROPE": ROPE, "VALUE": VALUE},
    ("split_combine", "h16"): {"C": LATENT},
    ("quantise", "RMSNorm of 512"): {"BLOCK_GROUPS": QUERY_RANK // 128},
    ("quantise", "RMSNorm of 7168, residual added"): {"BLOCK_GROUPS": HIDDEN // 128},
    ("query_rotation", "bf16, 64 wide"): {"R": ROPE, "HALF": ROPE // 2, "BLOCK_H": HEADS},
    ("routing", "route: 256 experts in 8 groups, 4 kept, top 8"): {
        "KEPT_GROUPS": KEPT,
        "TOP_K": ACTIVE,
        "BLOCK_GROUPS": GROUPS,
        "BLOCK_SIZE": EXPERTS // GROUPS,
        "BLOCK_TOP_K": ACTIVE,
    },
    ("routing", "place pairs, tiles of 16"): {"BLOCK_EXPERTS": EXPERTS, "BLOCK_PAIRS": 16},
    ("grouped_linear", "tiles of 16 gathered tokens"): {"TOP_K": ACTIVE},
    ("fixed_order_linear", "absorbing products"): {"BLOCK_K": NOPE},
    ("routed_experts", "combine top 8"): {"TOP_K": ACTIVE, "BLOCK_WIDTH": HIDDEN},
}
"""Op and specialisation -> the constants that differ."""

UNALIGNED = {"latent_writer": ("values_stride",), "routing": ("group_size",)}
"""Integers that are no multiples of 16 at these sizes."""
WIDTHS = {"bf16[128, 128]": f"bf16[128, {NOPE}]", "bf16[64, 128]": f"bf16[64, {NOPE}]"}
ROPES = {"bf16[128, 64]": f"bf16[128, {ROPE}]", "bf16[64, 64]": f"bf16[64, {ROPE}]"}


def resized(op: str, name: str) -> Specialisation:
    """Returns a specialisation at the embedded sizes."""
    one = specialisations(op)[name]
    signature = dict(one.signature)
    if op == "dense_mha":
        for argument, kind in signature.items():
            for old, new in (WIDTHS | ROPES).items():
                kind = kind.replace(old, new)
            signature[argument] = kind
    unaligned = UNALIGNED.get(op, ())
    aligned = tuple(argument for argument in one.aligned if argument not in unaligned)
    constants = dict(one.constants) | CHANGES[op, name]
    return replace(one, signature=signature, aligned=aligned, constants=constants)


def main() -> int:
    """Prints a JSON object of failures by op and name."""
    failures = {}
    for op, name in CHANGES:
        try:
            used = compile_for_hopper(resized(op, name))
        except Exception as error:  # compilers raise what they like; the others are still tried
            failures[f"{op} {name}"] = " ".join(str(error).split())[-300:]
            continue
        if used.spilled_bytes or not used.ctas_per_sm:
            failures[f"{op} {name}"] = str(used)
    print(json.dumps(failures, indent=1))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
