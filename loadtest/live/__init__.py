"""Load tests of a running server: users, arrivals, exact latencies, cost, and targets to keep.

Only `process`, `users` and `web` import locust and gevent, and only `cli` imports those, when it
runs: locust patches the standard library of the process that imports it.
"""
