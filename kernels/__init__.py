"""Computes: paged attention, cache writes, block copies and quantisation.

Each op has a plain reference in torch, a fast CPU path and a Triton kernel; `worker` calls them.
This package imports nothing else of the project, and importing it loads no torch.
"""
