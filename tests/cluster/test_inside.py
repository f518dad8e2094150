"""Internal ports: who does not show the cluster's secret is refused, on each of them; with TLS also a stranger.

What else can go wrong on a stream of frames is in tests/cluster/test_control_stream.py."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cluster.errors import QuireError
from cluster.gateway.front_tokens import TokenIntake
from cluster.links.security import PEER_NAME, ClusterSecurity, TlsFiles
from cluster.serving.auth_certificates import make_identity
from cluster.serving.front_server import FrontServer
from cluster.serving.host import SchedulerHost
from cluster.serving.inside import Inside
from cluster.settings import SchedulerSettings
from cluster.wire.frames import framed
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import front_pb2
from protos.quire.v1.front_pb2_grpc import FrontServiceAsyncStub, add_FrontServiceServicer_to_server
from worker import frame_link
from worker.frame_link import CONTROL, TOKENS, FrameLink, connect

SECRET = "the secret of these tests"


def identity(folder: Path) -> TlsFiles:
    folder.mkdir()
    files = TlsFiles(folder / "certificate", folder / "key", folder / "authority")
    for path, pem in zip((files.authority, files.certificate, files.key), make_identity(PEER_NAME), strict=True):
        path.write_bytes(pem)
    return files


@dataclass
class Ports:
    """Internal ports as a scheduler and a gateway have them."""

    server: grpc.aio.Server
    intake: TokenIntake
    front: str
    tokens: str

    async def close(self) -> None:
        self.intake.close()
        await self.server.stop(None)


async def serve(security: ClusterSecurity) -> Ports:
    host = SchedulerHost(SchedulerSettings(), 1)
    server = grpc.aio.server(interceptors=[security.aio_interceptor()])
    add_FrontServiceServicer_to_server(FrontServer(host, lambda: ()), server)
    port = security.serve(server, "127.0.0.1:0")
    await server.start()
    intake = TokenIntake(lambda tokens: None)
    return Ports(server, intake, f"127.0.0.1:{port}", await intake.listen(Inside("127.0.0.1", security)))


async def front_says(security: ClusterSecurity, address: str) -> str:
    """How the first word on a gateway's stream to the scheduler is answered."""
    protocols = {"oldest_protocol": OLDEST_PROTOCOL, "newest_protocol": NEWEST_PROTOCOL}
    hello = front_pb2.AttachRequest(hello=front_pb2.GatewayHello(gateway="g", incarnation=1, **protocols))

    async def say() -> AsyncIterator[front_pb2.AttachRequest]:
        yield hello
        await asyncio.sleep(5)

    async with security.aio_channel(address, ()) as channel:
        call = FrontServiceAsyncStub(channel).Attach(say(), metadata=security.metadata(), timeout=5)
        try:
            return "answered" if await call.read() is not grpc.aio.EOF else "ended"
        except grpc.aio.AioRpcError as error:
            return error.code().name
        finally:
            call.cancel()


async def intake_says(security: ClusterSecurity, address: str, greeting: bytes = TOKENS) -> str:
    """The same of a worker's stream of tokens to a gateway."""
    link = FrameLink("the gateway")
    hello = front_pb2.ToGateway(hello=front_pb2.TokenHello(replica="r0", incarnation=1))
    try:
        link.open(await asyncio.to_thread(connect, address, security, greeting), framed(hello))
        async with asyncio.timeout(5):
            while link.is_open:
                await asyncio.to_thread(link.wait, 0.05)
                if link.read():
                    return "answered"
    except (QuireError, OSError) as error:
        return type(error).__name__
    finally:
        link.close()
    return "cut off"


@pytest.mark.parametrize("has_tls", [False, True])
def test_only_who_shows_the_secret_is_let_in(tmp_path: Path, has_tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = identity(tmp_path / "ours") if has_tls else None
    if has_tls:
        # Where both ends are on one machine the kernel alone carries the frames, and TLS adds nothing.
        monkeypatch.setattr(frame_link, "_connect_here", lambda address: None)
    refusals = {"NotAuthenticated", "ConnectionError", "ConnectionResetError", "TimeoutError", "SSLError", "cut off"}
    refusals |= {"SSLEOFError", "SSLCertVerificationError", "BrokenPipeError"}

    async def story() -> None:
        ports = await serve(ClusterSecurity(SECRET, tls))
        try:
            ours = ClusterSecurity(SECRET, tls)
            assert await front_says(ours, ports.front) == await intake_says(ours, ports.tokens) == "answered"
            # A stream of another kind has nothing to say here.
            assert await intake_says(ours, ports.tokens, CONTROL) in refusals
            for wrong in ("another secret, as long.", SECRET[:-1] + "!", SECRET + " "):
                assert await front_says(ClusterSecurity(wrong, tls), ports.front) == "UNAUTHENTICATED"
                assert await intake_says(ClusterSecurity(wrong, tls), ports.tokens) in refusals
            if has_tls:
                # The secret alone is not enough, nor is it with the certificate of another authority.
                strange = identity(tmp_path / "strange")
                for stranger in (None, strange):
                    assert await front_says(ClusterSecurity(SECRET, stranger), ports.front) == "UNAVAILABLE"
                    assert await intake_says(ClusterSecurity(SECRET, stranger), ports.tokens) in refusals
        finally:
            await ports.close()

    asyncio.run(asyncio.wait_for(story(), 60))
