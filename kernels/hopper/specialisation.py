"""Compile-time variants of kernels: what each may use of an SM, and what it does use.

Triton compiles for sm_90 on a machine without a GPU, and the cubin says what the kernel costs:
registers, spills, shared memory, instructions. A design is good for a certain number of CTAs an SM
and for one tensor-core instruction; a budget holds it to them across compiler versions.

Source: CUDA C++ Programming Guide, compute capability 9.0, and the CUDA occupancy rules.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
REGISTERS_PER_SM = 65_536
THREADS_PER_SM = 2_048
CTAS_PER_SM = 32
SHARED_BYTES_PER_SM = 228 * 1024
SHARED_BYTES_PER_CTA = 227 * 1024
RESERVED_SHARED_BYTES = 1024
"""What the system takes of an SM's shared memory for each CTA."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_THREADS = re.compile(r"\.(?:reqntid|maxntid) (\d+)")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.M)


@dataclass(frozen=True)
class Budget:
    """What a specialisation may use; it may never spill."""

    registers: int
    """Per thread, at most."""
    shared_bytes: int
    """Per CTA, at most."""
    ctas_per_sm: int
    """CTAs that an SM must be able to hold at once, at least."""
    mma: str | None
    """The tensor-core opcode it must contain: HGMMA (16-bit wgmma), QGMMA (8-bit wgmma), HMMA
    (mma.sync), or None for a kernel that multiplies no matrices."""


@dataclass(frozen=True)
class Specialisation:
    """One compile-time variant of a kernel, as its launcher would ask for it."""

    name: str
    kernel: Any
    """A function under @triton.jit or @gluon.jit."""
    signature: Mapping[str, str]
    """Run-time argument -> Triton type: "*fp8e4nv", "*bf16", "*u8", "*i32", "i64", "fp32", ..."""
    constants: Mapping[str, object]
    """Compile-time argument -> value; a pointer that is None at run time stands here too."""
    aligned: tuple[str, ...]
    """Arguments that are divisible by 16 at run time: pointers by bytes, integers by value."""
    warps: int
    stages: int
    budget: Budget
    options: Mapping[str, object] = field(default_factory=dict)
    """Further compile options, such as maxnreg."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses."""

    registers: int
    spilled_bytes: int
    """Stack and local memory per thread."""
    shared_bytes: int
    ctas_per_sm: int
    instructions: Mapping[str, int]
    """SASS opcode without its modifiers -> how often it stands in the code."""


def ctas_per_sm(registers: int, shared_bytes: int, threads: int) -> int:
    """Returns how many CTAs an sm_90 SM holds at once, 0 if not even one.

    registers are per thread and given to a warp in units of 256; shared_bytes are per CTA.
    """
    warps = -(-threads // 32)
    registers_per_warp = -(-registers * 32 // 256) * 256
    if shared_bytes > SHARED_BYTES_PER_CTA:
        return 0
    return min(
        CTAS_PER_SM,
        THREADS_PER_SM // (warps * 32),
        REGISTERS_PER_SM // (registers_per_warp * warps),
        SHARED_BYTES_PER_SM // (shared_bytes + RESERVED_SHARED_BYTES),
    )


def compiled_for_hopper(specialisation: Specialisation) -> Any:
    """Returns the specialisation as triton compiles it for sm_90, its code by kind in `asm`.

    Needs no GPU. Raises ValueError when its arguments are not the kernel's, RuntimeError under
    TRITON_INTERPRET=1 (nothing can be compiled then) and what the compiler raises.
    """
    _check_arguments(specialisation)
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set; kernels are interpreted, not compiled")
    return triton.compile(
        _source(specialisation),
        target=HOPPER,
        options={
            "num_warps": specialisation.warps,
            "num_stages": specialisation.stages,
            **specialisation.options,
        },
    )


def compile_for_hopper(specialisation: Specialisation) -> Resources:
    """Returns what the specialisation uses of an SM; raises as `compiled_for_hopper` does."""
    compiled = compiled_for_hopper(specialisation)
    usage, code = _disassemble(compiled.asm["cubin"])
    found = _USAGE.search(usage)
    threads = _THREADS.search(compiled.asm["ptx"])
    if found is None or threads is None:
        raise RuntimeError(f"cannot read the resource usage of {specialisation.name}: {usage!r}")
    registers, stack, _, local = map(int, found.groups())
    shared_bytes = compiled.metadata.shared
    return Resources(
        registers=registers,
        spilled_bytes=stack + local,
        shared_bytes=shared_bytes,
        ctas_per_sm=ctas_per_sm(registers, shared_bytes, int(threads[1])),
        instructions=dict(Counter(_INSTRUCTION.findall(code))),
    )


def broken_limits(budget: Budget, resources: Resources) -> list[str]:
    """Returns a sentence for each limit of the budget that the resources break."""
    broken = []
    if resources.registers > budget.registers:
        broken.append(f"{resources.registers} registers; the budget is {budget.registers}")
    if resources.spilled_bytes or resources.instructions.get("STL", 0):
        broken.append(f"spills {resources.spilled_bytes} bytes a thread; it must not spill")
    if resources.shared_bytes > budget.shared_bytes:
        broken.append(f"{resources.shared_bytes} shared bytes; the budget is {budget.shared_bytes}")
    if resources.ctas_per_sm < budget.ctas_per_sm:
        broken.append(f"{resources.ctas_per_sm} CTAs an SM; the budget is {budget.ctas_per_sm}")
    if budget.mma is not None and not resources.instructions.get(budget.mma, 0):
        broken.append(f"no {budget.mma} instruction")
    return broken


def _check_arguments(specialisation: Specialisation) -> None:
    name, arguments = specialisation.name, list(specialisation.kernel.arg_names)
    given = [*specialisation.signature, *specialisation.constants]
    if sorted(given) != sorted(arguments):
        wrong = sorted(set(given) ^ set(arguments)) or "one given twice"
        raise ValueError(f"{name}: signature and constants do not name the arguments: {wrong}")
    if unknown := set(specialisation.aligned) - set(specialisation.signature):
        raise ValueError(f"{name}: aligned names {sorted(unknown)}, which the signature does not")


def _source(specialisation: Specialisation) -> Any:
    kernel, arguments = specialisation.kernel, list(specialisation.kernel.arg_names)
    source_class: Any = ASTSource
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        source_class = GluonASTSource
    return source_class(
        fn=kernel,
        signature={a: specialisation.signature.get(a, "constexpr") for a in arguments},
        constexprs={(arguments.index(a),): v for a, v in specialisation.constants.items()},
        attrs={(arguments.index(a),): [["tt.divisibility", 16]] for a in specialisation.aligned},
    )


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """The resource usage and the SASS of a cubin, as cuobjdump prints them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run(
                [_TOOLS / "cuobjdump", option, file.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    return usage, code
