"""Types of the services of quire/v1/control.proto, written by protos/generate.py. Do not edit."""

import grpc
import grpc.aio

from protos.quire.v1 import control_pb2

class ControlServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Connect: grpc.StreamStreamMultiCallable[control_pb2.ConnectRequest, control_pb2.ConnectResponse]

class ControlServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Connect: grpc.aio.StreamStreamMultiCallable[control_pb2.ConnectRequest, control_pb2.ConnectResponse]

def add_ControlServiceServicer_to_server(servicer: object, server: grpc.Server | grpc.aio.Server) -> None: ...
