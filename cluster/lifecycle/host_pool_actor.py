"""The Ray actor that owns the host memory of one node, which blocks are swapped to, and how there comes to be one.

Every worker that comes up sees to it that its node has one, so nodes that join later have theirs too. Workers of one
layout share a pool; another model's blocks need one of their own, as large as `--host-memory` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cluster.lifecycle.actor import CENTRE, CONTROL, Observed, Serving, find_scheduler, node_and_pid
from cluster.lifecycle.cluster_settings import ClusterSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """The node of a worker, and the bytes and the form of its blocks."""

    node: str
    block_bytes: int
    fingerprint: str

    @property
    def host_pool(self) -> str:
        return f"host-{self.node[:8]}-{sha256(self.fingerprint.encode()).hexdigest()[:4]}"


def wants_host_pools(settings: ClusterSettings) -> bool:
    return settings.host_memory != "0"


class HostPoolActor:
    """One node's, for blocks of one layout."""

    def __init__(
        self, settings: ClusterSettings, namespace: str, name: str, block_bytes: int, fingerprint: str
    ) -> None:
        from cluster.lifecycle.ray_state import RayState

        self._settings = settings
        self._state = RayState(namespace)
        self._name = name
        self._block_bytes = block_bytes
        self._fingerprint = fingerprint
        self._observed = Observed(settings, self._state, name)
        self._serving = Serving(self._serve)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        import ray

        from cluster.serving.inside import inside_of
        from worker.host_pool import HostPoolServer, HostPoolSettings
        from worker.host_pool_serve import serve_host_pool
        from worker.transfer.server import Listening

        inside = inside_of(self._state)
        settings = HostPoolSettings(
            name=self._name,
            node=ray.get_runtime_context().get_node_id()[:12],
            size=self._settings.host_memory,
            block_bytes=self._block_bytes,
            fingerprint=self._fingerprint,
            incarnation=self._state.next_life(self._name),
            listening=Listening(inside.host),
        )
        pool = HostPoolServer(settings, inside.security)
        ready(f"{pool.num_blocks:,} blocks")
        try:
            await serve_host_pool(pool, self._find, inside.security)
        finally:
            pool.close()

    async def _find(self) -> str:
        return await find_scheduler(self._state, CONTROL)

    def end(self) -> None:
        """No worker needs it any more, and it is about to be ended."""
        self._observed.end()

    async def ready(self, timeout_s: float) -> str:
        return await self._serving.wait(timeout_s)

    def where(self) -> tuple[str, int]:
        return node_and_pid()


def ensure_host_pool(settings: ClusterSettings, namespace: str, layout: Layout) -> None:
    """Called by a worker that comes up. It serves without one too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not wants_host_pools(settings):
        return
    affinity = NodeAffinitySchedulingStrategy(node_id=layout.node, soft=False)
    name = layout.host_pool
    options = {**CENTRE, "name": name, "namespace": namespace, "get_if_exists": True, "scheduling_strategy": affinity}
    make = ray.remote(HostPoolActor).options(**options)
    try:
        make.remote(settings, namespace, name, layout.block_bytes, layout.fingerprint)
    except (ray.exceptions.RayError, ValueError) as error:
        log.warning("host memory %s cannot be had: %s", name, " ".join(str(error).split())[:300])
