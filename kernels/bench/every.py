"""All cases of the benchmark."""

from __future__ import annotations

from kernels.bench import attention, fixed_order, indexer, memory, products
from kernels.bench.case import Case

BY_REQUEST = frozenset({"sparse_mla_gluon"})
"""Ops that --op must name: never run on a GPU, they may not end."""


def every_case() -> list[Case]:
    """Returns the cases of every op, op by op."""
    found: list[Case] = []
    for module in (attention, indexer, products, memory, fixed_order):
        found += module.cases()
    found += attention.gluon_cases()
    return found
