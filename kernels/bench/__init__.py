"""`python -m kernels.bench`: every op of `kernels.hopper` at the 671B sizes, checked and timed.

case.py          a case: what is run, what it is worth, what it is checked against
attention.py, indexer.py, products.py, memory.py, fixed_order.py        the cases of the ops
clock.py         times on the device, and the device's own ceilings
report.py        a table, and the operator times that `cost_model`'s preset `measured` reads

Imports torch and triton alone. No figure counts whose check failed.
"""
