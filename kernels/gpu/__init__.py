"""The Triton path: one file per kernel with its host wrapper."""
