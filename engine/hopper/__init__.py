"""The model on a Hopper GPU: the kernels of `kernels.hopper` in the places of the torch operators.

support.py       which models and settings they serve
weights.py       FP8 weights and the products with them
attention.py, feed_forward.py, model.py      what engine/ has under the same names
memory.py        what a step needs beside the pages
runner.py, staging.py                        a step's integers, in one copy
graphs.py        decode steps as CUDA graphs

Nothing here was ever run on a GPU: the tests run it in Triton's interpreter.
"""
