"""Internal gRPC ports: who does not show the cluster's secret is refused, on each of them; with TLS also a stranger.

Control streams are tests/cluster/test_control_stream.py's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.gateway.front_tokens import TokenIntake
from cluster.serving.auth_certificates import make_identity
from cluster.serving.front_server import FrontServer
from cluster.serving.host import SchedulerHost
from cluster.settings import SchedulerSettings
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import front_pb2
from protos.quire.v1.front_pb2_grpc import (
    FrontServiceAsyncStub,
    TokenServiceAsyncStub,
    add_FrontServiceServicer_to_server,
    add_TokenServiceServicer_to_server,
)
from worker.security import PEER_NAME, ClusterSecurity, TlsFiles

SECRET = "the secret of these tests"


def identity(folder: Path) -> TlsFiles:
    folder.mkdir()
    files = TlsFiles(folder / "certificate", folder / "key", folder / "authority")
    for path, pem in zip((files.authority, files.certificate, files.key), make_identity(PEER_NAME), strict=True):
        path.write_bytes(pem)
    return files


async def serve(security: ClusterSecurity) -> tuple[grpc.aio.Server, str]:
    """All internal services as the scheduler and a gateway serve them."""
    host = SchedulerHost(SchedulerSettings(), 1)
    server = grpc.aio.server(interceptors=[security.aio_interceptor()])
    add_FrontServiceServicer_to_server(FrontServer(host, lambda: ()), server)
    add_TokenServiceServicer_to_server(TokenIntake(lambda tokens: None), server)
    port = security.serve(server, "127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def opened(security: ClusterSecurity, address: str) -> list[str]:
    """How the first word on each internal stream is answered."""
    protocols = {"oldest_protocol": OLDEST_PROTOCOL, "newest_protocol": NEWEST_PROTOCOL}
    front = front_pb2.AttachRequest(hello=front_pb2.GatewayHello(gateway="g", incarnation=1, **protocols))
    tokens = [front_pb2.PushRequest(hello=front_pb2.TokenHello(replica="r0", incarnation=1))]
    tokens.append(front_pb2.PushRequest(number=1))

    async def say(*words: Any) -> AsyncIterator[Any]:
        for word in words:
            yield word
            # A word that meets the end of its stream would be an error of the client's own.
            await asyncio.sleep(0.2)
        await asyncio.sleep(5)

    found = []
    async with security.aio_channel(address, ()) as channel:
        for call in (
            FrontServiceAsyncStub(channel).Attach(say(front), metadata=security.metadata(), timeout=5),
            TokenServiceAsyncStub(channel).Push(say(*tokens), metadata=security.metadata(), timeout=5),
        ):
            try:
                found.append("answered" if await call.read() is not grpc.aio.EOF else "ended")
            except grpc.aio.AioRpcError as error:
                found.append(error.code().name)
            call.cancel()
    return found


@pytest.mark.parametrize("has_tls", [False, True])
def test_only_who_shows_the_secret_is_let_in(tmp_path: Path, has_tls: bool) -> None:
    tls = identity(tmp_path / "ours") if has_tls else None

    async def story() -> None:
        server, address = await serve(ClusterSecurity(SECRET, tls))
        try:
            assert await opened(ClusterSecurity(SECRET, tls), address) == ["answered"] * 2
            for wrong in ("another secret, as long.", SECRET[:-1] + "!", SECRET + " "):
                assert await opened(ClusterSecurity(wrong, tls), address) == ["UNAUTHENTICATED"] * 2
            if has_tls:
                # The secret alone is not enough, nor is it with the certificate of another authority.
                strange = identity(tmp_path / "strange")
                for stranger in (None, strange):
                    assert await opened(ClusterSecurity(SECRET, stranger), address) == ["UNAVAILABLE"] * 2
        finally:
            await server.stop(None)

    asyncio.run(asyncio.wait_for(story(), 60))
