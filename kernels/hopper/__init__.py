"""The ops for sm_90 (H100, H200, H800): Triton kernels and their launchers, one op per file.

A module here holds the kernels of the op of the same name in `kernels`, named `..._kernel`, a
launcher with that op's contract, and `SPECIALISATIONS`: the compile-time variants that serve the
671B model, each with the budget it was designed to (`kernels.hopper.specialisation`).

Launchers take CUDA tensors, or CPU tensors where TRITON_INTERPRET=1 was set before triton was
imported. They raise ValueError before the launch for what a kernel does not support.
"""
