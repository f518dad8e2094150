"""Internal ports: who does not know the cluster's secret is refused, on each of them; with TLS also a stranger.

What else can go wrong on a stream of frames is in tests/links."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.errors import QuireError
from cluster.gateway.front_tokens import TokenIntake
from cluster.links import sockets
from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd
from cluster.links.security import PEER_NAME, ClusterSecurity, TlsFiles
from cluster.serving.auth_certificates import make_identity
from cluster.serving.front_server import FrontServer
from cluster.serving.inside import Inside
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from cluster.wire import control, gateways, tokens

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

    server: FrontServer
    intake: TokenIntake
    front: str
    tokens: str

    def close(self) -> None:
        self.intake.close()
        self.server.close()


async def serve(security: ClusterSecurity) -> Ports:
    server = FrontServer(SchedulerShell(SchedulerSettings(), 1), lambda: ())
    intake, inside = TokenIntake("g", 1, lambda tokens: None), Inside("127.0.0.1", security)
    return Ports(server, intake, await server.listen(inside), await intake.listen(inside))


async def front_says(security: ClusterSecurity, address: str) -> str:
    """How the first word on a gateway's link to the scheduler is answered."""
    dialer = Dialer("g", 1, control.SCHEDULER, gateways.terms(), gateways.read_down)
    return await answer_to(dialer, security, address, gateways.GREETING)


async def intake_says(security: ClusterSecurity, address: str, greeting: bytes = tokens.GREETING) -> str:
    """The same of a worker's link to a gateway."""
    return await answer_to(Dialer("r0", 1, "g", tokens.terms(), tokens.read_down), security, address, greeting)


async def answer_to(dialer: Dialer, security: ClusterSecurity, address: str, greeting: bytes) -> str:
    end = DialingEnd(dialer)
    try:
        end.open(await asyncio.to_thread(sockets.connect, address, security, greeting), b"")
        async with asyncio.timeout(5):
            while end.is_open:
                await asyncio.to_thread(end.wait, 0.05)
                if end.read():
                    return "answered"
    except (QuireError, OSError) as error:
        return type(error).__name__
    finally:
        end.close()
    return "cut off"


@pytest.mark.parametrize("has_tls", [False, True])
def test_only_who_shows_the_secret_is_let_in(tmp_path: Path, has_tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = identity(tmp_path / "ours") if has_tls else None
    if has_tls:
        # Where both ends are on one machine the kernel alone carries the frames, and TLS adds nothing.
        monkeypatch.setattr(sockets, "_connect_here", lambda address: None)
    refusals = {"NotAuthenticated", "ConnectionError", "ConnectionResetError", "TimeoutError", "SSLError", "cut off"}
    # Who has no certificates does not even try.
    refusals |= {"ConfigError", "SSLEOFError", "SSLCertVerificationError", "BrokenPipeError"}

    async def story() -> None:
        ports = await serve(ClusterSecurity(SECRET, tls))
        try:
            ours = ClusterSecurity(SECRET, tls)
            assert await front_says(ours, ports.front) == await intake_says(ours, ports.tokens) == "answered"
            # A stream of another kind has nothing to say here.
            assert await intake_says(ours, ports.tokens, control.GREETING) in refusals
            for wrong in ("another secret, as long.", SECRET[:-1] + "!", SECRET + " "):
                assert await front_says(ClusterSecurity(wrong, tls), ports.front) in refusals
                assert await intake_says(ClusterSecurity(wrong, tls), ports.tokens) in refusals
            if has_tls:
                # The secret alone is not enough, nor is it with the certificate of another authority.
                strange = identity(tmp_path / "strange")
                for stranger in (None, strange):
                    assert await front_says(ClusterSecurity(SECRET, stranger), ports.front) in refusals
                    assert await intake_says(ClusterSecurity(SECRET, stranger), ports.tokens) in refusals
        finally:
            ports.close()

    asyncio.run(asyncio.wait_for(story(), 60))
