"""Paged attention and what goes with it, for GPUs and CPUs, beside a plain reference. Imports nothing of ours."""

from kernels.batch import AttentionBatch
from kernels.dispatch import BACKEND_NAMES, Backend, BackendName, backend
from kernels.layout import BlockLayout, KeyOrder, LayerCache, LayerShape

__all__ = [
    "BACKEND_NAMES",
    "AttentionBatch",
    "Backend",
    "BackendName",
    "BlockLayout",
    "KeyOrder",
    "LayerCache",
    "LayerShape",
    "backend",
]
