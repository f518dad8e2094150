"""Obeys: pools, step loop, model, sampler and transfers of one accelerator.

A worker owns the bytes of its blocks and does what the scheduler's plans say; it allocates no block itself.
It imports `kernels`, `protos` and those files of `cluster` that define messages, settings, errors and the batcher.
"""
