"""Which front doors a cluster has, as one of them tells its clients: so that one address is enough to outlive it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cluster.gateway.calls import Call
from protos.quire.v1 import inference_pb2 as pb


def lister(
    doors: Sequence[tuple[str, str]],
) -> Callable[[pb.ListGatewaysRequest, Call], Awaitable[pb.ListGatewaysResponse]]:
    """The method ListGateways. `doors`: name and address of each, as quire.v1.Gateway has them."""

    async def list_gateways(request: pb.ListGatewaysRequest, call: Call) -> pb.ListGatewaysResponse:
        return pb.ListGatewaysResponse(gateways=[pb.Gateway(name=name, address=address) for name, address in doors])

    return list_gateways
