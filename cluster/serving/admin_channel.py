"""How our own commands reach the operators' door: TLS where that is set up, and a token with every call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from cluster.errors import ConfigError


def admin_channel(address: str, token: str = "", authority: str = "", *, tls: bool = False) -> grpc.Channel:
    """`authority`: a PEM file; empty with `tls`: one that the system knows. Raises `ConfigError`."""
    if tls or authority:
        try:
            trusted = Path(authority).read_bytes() if authority else None
        except OSError as error:
            raise ConfigError(f"TLS authority: {error}") from error
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(trusted))
    else:
        channel = grpc.insecure_channel(address)
    return grpc.intercept_channel(channel, _Bearer(token)) if token else channel


class _Details(NamedTuple):
    """grpc leaves it to its users to write this class."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # generic in its types only
    """Adds the token to each call."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _with_token(self, call: Any) -> Any:
        metadata = [*(call.metadata or ()), self._header]
        return _Details(
            call.method,
            call.timeout,
            metadata,
            call.credentials,
            call.wait_for_ready,
            getattr(call, "compression", None),
        )

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)
