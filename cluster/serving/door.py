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
