"""Data sheets: what a machine can do at best, each figure with its source.

Rates are dense (no 2:4 sparsity). The price is only where a run has none of its own: the report's
2 USD per GPU-hour for GPUs, a nominal one for the CPU.
"""

from __future__ import annotations

from math import inf
from pathlib import Path

import msgspec

from cost_model.errors import CostError

TERA, GIGA = 1e12, 1e9


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU (or, for `cpu`, one whole machine)."""

    name: str
    bf16_flops: float
    """Peak FLOP/s of bfloat16 products; of float32 for a measured CPU, which computes in it."""
    fp8_flops: float
    """Peak FLOP/s of 8-bit floating-point products; the bfloat16 rate where there are none."""
    memory_bandwidth: float
    """Bytes per second."""
    memory_bytes: float
    scale_up_bandwidth: float = 0.0
    """NVLink or Infinity Fabric, bytes per second, both directions together; 0: none."""
    scale_out_bandwidth: float = 0.0
    """Network card, bytes per second in one direction; 0: none."""
    usd_per_hour: float = 2.0
    measured: bool = False
    """The rates were measured, so nothing is taken off them; else they are peaks."""
    source: str

    def __post_init__(self) -> None:
        for field in ("bf16_flops", "fp8_flops", "memory_bandwidth", "memory_bytes"):
            if not 0 < getattr(self, field) < inf:
                raise CostError(f"{field} is {getattr(self, field)}; allowed: above 0, finite")
        for field in ("scale_up_bandwidth", "scale_out_bandwidth", "usd_per_hour"):
            if not 0 <= getattr(self, field) < inf:
                raise CostError(f"{field} is {getattr(self, field)}; allowed: 0 and above, finite")


NETWORK = 50 * GIGA
"""One 400 Gb/s network card for each GPU, as in the report's H800 cluster; assumed elsewhere."""

NOMINAL_USD_PER_CORE_HOUR = 0.04
"""About what clouds ask for a virtual core; no bill, only so that a CPU's tokens have a price."""

H100 = Machine(
    name="h100",
    bf16_flops=989.5 * TERA,
    fp8_flops=1979 * TERA,
    memory_bandwidth=3.35 * TERA,
    memory_bytes=80 * GIGA,
    scale_up_bandwidth=900 * GIGA,
    scale_out_bandwidth=NETWORK,
    source="NVIDIA H100 SXM data sheet (sparse rates halved)",
)
MACHINES = {
    machine.name: machine
    for machine in (
        H100,
        msgspec.structs.replace(
            H100,
            name="h800",
            scale_up_bandwidth=400 * GIGA,
            source="the H100 SXM with NVLink cut to 400 GB/s (DeepSeek-V3 report, section 3.1)",
        ),
        msgspec.structs.replace(
            H100,
            name="h200",
            memory_bandwidth=4.8 * TERA,
            memory_bytes=141 * GIGA,
            source="NVIDIA H200 SXM data sheet (sparse rates halved)",
        ),
        Machine(
            name="h20",
            bf16_flops=148 * TERA,
            fp8_flops=296 * TERA,
            memory_bandwidth=4.0 * TERA,
            memory_bytes=96 * GIGA,
            scale_up_bandwidth=900 * GIGA,
            scale_out_bandwidth=NETWORK,
            source="NVIDIA H20 figures as printed by resellers; no public NVIDIA data sheet",
        ),
        Machine(
            name="b200",
            bf16_flops=2250 * TERA,
            fp8_flops=4500 * TERA,
            memory_bandwidth=8.0 * TERA,
            memory_bytes=180 * GIGA,
            scale_up_bandwidth=1800 * GIGA,
            scale_out_bandwidth=NETWORK,
            source="NVIDIA DGX B200 data sheet, an eighth of the system (sparse rates halved)",
        ),
        Machine(
            name="gb200",
            bf16_flops=2500 * TERA,
            fp8_flops=5000 * TERA,
            memory_bandwidth=8.0 * TERA,
            memory_bytes=186 * GIGA,
            scale_up_bandwidth=1800 * GIGA,
            scale_out_bandwidth=NETWORK,
            source="NVIDIA GB200 NVL72 data sheet, per GPU (sparse rates halved)",
        ),
        Machine(
            name="mi300x",
            bf16_flops=1307 * TERA,
            fp8_flops=2615 * TERA,
            memory_bandwidth=5.3 * TERA,
            memory_bytes=192 * GIGA,
            scale_up_bandwidth=896 * GIGA,
            scale_out_bandwidth=NETWORK,
            source="AMD Instinct MI300X data sheet",
        ),
        # Printed by: OMP_NUM_THREADS=2 python -m cost_model.measure
        Machine(
            name="cpu",
            bf16_flops=187.4 * GIGA,
            fp8_flops=187.4 * GIGA,
            memory_bandwidth=24.4 * GIGA,
            memory_bytes=25.3 * GIGA,
            usd_per_hour=NOMINAL_USD_PER_CORE_HOUR * 2,
            measured=True,
            source=(
                "measured by `python -m cost_model.measure` on 2026-11-22 on one idle virtual "
                "machine with 2 cores of an Intel Xeon (AVX-512), float32 by numpy 2.4.6; another "
                "CPU is another data sheet. Price nominal: 0.04 USD per core and hour, "
                "about what clouds ask for a virtual core"
            ),
        ),
    )
}


def machine_named(name: str) -> Machine:
    """The data sheet called `name`, or that in a JSON file (see `cost_model.measure`).

    Raises CostError with the known names, or naming the file and the field.
    """
    if name in MACHINES:
        return MACHINES[name]
    if not name.endswith(".json"):
        raise CostError(f"gpu is {name!r}; allowed: {', '.join(MACHINES)}, or a .json data sheet")
    try:
        return msgspec.json.decode(Path(name).read_bytes(), type=Machine)
    except OSError as error:
        raise CostError(f"{name}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise CostError(f"{name}: {error}") from None
