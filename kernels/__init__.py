"""What computes: one op per file, one contract for every backend, one plain reference each.

Shape letters used in every docstring here:

    T tokens (query rows)    H attention heads     C latent width (kv_lora_rank)
    B sequences              J index heads         R rotary width
    L context length         D index width         N, V per-head key (non-rotary) and value width
    K top-k                  P pages               E routed experts

A `slot` is a token's place in the paged cache, `page * page_tokens + offset`, 64-bit; -1 is none.
A function `op_reference` beside an `op` states the same contract in the plainest possible form and
runs in any float dtype, float64 included.
"""
