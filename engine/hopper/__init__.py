"""The model on a Hopper GPU: the kernels of `kernels.hopper` in the places of the torch operators.

support.py       which models and settings they serve
weights.py       weights as they are held, and the products with them
attention.py, feed_forward.py, model.py      what engine/ has under the same names
runner.py, staging.py                        a step's integers, in one copy
sampler.py       draws by the kernel
graphs.py        decode steps as CUDA graphs
rehearsal.py     steps that write nothing: kernels compiled, memory measured
replica.py       all of it put together for a replica

Nothing here was ever run on a GPU: the tests run it in Triton's interpreter.
"""
