"""The counts of one model at one gateway, which an answer carries and adds to."""

from __future__ import annotations

from cluster.watching.metrics import Histogram


class ModelFigures:
    """Times of tokens and of whole answers, and how many tokens were asked, cached and written."""

    __slots__ = ("cached", "first", "gap", "output", "prompt", "queue", "whole")

    def __init__(self) -> None:
        self.first = Histogram()
        self.gap = Histogram()
        self.whole = Histogram()
        self.queue = Histogram()
        self.prompt = self.cached = self.output = 0
