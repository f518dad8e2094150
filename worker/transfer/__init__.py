"""Blocks between pools: the protocol, its two ends and its roads."""
