"""A door: a public port with its TLS files and its tokens, and the rule that an open one needs both.

Gateways serve requests behind one, the scheduler's process serves operators behind another. Who comes in is decided
per call by the token book (`cluster/serving/auth.py`); nothing here knows a service.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from cluster.errors import ConfigError
from cluster.serving.auth import TokenBook, check_exposure

MAX_STREAMS = 4_096
MAX_PENDING_CALLS = 1 << 20
HANDSHAKE_S = 10.0
IDLE_S = 600.0
AGE_S = 4 * 3_600.0
AGE_GRACE_S = 24 * 3_600.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_authority` only clients whose certificate it signed get in (mutual TLS)."""

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        try:
            pair = (self.key.read_bytes(), self.certificate.read_bytes())
            authority = self.client_authority.read_bytes() if self.client_authority is not None else None
        except OSError as error:
            raise ConfigError(f"TLS: {error}; `quire certificates FOLDER` makes a first set") from error
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def public_options(max_message_bytes: int, max_connections: int) -> list[tuple[str, int]]:
    """Bounds of a gRPC server on a public port. Larger messages are refused at their head, before their bytes come."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        # Two servers must never share a port and take each other's calls.
        ("grpc.so_reuseport", 0),
        # Calls of one connection; a client with more waits, or opens another.
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # What nobody reads yet lies in windows of the least size; grpc would let them grow to megabytes each.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_allowed_incoming_connections", max_connections),
        # Calls that we have not taken up yet: past these bounds grpc cancels some, anybody's, and a client that resets
        # its calls as fast as it can would have that done to others.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
        ("grpc.max_connection_idle_ms", int(IDLE_S * 1000)),
        # Clients come back by themselves, to where there is room; who streams has a day to end.
        ("grpc.max_connection_age_ms", int(AGE_S * 1000)),
        ("grpc.max_connection_age_grace_ms", int(AGE_GRACE_S * 1000)),
    ]


@dataclass(frozen=True, slots=True)
class Door:
    """`port` 0: any free one."""

    host: str
    port: int
    tls: TlsFiles | None = None
    tokens: TokenBook = field(default_factory=TokenBook)

    def check(self) -> grpc.ServerCredentials | None:
        """What it serves by; None: no TLS. Raises `ConfigError` for files that are missing, and for a door that would
        let other machines in without TLS and tokens."""
        check_exposure(self.host, self.tls is not None, bool(self.tokens))
        return None if self.tls is None else self.tls.credentials()

    def listen(self, server: grpc.aio.Server) -> int:
        """Adds the port to a server; returns its number. Raises `ConfigError`, also for a port that is taken."""
        address = f"{self.host}:{self.port}"
        credentials = self.check()
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}; is the port taken? Give another --port") from error
