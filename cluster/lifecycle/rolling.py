"""`quire restart --rolling`: starts a running cluster's processes again, one after the other, so that streams go on.

New code is loaded by it, and what leaked is given back. Gateways first, whose clients come back through another one or
the same; then workers, each once its requests have moved; the scheduler last, behind which streams run on by their
leases. Each is waited for before the next one goes. Host pools stay: what lies there is not to be computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cluster.errors import Unavailable
from cluster.lifecycle.fleet import ADMIN_S, DRAIN_S, WorkerFleet, own_fleet
from cluster.lifecycle.placing import END_S, wait_until_joined
from cluster.lifecycle.stages import START_S, wait_until_ready

if TYPE_CHECKING:
    from cluster.lifecycle.running import Running

# The order is that of the start of this page.
KINDS = ("gateways", "workers", "scheduler")
LOOK_S = 0.2
PAUSE_S = 1.0
"""Between two gateways: clients of the first have come back by then."""

Say = Callable[[str], None]


def restart(kinds: tuple[str, ...], say: Say) -> None:
    """Processes of these kinds of the cluster that this user has up. Raises `Unavailable` for one that does not come
    back; what was to follow is left as it is then."""
    began = time.monotonic()
    with own_fleet(say) as (running, fleet):
        rolling = Rolling(running, fleet, lambda line: say(f"{time.monotonic() - began:5.1f} s  {line}"))
        for kind in KINDS:
            if kind in kinds:
                getattr(rolling, kind)()
    say(f"started again: {', '.join(kind for kind in KINDS if kind in kinds)}")


class Rolling:
    """One round."""

    def __init__(self, running: Running, fleet: WorkerFleet, say: Say) -> None:
        self._namespace = running.namespace
        self._gateways = [f"gateway-{number}" for number in range(len(running.gateways))]
        self._fleet = fleet
        self._say = say

    def gateways(self) -> None:
        for name in self._gateways:
            self._again(name)
            self._until_connected(name)
            time.sleep(PAUSE_S)

    def workers(self) -> None:
        for worker in sorted(self._fleet.workers(), key=lambda one: (one.model, len(one.name), one.name)):
            self._worker(worker)

    def _worker(self, worker: Any) -> None:
        from protos.quire.v1 import admin_pb2 as pb

        self._fleet.admin.Drain(pb.DrainRequest(worker=worker.name), timeout=ADMIN_S)
        if not self._fleet.is_empty_within(worker.name, DRAIN_S):
            self._say(f"{worker.name} has requests after {DRAIN_S:g} s; they go on elsewhere from what clients have")
        self._again(worker.name)
        self._until(
            f"{worker.name} has not joined again",
            lambda: any(
                one.name == worker.name and one.incarnation > worker.incarnation for one in self._fleet.workers()
            ),
        )

    def scheduler(self) -> None:
        names = [one.name for one in self._fleet.workers()]
        self._again("scheduler")
        wait_until_joined(self._fleet.admin, names)
        for name in self._gateways:
            self._until_connected(name)

    def _until_connected(self, gateway: str) -> None:
        self._until(f"{gateway} does not reach the scheduler", lambda: self._is_connected(gateway))

    def _is_connected(self, gateway: str) -> bool:
        from protos.quire.v1 import admin_pb2 as pb

        found = self._fleet.admin.GetCluster(pb.GetClusterRequest(), timeout=ADMIN_S).gateways
        return any(one.name == gateway and one.connected for one in found)

    def _again(self, name: str) -> None:
        """Ends a process and waits for the one that Ray starts in its place."""
        import ray

        actor = ray.get_actor(name, namespace=self._namespace)
        before = ray.get(actor.where.remote(), timeout=START_S)
        # It notes that it ends by order, so that nobody takes it for a failure.
        ray.wait([actor.end.remote()], timeout=END_S)
        ray.kill(actor, no_restart=False)
        self._until(f"{name} has not been started again", lambda: ray.get(actor.where.remote(), timeout=5) != before)
        wait_until_ready(actor, name)
        self._say(f"{name} serves again")

    def _until(self, problem: str, holds: Callable[[], bool]) -> None:
        until = time.monotonic() + START_S
        while not any(self._looks(holds)):
            if time.monotonic() > until:
                raise Unavailable(f"{problem} after {START_S:g} s; `quire logs --causes`, then `quire doctor`")
            time.sleep(LOOK_S)

    def _looks(self, holds: Callable[[], bool]) -> Iterator[bool]:
        """What is asked may be the very process that is being started."""
        import grpc
        import ray

        try:
            yield holds()
        except (grpc.RpcError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            yield False
