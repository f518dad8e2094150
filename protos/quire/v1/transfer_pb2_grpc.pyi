"""Types of the services of quire/v1/transfer.proto, written by protos/generate.py. Do not edit."""

import grpc
import grpc.aio

from protos.quire.v1 import transfer_pb2

class TransferServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Join: grpc.UnaryUnaryMultiCallable[transfer_pb2.JoinRequest, transfer_pb2.JoinResponse]
    Reserve: grpc.UnaryUnaryMultiCallable[transfer_pb2.ReserveRequest, transfer_pb2.ReserveResponse]
    Write: grpc.StreamUnaryMultiCallable[transfer_pb2.WriteRequest, transfer_pb2.WriteResponse]
    Read: grpc.UnaryStreamMultiCallable[transfer_pb2.ReadRequest, transfer_pb2.ReadResponse]
    Commit: grpc.UnaryUnaryMultiCallable[transfer_pb2.CommitRequest, transfer_pb2.CommitResponse]
    Abort: grpc.UnaryUnaryMultiCallable[transfer_pb2.AbortRequest, transfer_pb2.AbortResponse]

class TransferServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Join: grpc.aio.UnaryUnaryMultiCallable[transfer_pb2.JoinRequest, transfer_pb2.JoinResponse]
    Reserve: grpc.aio.UnaryUnaryMultiCallable[transfer_pb2.ReserveRequest, transfer_pb2.ReserveResponse]
    Write: grpc.aio.StreamUnaryMultiCallable[transfer_pb2.WriteRequest, transfer_pb2.WriteResponse]
    Read: grpc.aio.UnaryStreamMultiCallable[transfer_pb2.ReadRequest, transfer_pb2.ReadResponse]
    Commit: grpc.aio.UnaryUnaryMultiCallable[transfer_pb2.CommitRequest, transfer_pb2.CommitResponse]
    Abort: grpc.aio.UnaryUnaryMultiCallable[transfer_pb2.AbortRequest, transfer_pb2.AbortResponse]

def add_TransferServiceServicer_to_server(servicer: object, server: grpc.Server | grpc.aio.Server) -> None: ...
