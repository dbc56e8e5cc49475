"""Replicas of Winnow behind one address, as a Ray Serve application. docs/ray.md says how."""
