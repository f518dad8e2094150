"""How both ends of a call of the transfer service prove that they know the cluster's secret, without saying it.

A call without a proof is answered with a challenge, before its body is read: the server's nonce, and its own proof that
it knows the secret. The caller checks that, and says the call again with its proof, as it says all later ones of this
connection; the server proves itself anew with each answer. A proof holds for one connection, one method and the address
that was called, so that whoever listens on a dead pool's port, or passes words on from there, gains nothing by it. The
server keeps nothing: its nonce is its own word about caller, connection and time.
"""

from __future__ import annotations

import hmac
import secrets
import struct
import time
from dataclasses import dataclass
from typing import Any

import grpc

from cluster.errors import NotAuthenticated

_ASK, _PROOF, _CHALLENGE, _ANSWER = "quire-ask-bin", "quire-proof-bin", "quire-challenge-bin", "quire-answer-bin"
_ASK_BYTES, _SUM_BYTES = 16, 32
_TIME = struct.Struct("<d")
_NONCE_BYTES = _TIME.size + _SUM_BYTES
# How long a challenge holds; then there is another one.
_HOLDS_S = 3600.0

Metadata = tuple[tuple[str, bytes], ...]


class Challenger:
    """The end that serves, at `address`."""

    def __init__(self, secret: str, address: str) -> None:
        self._secret = secret.encode()
        self._address = address.encode()
        self._own = secrets.token_bytes(32)

    def admit(self, method: str, context: grpc.ServicerContext) -> None:
        """Lets a call pass whose caller has proven itself, and tells that it is us who answer; ends any other."""
        told = {key: value for key, value in context.invocation_metadata() if isinstance(value, bytes)}
        ask, proof = told.get(_ASK, b""), told.get(_PROOF, b"")
        connection = context.peer().encode()
        if len(ask) != _ASK_BYTES:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this port takes calls of the cluster's own processes only")
        nonce, said = proof[:_NONCE_BYTES], proof[_NONCE_BYTES:]
        if self._holds(ask, nonce, connection):
            key = _key(self._secret, self._address, ask, nonce)
            if hmac.compare_digest(said, _sum(key, b"client", method.encode())):
                context.send_initial_metadata(((_ANSWER, _sum(key, b"answer", method.encode())),))
                return
        nonce = self._nonce(ask, connection, time.monotonic())
        key = _key(self._secret, self._address, ask, nonce)
        context.set_trailing_metadata(((_CHALLENGE, nonce + _sum(key, b"server", b"")),))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "prove that you know the cluster's secret")

    def _nonce(self, ask: bytes, connection: bytes, now: float) -> bytes:
        packed = _TIME.pack(now)
        return packed + _sum(self._own, ask + packed, connection)

    def _holds(self, ask: bytes, nonce: bytes, connection: bytes) -> bool:
        if len(nonce) != _NONCE_BYTES:
            return False
        (given_at,) = _TIME.unpack_from(nonce)
        genuine = hmac.compare_digest(nonce, self._nonce(ask, connection, given_at))
        return genuine and time.monotonic() - given_at < _HOLDS_S


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a caller sent and was answered, and the key that only the two ends can make of it; no key: nothing yet."""

    ask: bytes
    nonce: bytes = b""
    key: bytes = b""

    def metadata(self, method: str) -> Metadata:
        """What a call of `method` carries."""
        if not self.key:
            return ((_ASK, self.ask),)
        return ((_ASK, self.ask), (_PROOF, self.nonce + _sum(self.key, b"client", method.encode())))

    def answers(self, call: Any, method: str) -> bool:
        """Whether it is a proven server that answers this call of ours; waits for its first word."""
        said = dict(call.initial_metadata() or ()).get(_ANSWER, b"")
        return bool(self.key) and hmac.compare_digest(said, _sum(self.key, b"answer", method.encode()))


class Prover:
    """The end that calls `address`, for all threads of a process. A call goes by what is `agreed` when it begins."""

    def __init__(self, secret: str, address: str) -> None:
        self._secret = secret.encode()
        self._address = address.encode()
        self.agreed = Agreed(secrets.token_bytes(_ASK_BYTES))

    def challenged(self, call: Any) -> bool:
        """Whether this call was ended by a challenge: it is to be said again. Raises NotAuthenticated where who sent it
        doesn't know the secret."""
        came = dict(call.trailing_metadata() or ()).get(_CHALLENGE)
        if call.code() is not grpc.StatusCode.UNAUTHENTICATED or not isinstance(came, bytes):
            return False
        nonce, said = came[:_NONCE_BYTES], came[_NONCE_BYTES:]
        ask = self.agreed.ask
        key = _key(self._secret, self._address, ask, nonce)
        if not hmac.compare_digest(said, _sum(key, b"server", b"")):
            raise NotAuthenticated("who listens there does not know the secret of this cluster")
        self.agreed = Agreed(ask, nonce, key)
        return True


def _key(secret: bytes, address: bytes, ask: bytes, nonce: bytes) -> bytes:
    return _sum(secret, b"transfer", ask + nonce + address)


def _sum(key: bytes, role: bytes, words: bytes) -> bytes:
    return hmac.digest(key, role + b"\0" + words, "sha256")
