"""What burns: a cluster's processes by kind, and who of them is missing. `ray_house.py` and `paced.py` are the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cluster.client.connection import Tls
from cluster.torture.asks import StreamAsk
from protos.quire.v1 import admin_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

ANSWER_S = 5.0


class House(Protocol):
    """A cluster whose processes may be struck, and that brings back by itself who was killed."""

    @property
    def wanted(self) -> Mapping[str, int]:
        """How many there shall be of each kind."""

    @property
    def gateways(self) -> Sequence[str]:
        """Their public addresses."""

    @property
    def http(self) -> Sequence[str]:
        """Addresses of the HTTP doors."""

    @property
    def token(self) -> str | None:
        """What clients show."""

    @property
    def tls(self) -> Tls | None:
        """How clients check the gateways."""

    def asks(self, seed: int, num: int) -> list[StreamAsk]:
        """What streams ask there, with the answers."""

    def pids(self, kind: str) -> list[int]:
        """The processes of a kind that are there and may be struck."""

    def admin(self) -> AdminServiceStub:
        """The operators' door. Raises `Unavailable` while there is none."""


def missing(house: House) -> str:
    """Who is not there, as one line; empty: all are. Raises grpc.RpcError while the scheduler does not answer."""
    # A death is seen here before the scheduler is told of it.
    for kind, count in house.wanted.items():
        there = len(house.pids(kind))
        if there < count:
            return f"{there} of {count} processes of a {kind} are there"
    admin = house.admin()
    workers = len(admin.ListWorkers(pb.ListWorkersRequest(), timeout=ANSWER_S).workers)
    gateways = admin.GetCluster(pb.GetClusterRequest(), timeout=ANSWER_S).num_gateways
    pools = admin.ListPools(pb.ListPoolsRequest(), timeout=ANSWER_S).pools
    hosts = sum(pool.kind == pb.POOL_KIND_HOST for pool in pools)
    for kind, known in (("worker", workers), ("gateway", gateways), ("host pool", hosts)):
        if known < house.wanted.get(kind, 0):
            return f"the scheduler knows {known} of {house.wanted[kind]} {kind}s"
    return ""


def held(house: House) -> list[str]:
    """What pools still hold."""
    return [
        f"{pool.name}: {pool.num_held} held, {pool.num_moving} moving, {pool.num_quarantined} quarantined"
        for pool in house.admin().ListPools(pb.ListPoolsRequest(), timeout=ANSWER_S).pools
        if pool.num_free + pool.num_cached != pool.num_blocks
    ]
