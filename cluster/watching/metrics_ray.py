"""The cluster's figures through Ray's own metrics agent, for those who already scrape Ray.

The scheduler's actor mirrors them every few seconds. Ray has counters and gauges of its own making only: our counters
go over as what they grew by, and histograms as their cumulative buckets, each a counter with the label `le`, so that
`histogram_quantile` works on them as on ours. Names there begin with `ray_quire_`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.watching.metrics import PREFIX, Family
from cluster.watching.metrics_serve import Collect

EVERY_S = 10.0


class RayMirror:
    """Remembers what Ray was told last."""

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def update(self, families: list[Family]) -> None:
        from ray.util.metrics import Counter, Gauge

        for family in families:
            for sample in family.samples:
                # Ray's agents give their figures to whoever asks, so nothing of tenants goes there.
                if any(key == "tenant" for key, _ in sample.labels):
                    continue
                name = PREFIX + family.name + sample.suffix
                keys = tuple(key for key, _ in sample.labels)
                kind = Gauge if family.kind == "gauge" else Counter
                instrument = self._instruments.get(name)
                if instrument is None:
                    instrument = self._instruments[name] = kind(name, description=family.help, tag_keys=keys)
                tags = dict(sample.labels)
                if family.kind == "gauge":
                    instrument.set(sample.value, tags=tags)
                    continue
                before = self._told.get((name, sample.labels), 0.0)
                # A gateway that was started again counts from nothing.
                grown = sample.value - before if sample.value >= before else sample.value
                self._told[name, sample.labels] = sample.value
                if grown > 0:
                    instrument.inc(grown, tags=tags)


async def mirror_to_ray(collect: Collect) -> None:
    """Runs until cancelled."""
    mirror = RayMirror()
    while True:
        await asyncio.sleep(EVERY_S)
        mirror.update(await collect())
