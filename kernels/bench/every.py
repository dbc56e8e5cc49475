"""All cases of the benchmark."""

from __future__ import annotations

from kernels.bench import attention, indexer, memory, products
from kernels.bench.case import Case


def every_case() -> list[Case]:
    """Returns the cases of every op, op by op."""
    found: list[Case] = []
    for module in (attention, indexer, products, memory):
        found += module.cases()
    # Last: a first run on a GPU that goes wrong must not take the others' results with it.
    found += attention.gluon_cases()
    return found
