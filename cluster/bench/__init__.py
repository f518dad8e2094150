"""Benchmarks, one file each, run by `quire bench NAME` or `python -m cluster.bench NAME`."""
