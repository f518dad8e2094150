"""A client's connection to one or several gateways: channels, TLS, token, retries. Needs the base install only.

Both faces of the client share it. gRPC itself retries what is safe to repeat (the service config below); what has to be
resumed by position is done in `cluster/client/stream.py`. It knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cluster.client.errors import connection_error, error_from_call
from cluster.errors import ConfigError, QuireError, unreadable
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub

DEFAULT_ADDRESS = "127.0.0.1:50051"
MAX_MESSAGE_BYTES = 64 << 20
KEEPALIVE_S = 30.0

LEARN_S = 5.0
MAX_GATEWAYS = 256

PARTING_S = 2.0
"""How long a client that is closed waits for what it still has to say: that requests shall end."""

_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVICE_CONFIG = {
    "methodConfig": [
        # Each of these may be made twice. Streams are resumed by position instead.
        {
            "name": [
                {"service": "quire.v1.InferenceService", "method": method}
                for method in ("Cancel", "ListModels", "ListGateways", "Tokenize", "Detokenize", "CachePrefix")
            ],
            "retryPolicy": _RETRY,
        }
    ]
}


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client checks the gateway, and shows itself where mutual TLS is asked for. PEM files.

    Without `authority` the system's own are trusted. `name` overrides the host name that the certificate must have.
    """

    authority: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS: certificate and key go together; give both, or neither")
        try:
            parts = [
                None if path is None else Path(path).read_bytes()
                for path in (self.authority, self.key, self.certificate)
            ]
        except OSError as error:
            raise unreadable(f"TLS: {error.filename}", error) from error
        return grpc.ssl_channel_credentials(*parts)


class Connection:
    """Gateways by address, tried in turn: those that were given, then those that they told of. Belongs to one event
    loop."""

    def __init__(self, addresses: str | Sequence[str], token: str | None, tls: Tls | None) -> None:
        listed = [addresses] if isinstance(addresses, str) else list(addresses)
        if not listed or not all(listed):
            raise ConfigError("name the address of at least one gateway, such as 127.0.0.1:50051")
        self.addresses = [address if ":" in address else f"{address}:50051" for address in listed]
        self.metadata: tuple[tuple[str, str], ...] = () if token is None else (("authorization", f"Bearer {token}"),)
        self._tls = tls
        self._current = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        # Last words under way: tasks that outlive the streams that they speak of.
        self._parting: set[asyncio.Task[None]] = set()
        # By gateway: it is asked which others there are, once.
        self._learning: dict[str, asyncio.Task[None]] = {}

    @property
    def address(self) -> str:
        return self.addresses[self._current]

    def stub(self) -> InferenceServiceAsyncStub:
        """Of the gateway that answered last."""
        stub = InferenceServiceAsyncStub(self.channel())
        if self.address not in self._learning:
            learning = self._learn(self.address, stub)
            self._learning[self.address] = asyncio.get_running_loop().create_task(learning)
        return stub

    async def _learn(self, address: str, stub: InferenceServiceAsyncStub) -> None:
        """Asks a gateway for the others, so that one address is enough to outlive it."""
        try:
            answer = await stub.ListGateways(pb.ListGatewaysRequest(), timeout=LEARN_S, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            # It did not answer: it is asked again with the next call. Others do not know the question, or not us.
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._learning.pop(address, None)
            return
        host = address.rpartition(":")[0]
        for one in answer.gateways:
            found = f"{host}{one.address}" if one.address.startswith(":") else one.address
            if found not in self.addresses and len(self.addresses) < MAX_GATEWAYS:
                self.addresses.append(found)

    def channel(self) -> grpc.aio.Channel:
        channel = self._channels.get(self.address)
        if channel is None:
            channel = self._channels[self.address] = self._open(self.address)
        return channel

    def turn_to_next(self) -> None:
        """The current gateway does not answer."""
        self._current = (self._current + 1) % len(self.addresses)

    def _open(self, address: str) -> grpc.aio.Channel:
        options: list[tuple[str, int | str]] = [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.enable_retries", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A gateway that died without a word is found out; a silent one lives as long as it answers.
            ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
            ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            # A gateway that starts again is found soon.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        if self._tls.name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.name))
        return grpc.aio.secure_channel(address, self._tls.credentials(), options=options)

    def say_last(self, words: Coroutine[Any, Any, None]) -> None:
        """Runs this beside everything else; `close` waits for it a moment."""
        task = asyncio.get_running_loop().create_task(words)
        self._parting.add(task)
        task.add_done_callback(self._parting.discard)

    def error(self, failure: grpc.aio.AioRpcError) -> QuireError:
        """Of a call to the current gateway that failed."""
        has_certificate = self._tls is not None and self._tls.certificate is not None
        found = error_from_call(failure)
        return connection_error(found, self.address, has_tls=self._tls is not None, has_certificate=has_certificate)

    async def close(self) -> None:
        for task in self._learning.values():
            task.cancel()
        if self._parting:
            await asyncio.wait(self._parting, timeout=PARTING_S)
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close(None)
