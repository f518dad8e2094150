"""Transfers of blocks between two ends: the rules of both, pure and deterministic. README.md states each once."""
