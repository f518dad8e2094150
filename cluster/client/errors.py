"""From a gRPC status back to the error that the gateway raised. Needs the base install only.

`cluster/gateway/errors.py` is the other end. A status without our details (a broken connection, a proxy's own words)
becomes the error that its code stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import grpc.aio

from cluster.errors import (
    Aborted,
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    NeverFits,
    NotAuthenticated,
    NotFound,
    ProtocolError,
    QueueFull,
    QuireError,
    Unavailable,
)
from cluster.wire.plans import parsed
from protos.quire.v1 import common_pb2 as pb

# How TLS says that nobody we trust has signed a certificate.
_NOT_SIGNED = ("CERTIFICATE_VERIFY_FAILED", "BAD_SIGNATURE", "certificate signature failure")
# How grpc's resolver says that nobody has that name.
_NO_NAME = ("errors resolving", "DNS resolution failed")
DETAILS_KEY = "grpc-status-details-bin"
# What grpc's own end says where a connection broke while a call was begun, so that no status came.
_NO_STATUS = "Internal error from Core"


def _tree(root: type[QuireError]) -> Iterator[type[QuireError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _tree(kind)


def error_from_call(error: grpc.aio.AioRpcError) -> QuireError:
    """The error behind a failed call."""
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return error_from_status(parsed(pb.Status, value))
            except ProtocolError:
                break
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == _NO_STATUS:
        return Unavailable("the connection broke while a call was begun")
    return _plain(error.code().name, error.details() or error.code().name)


def connection_error(error: QuireError, address: str, *, has_tls: bool, has_certificate: bool) -> QuireError:
    """What a broken connection says of names and TLS, by which mistake it is; any other error as it was."""
    said = str(error)
    host = address.rpartition(":")[0]
    if isinstance(error, Unavailable) and any(one in said for one in _NO_NAME):
        return Unavailable(f"no machine is known by the name {host}; is the address right?")
    if not isinstance(error, Unavailable) or "failed to connect" not in said:
        return error
    if "WRONG_VERSION_NUMBER" in said:
        return ConfigError(f"{address} does not speak TLS; leave the authority out, or is it another port?")
    if "Hostname Verification" in said or "not in peer certificate" in said:
        remedy = f"connect by a name that it has, or make one with `quire certificates FOLDER --host {host}`"
        return ConfigError(f"the certificate of {address} does not have the name {host}; {remedy}")
    if "handshake failed" in said and "expired" in said:
        return ConfigError(f"the certificate of {address} has expired; `quire certificates renew` makes a new one")
    if "handshake failed" in said and any(one in said for one in _NOT_SIGNED):
        remedy = "name the PEM file of the authority that signed it (QUIRE_TLS_AUTHORITY)"
        return ConfigError(f"the certificate of {address} was signed by another authority than that given; {remedy}")
    if "handshake failed" in said:
        return ConfigError(f"TLS with {address} failed: {said[-200:]}")
    if "Socket closed" in said or "reset by peer" in said:
        # Whoever listens there has ended the connection before a word.
        if not has_tls:
            remedy = "name the authority of its certificate (QUIRE_TLS_AUTHORITY)"
            return Unavailable(f"{address} ends connections at once, as a port does that speaks TLS; {remedy}")
        remedy = (
            "show another certificate" if has_certificate else "give one (QUIRE_CLIENT_CERTIFICATE, QUIRE_CLIENT_KEY)"
        )
        return Unavailable(f"{address} ends connections at once, as it does without a client's certificate; {remedy}")
    return Unavailable(f"nothing answers at {address}; is the cluster up (`quire up`)?")


def error_from_status(status: pb.Status) -> QuireError:
    """The error in a google.rpc.Status, by the reason in its ErrorInfo."""
    for detail in status.details:
        if detail.type_url.endswith("/google.rpc.ErrorInfo"):
            try:
                info = parsed(pb.ErrorInfo, detail.value)
            except ProtocolError:
                break
            if info.domain == "quire":
                return _rebuilt(info.reason, status.message, info.metadata)
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return _plain(names.get(status.code, "UNKNOWN"), status.message)


def _rebuilt(reason: str, message: str, figures: Mapping[str, str]) -> QuireError:
    kind = next((kind for kind in _tree(QuireError) if kind.reason() == reason), QuireError)
    try:
        if issubclass(kind, NeverFits):
            numbers = int(figures["needed"]), int(figures["available"])
            return kind(figures["field"], *numbers, figures["unit"], figures["remedy"])
        if issubclass(kind, InvalidRequest):
            return kind(figures["field"], figures["problem"], figures.get("remedy", ""))
        if issubclass(kind, QueueFull):
            return kind(figures["message"], float(figures["retry_after_s"]))
        if issubclass(kind, Unavailable):
            retry = figures.get("retry_after_s")
            return kind(figures["message"], None if retry is None else float(retry))
    except (KeyError, ValueError):
        # A gateway of another version says it with other figures; its line still stands.
        return _plain(kind.grpc_status, message)
    return kind(message)


def _plain(code: str, message: str) -> QuireError:
    if code == "UNAVAILABLE":
        return Unavailable(message)
    if code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"):
        # Without our words a resource is exhausted only by a message that is larger than the gateway takes.
        return InvalidRequest("request", message)
    kinds = (NotFound, DeadlineExceeded, Aborted, AccessDenied, NotAuthenticated)
    return {kind.grpc_status: kind for kind in kinds}.get(code, QuireError)(message)
