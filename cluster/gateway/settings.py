"""Settings of a gateway: where it listens, whom it trusts, and every bound it holds. The figures are documented here.

The command line builds one object; the gateway, its server and its tests read it. Nothing here reads the world but the
certificate files, when a server is built.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cluster.errors import ConfigError
from cluster.gateway.door.unread import UnreadBounds
from cluster.serving.auth import TokenBook
from cluster.serving.public_port import PortTls, PublicPort

MAX_RESUME_GRACE_S = 60.0
MAX_REQUEST_ID_CHARS = 128
MAX_PIN_S = 86_400.0


def _few_messages() -> int:
    """What takes about a twentieth of this machine at a gateway, and as much again at its clients."""
    return min(10_000, 500 * len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """One gateway. Times in seconds."""

    name: str = "gateway-0"
    # One number per start; higher is later.
    incarnation: int = 1
    host: str = "127.0.0.1"
    # 0: any free port.
    port: int = 50051
    # Of the HTTP door; 0: none.
    http_port: int = 0
    tls: PortTls | None = None
    tokens: TokenBook = field(default_factory=TokenBook)
    # Name and address of all gateways of the cluster, this one among them, as ListGateways tells them to clients.
    doors: tuple[tuple[str, str], ...] = ()
    # What a client gets who names none, as long as it is served.
    default_model: str = ""
    # Lists our services to tools such as grpcurl.
    reflection: bool = True

    # Largest message that a client may send; a prompt of a million token ids takes 3 to 5 MB.
    max_message_bytes: int = 16 << 20
    # Connections at once, over all clients and of one machine; one more is closed.
    max_connections: int = 8_192
    max_connections_per_machine: int = 2_048
    # Requests under way here, over all clients; one more is refused with a time to try again.
    max_open: int = 20_000
    # What may be half sent on all GenerateMany streams of one tenant: on each the largest message, kept until the rest
    # comes. gRPC does not say how much of it is there, so that this bounds the streams themselves.
    half_sent_bytes: int = 2 << 30
    # Requests under way on one GenerateMany stream; the gateway reads no further until one has ended.
    max_open_per_stream: int = 4_096
    # What clients have not read of their answers; where it is more, what has most unread ends.
    unread: UnreadBounds = field(default_factory=UnreadBounds)
    # Messages that all streams together may write in a second; beyond it tokens merge, by at most 40 ms each. Where
    # workers compute on the same cores, each message takes time from their steps.
    max_messages_per_s: int = field(default_factory=_few_messages)
    # A request that the scheduler has not taken by then is answered UNAVAILABLE.
    accept_timeout_s: float = 30.0
    # Seconds between pings on a silent connection: a dead peer is found out in twice that, a silent one lives.
    keepalive_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 128:
            raise ConfigError(f"gateway name {self.name!r}: give 1 to 128 characters")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"gateway port is {self.port}; give 0 (any) to 65535")
        if self.max_messages_per_s < 1:
            raise ConfigError(f"max_messages_per_s is {self.max_messages_per_s}; give at least 1")
        if self.max_message_bytes < 1 << 16:
            raise ConfigError(f"max_message_bytes is {self.max_message_bytes:,}; give at least 65,536")

    @property
    def max_streams_per_tenant(self) -> int:
        """GenerateMany streams at once."""
        return max(1, self.half_sent_bytes // self.max_message_bytes)

    @property
    def door(self) -> PublicPort:
        return PublicPort(self.host, self.port, self.tls, self.tokens)
