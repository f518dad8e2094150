"""How two ends of a connection prove to each other that they know a secret, without saying it.

Both send a nonce, and an HMAC of both nonces under the secret; the end that connects says first which secret it means,
by a name. The steps are generators that yield what to send and how many bytes to read next, so that a blocking socket
(`drive`) and an event loop go through the same ones. Data sockets of transfers and links begin with it, each with a
magic of its own, which the proof covers.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from cluster.errors import NotAuthenticated, ProtocolError

HANDSHAKE_S = 5.0
MAGIC_BYTES = 4
_NONCE_BYTES = 16
_PROOF_BYTES = 32
_MAX_NAME_BYTES = 1024
# What a wait on a socket raises when its time is over.
NOTHING_YET = (TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Value = TypeVar("Value")
Steps = Generator[tuple[bytes, int], bytes, Value]
"""Yields (bytes to send, number of bytes to read then), gets the bytes read, and returns what was found out."""


def greet(magic: bytes, name: bytes, secret: bytes) -> Steps[bytes]:
    """The end that connects; returns bytes that only the two ends know. Raises NotAuthenticated."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    answer = yield magic + struct.pack("<H", len(name)) + name + nonce, _NONCE_BYTES + _PROOF_BYTES
    nonces = nonce + answer[:_NONCE_BYTES]
    if not hmac.compare_digest(answer[_NONCE_BYTES:], _proof(secret, magic + b"server", nonces)):
        raise NotAuthenticated("the other end of the connection does not know the secret")
    yield _proof(secret, magic + b"client", nonces), 0
    return _proof(secret, magic + b"marker", nonces)


def welcome(magic: bytes, secret_of: Callable[[bytes], bytes]) -> Steps[bytes]:
    """The end that listens. `secret_of` names the secret to be known, by what the peer says that it is here for, and
    may raise. Raises ProtocolError for a greeting in another language, and NotAuthenticated."""
    head = yield b"", MAGIC_BYTES + 2
    size = struct.unpack_from("<H", head, MAGIC_BYTES)[0]
    if not head.startswith(magic) or size > _MAX_NAME_BYTES:
        raise ProtocolError("the greeting of a connection was not understood")
    rest = yield b"", size + _NONCE_BYTES
    secret = secret_of(rest[:size])
    answer = secrets.token_bytes(_NONCE_BYTES)
    nonces = rest[size:] + answer
    proof = yield answer + _proof(secret, magic + b"server", nonces), _PROOF_BYTES
    if not hmac.compare_digest(proof, _proof(secret, magic + b"client", nonces)):
        raise NotAuthenticated("a peer on a connection does not know the secret")
    return _proof(secret, magic + b"marker", nonces)


def _proof(secret: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, role + nonces, "sha256")


def drive(connection: socket.socket, steps: Steps[Value]) -> Value:
    """Goes through the steps on a socket whose calls wait for a short while. Raises what they raise, and OSError where
    the connection breaks or the other end is silent for `HANDSHAKE_S`."""
    deadline = time.monotonic() + HANDSHAKE_S
    came = b""
    try:
        # The first step gets nothing.
        send, want = next(steps)
        while True:
            if send:
                connection.sendall(send)
            came = _exactly(connection, want, deadline)
            send, want = steps.send(came)
    except StopIteration as over:
        value: Value = over.value
        return value


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    held = bytearray()
    while len(held) < size:
        try:
            came = connection.recv(size - len(held))
        except NOTHING_YET:
            if time.monotonic() >= deadline:
                raise TimeoutError("the other end of the connection does not answer") from None
            continue
        if not came:
            raise ConnectionError("the other end closed the connection")
        held += came
    return bytes(held)
