"""The operators' door seen from outside: calls that end in one clear line, and answers as plain values.

Commands and the doctor use it, over a channel of `admin_channel.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from cluster.client.errors import connection_error, error_from_call
from cluster.errors import DeadlineExceeded, QuireError
from protos.quire.v1 import admin_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

DEADLINE_S = 10.0


class Admin:
    """Calls of the AdminService at one address."""

    def __init__(self, address: str, channel: grpc.Channel, *, has_tls: bool) -> None:
        self.address = address
        self.channel = channel
        self.stub = AdminServiceStub(channel)
        self._has_tls = has_tls

    def call(self, name: str, request: Any) -> Any:
        """Raises `QuireError`."""
        try:
            return getattr(self.stub, name)(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self.error(error) from error

    def error(self, error: Any) -> QuireError:
        """A call's failure as one of our errors."""
        return _plainly(error, self.address, self._has_tls)


def _plainly(error: Any, address: str, has_tls: bool) -> QuireError:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{address} takes calls and does not answer in time; `quire doctor` says what is wrong")
    return connection_error(error_from_call(error), address, has_tls=has_tls, has_certificate=True)


@contextmanager
def told_plainly(address: str, *, has_tls: bool) -> Iterator[None]:
    """Calls of a bare stub in here fail with one of our errors as well."""
    try:
        yield
    except grpc.RpcError as error:
        raise _plainly(error, address, has_tls) from error


def status_of(admin: Admin, most: int | None = None) -> dict[str, Any]:
    """All of it as plain values; at most so many requests."""
    return {
        "cluster": plain(admin.call("GetCluster", pb.GetClusterRequest())),
        "workers": plain(admin.call("ListWorkers", pb.ListWorkersRequest())),
        "pools": plain(admin.call("ListPools", pb.ListPoolsRequest())),
        "requests": plain(admin.call("ListRequests", pb.ListRequestsRequest(limit=most or 2**31 - 1))),
    }


def plain(message: Message) -> dict[str, Any]:
    """A message as values that JSON has: every field by its name, numbers as numbers, zeros too, enums by name."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            found[field.name] = None
            continue
        value = getattr(message, field.name)
        if isinstance(value, Mapping):
            found[field.name] = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            found[field.name] = [_value(field, one) for one in value]
        else:
            found[field.name] = _value(field, value)
    return found


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in field.enum_type.name)
        return field.enum_type.values_by_number[value].name.removeprefix(f"{prefix.lstrip('_')}_").lower()
    return value.hex() if isinstance(value, bytes) else value
