"""Who may speak on an internal port: one secret of the cluster, and TLS both ways where it is set up.

The secret itself never leaves a process: links and data sockets are opened only to whoever proves that it knows it
(`cluster/links/handshake.py`), and so are calls between transfer services. Servers, clients and data sockets take what
they need from `ClusterSecurity`; nothing here reads the environment.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from cluster.errors import ConfigError

MAX_MESSAGE_BYTES = 64 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two servers must never share a port and take each other's calls.
    ("grpc.so_reuseport", 0),
    # In the largest frames that HTTP/2 knows: gRPC's own 16 KiB cost a seventh of the processor time of large messages.
    ("grpc.http2.max_frame_size", (1 << 24) - 1),
    # A connection that died without a word is noticed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]
PEER_NAME = "quire"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of this process and of the authority that signed its peers. `name` is what peers' certificates say."""

    certificate: Path
    key: Path
    authority: Path
    name: str = PEER_NAME


@dataclass(frozen=True, slots=True)
class ClusterSecurity:
    secret: str
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ConfigError(f"the secret of the cluster has {len(self.secret)} characters; give at least 16")

    def channel(self, address: str) -> grpc.Channel:
        credentials = self.credentials()
        if credentials is None:
            return grpc.insecure_channel(address, options=_OPTIONS)
        return grpc.secure_channel(address, credentials, options=[*_OPTIONS, *self.name_options()])

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Of a client; None: no TLS."""
        if self.tls is None:
            return None
        authority, key, certificate = (
            path.read_bytes() for path in (self.tls.authority, self.tls.key, self.tls.certificate)
        )
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def name_options(self) -> list[tuple[str, str]]:
        """Certificates name the cluster, whatever the address is that they are shown on."""
        return [] if self.tls is None else [("grpc.ssl_target_name_override", self.tls.name)]

    def serve(self, server: grpc.Server | grpc.aio.Server, address: str) -> int:
        """Adds the port to `server`; returns its number."""
        try:
            if self.tls is None:
                return server.add_insecure_port(address)
            authority, key, certificate = (
                path.read_bytes() for path in (self.tls.authority, self.tls.key, self.tls.certificate)
            )
            credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"an internal port cannot listen on {address}: {error}") from error

    def server_options(self) -> list[tuple[str, int]]:
        return list(_OPTIONS)

    def client_context(self) -> ssl.SSLContext | None:
        """For the data socket, the end that connects; None: no TLS."""
        if self.tls is None:
            return None
        context = ssl.create_default_context(cafile=str(self.tls.authority))
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        return context

    def server_context(self) -> ssl.SSLContext | None:
        if self.tls is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.tls.authority))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        return context
