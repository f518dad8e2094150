"""Which cases of a product an everyday run takes; `--trust` takes all of it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any]) -> list[Any]:
    """All cases of the product, for `parametrize`. Those that an everyday run takes have every value of each axis
    beside every value of each other one; the rest is marked `trust`. The same axes give the same choice."""
    cases = list(product(*axes))
    missing = {pair for case in cases for pair in _pairs(case)}
    everyday = set[int]()
    while missing:
        best = max(range(len(cases)), key=lambda at: len(missing.intersection(_pairs(cases[at]))))
        everyday.add(best)
        missing.difference_update(_pairs(cases[best]))
    return [pytest.param(*case, marks=() if at in everyday else pytest.mark.trust) for at, case in enumerate(cases)]


def _pairs(case: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return list(combinations(enumerate(case), 2))
