"""A door: a public port with its TLS files and its tokens, and the rule that an open one needs both.

Gateways serve requests behind one, the scheduler's process serves operators behind another. Who comes in is decided
per call by the token book (`cluster/serving/auth.py`); nothing here knows a service.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from cluster.errors import ConfigError, unreadable
from cluster.serving.auth import TokenBook, check_exposure
from cluster.serving.connections import share_of_descriptors

log = logging.getLogger(__name__)

MAX_STREAMS = 4_096
MAX_PENDING_CALLS = 1 << 20
HANDSHAKE_S = 10.0
IDLE_S = 600.0
AGE_S = 4 * 3_600.0
AGE_GRACE_S = 24 * 3_600.0
EVERYWHERE = ("0.0.0.0", "::", "[::]")
"""Hosts that mean every address of a machine."""
# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL.
_OTHER_NAME = (62, 64)


@dataclass(frozen=True, slots=True)
class PortTls:
    """PEM files. With `client_authority` only clients whose certificate it signed get in (mutual TLS)."""

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For grpc; files that are renewed count from the next handshake on. Raises `ConfigError`."""
        files = Renewed(self)

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            return files.configuration() if files.has_changed() else None

        return grpc.dynamic_ssl_server_credentials(
            files.configuration(),
            fetch,  # type: ignore[arg-type]  # None: as before
            require_client_authentication=self.client_authority is not None,
        )

    def context(self) -> ssl.SSLContext:
        """The same for other servers."""
        files = Renewed(self)
        context = current = files.context

        def renew(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
            nonlocal current
            if files.has_changed():
                current = files.context
            connection.context = current

        context.sni_callback = renew
        return context

    def check_client(self, host: str, authority: Path) -> None:
        """A handshake in memory with a client that connects to `host` and trusts `authority`. Raises `ConfigError`."""
        remedy = f"`quire certificates FOLDER --host {host}` makes one that does"
        try:
            trusting = ssl.create_default_context(cafile=authority)
        except OSError as error:
            raise ConfigError(f"TLS authority: {authority}: {error.strerror or error}") from error
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting.wrap_bio(to_client, to_server, server_hostname=host)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        try:
            for end in (client, server, client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _OTHER_NAME:
                told = f"{self.certificate} does not have the name {host}, the doors' host"
                raise ConfigError(f"{told}; {remedy}") from error
            told = f"commands here that trust {authority} would refuse {self.certificate}: {error.verify_message}"
            raise ConfigError(f"{told}; give the authority that signed it") from error


class Renewed:
    """The content of a door's files, read again when they change; a pair that does not fit, or is half written, is not
    taken."""

    def __init__(self, files: PortTls) -> None:
        self._paths = [path for path in (files.certificate, files.key, files.client_authority) if path is not None]
        self._seen = self._state()
        try:
            self._read()
        except (OSError, ValueError) as error:
            remedy = "`quire certificates FOLDER` makes a first set"
            if isinstance(error, OSError) and error.filename:
                raise unreadable(f"TLS: {error.filename}", error, remedy) from error
            why = str(error)
            if isinstance(error, ssl.SSLError):
                why = f"{files.certificate} and {files.key} are no certificate and its key ({error.reason})"
            raise ConfigError(f"TLS: {why}; {remedy}") from error

    def has_changed(self) -> bool:
        """Whether there is something new, which has been read then."""
        state = self._state()
        if state == self._seen:
            return False
        try:
            self._read()
        except (OSError, ValueError) as error:
            log.debug("the renewed files of a door are not usable yet: %s", error)
            return False
        self._seen = state
        log.info("%s is used from now on", self._paths[0])
        return True

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *authority = self._content
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority[0] if authority else None)

    def _read(self) -> None:
        # Read first: an error of ssl's own does not name the file.
        content = [path.read_bytes() for path in self._paths]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._paths[0], self._paths[1])
        if len(self._paths) > 2:
            context.load_verify_locations(self._paths[2])
            context.verify_mode = ssl.CERT_REQUIRED
        self._content, self.context = content, context

    def _state(self) -> list[tuple[int, int]]:
        with contextlib.suppress(OSError):
            return [(found.st_mtime_ns, found.st_ino) for found in map(os.stat, self._paths)]
        return []


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
        ("grpc.max_allowed_incoming_connections", share_of_descriptors(max_connections)),
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
class PublicPort:
    """`port` 0: any free one."""

    host: str
    port: int
    tls: PortTls | None = None
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
