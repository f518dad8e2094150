"""Types of the services of quire/v1/front.proto, written by protos/generate.py. Do not edit."""

import grpc
import grpc.aio

from protos.quire.v1 import front_pb2

class FrontServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Attach: grpc.StreamStreamMultiCallable[front_pb2.AttachRequest, front_pb2.AttachResponse]

class FrontServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Attach: grpc.aio.StreamStreamMultiCallable[front_pb2.AttachRequest, front_pb2.AttachResponse]

def add_FrontServiceServicer_to_server(servicer: object, server: grpc.Server | grpc.aio.Server) -> None: ...

class FiguresServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    GetFigures: grpc.UnaryUnaryMultiCallable[front_pb2.GetFiguresRequest, front_pb2.GetFiguresResponse]

class FiguresServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    GetFigures: grpc.aio.UnaryUnaryMultiCallable[front_pb2.GetFiguresRequest, front_pb2.GetFiguresResponse]

def add_FiguresServiceServicer_to_server(servicer: object, server: grpc.Server | grpc.aio.Server) -> None: ...
