"""Where ends of links meet: on one machine at an abstract Unix socket, between machines over TCP with TLS.

Anybody can take an abstract name, and any process can connect to one, so both ends ask the kernel whose process the
other is. Without TLS there is no TCP: what a port of this machine carries, others could pass on. An address is
`local:NAME`, or `HOST:PORT` where machines may be several; beside such a port there is a Unix socket too.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import socket
import struct

from cluster.errors import ConfigError, Unavailable
from cluster.links import handshake
from cluster.links.security import ClusterSecurity

log = logging.getLogger(__name__)

LOCAL = "local:"
BACKLOG = 512
# A machine that vanished without a word is found out within this, as long as something is on its way to it.
_UNANSWERED_MS = 10_000


def local_name(address: str) -> str:
    """The abstract Unix socket of an address: its name lives as long as its owner, and in one network namespace."""
    return f"\0quire-link-{address.removeprefix(LOCAL)}"


def listen(host: str, security: ClusterSecurity) -> tuple[str, list[socket.socket]]:
    """An address, and the sockets that take connections there, none of which waits. Raises OSError."""
    sockets: list[socket.socket] = []
    try:
        if security.tls is None:
            address = f"{LOCAL}{secrets.token_hex(16)}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sockets.append(socket.create_server((host, 0), family=family, backlog=BACKLOG))
            port = sockets[0].getsockname()[1]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sockets.append(local)
        try:
            local.bind(local_name(address))
            local.listen(BACKLOG)
        except OSError as error:
            if security.tls is None:
                raise
            # Somebody has the name: peers see whose it is, and come by the port.
            log.warning("the local name of %s is taken (%s): all come by TCP", address, error)
            sockets.pop().close()
        for one in sockets:
            one.setblocking(False)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return address, sockets


def user_of(connection: socket.socket) -> int:
    """Whose process is at the other end of a Unix socket."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def is_local(connection: socket.socket) -> bool:
    return connection.family == socket.AF_UNIX


def origin(connection: socket.socket, peer: object) -> str:
    """What counts as one address: a user of this machine, an IPv4 address, a network of IPv6."""
    if is_local(connection):
        return f"user {user_of(connection)}"
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def tune(connection: socket.socket) -> None:
    """For a connection that stays."""
    if is_local(connection):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
    # An end whose machine vanished does not stay for ever.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)


def connect(address: str, security: ClusterSecurity, greeting: bytes) -> socket.socket:
    """A socket to who is at `address`, on which both have proved who they are. Raises OSError or QuireError."""
    connection = _connect_here(address) or _connect_there(address, security)
    try:
        connection.settimeout(0.5)
        handshake.drive(connection, handshake.greet(greeting, b"", security.secret.encode()))
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_here(address: str) -> socket.socket | None:
    """The Unix socket of who is on this machine; None: there is none, or somebody else listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(handshake.HANDSHAKE_S)
    try:
        connection.connect(local_name(address))
        user = user_of(connection)
        if user == os.geteuid():
            return connection
        log.warning("user %d listens on the name of our process at %s", user, address)
    except OSError:
        pass
    connection.close()
    return None


def _connect_there(address: str, security: ClusterSecurity) -> socket.socket:
    if address.startswith(LOCAL):
        raise Unavailable(f"no process of ours listens at {address} on this machine")
    context = security.client_context()
    if context is None or security.tls is None:
        raise ConfigError(f"{address} is not on this machine, and there is no TLS to go there with")
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} is no address: give HOST:PORT")
    connection = socket.create_connection((host.strip("[]"), int(port)), handshake.HANDSHAKE_S)
    try:
        tune(connection)
        return context.wrap_socket(connection, server_hostname=security.tls.name)
    except BaseException:
        connection.close()
        raise
