"""Services of quire/v1/transfer.proto, written by protos/generate.py. Do not edit."""

import grpc

from protos.quire.v1 import transfer_pb2


class TransferServiceStub:
    def __init__(self, channel):
        self.Join = channel.unary_unary(
            "/quire.v1.TransferService/Join",
            request_serializer=transfer_pb2.JoinRequest.SerializeToString,
            response_deserializer=transfer_pb2.JoinResponse.FromString,
        )
        self.Reserve = channel.unary_unary(
            "/quire.v1.TransferService/Reserve",
            request_serializer=transfer_pb2.ReserveRequest.SerializeToString,
            response_deserializer=transfer_pb2.ReserveResponse.FromString,
        )
        self.Write = channel.stream_unary(
            "/quire.v1.TransferService/Write",
            request_serializer=transfer_pb2.WriteRequest.SerializeToString,
            response_deserializer=transfer_pb2.WriteResponse.FromString,
        )
        self.Read = channel.unary_stream(
            "/quire.v1.TransferService/Read",
            request_serializer=transfer_pb2.ReadRequest.SerializeToString,
            response_deserializer=transfer_pb2.ReadResponse.FromString,
        )
        self.Commit = channel.unary_unary(
            "/quire.v1.TransferService/Commit",
            request_serializer=transfer_pb2.CommitRequest.SerializeToString,
            response_deserializer=transfer_pb2.CommitResponse.FromString,
        )
        self.Abort = channel.unary_unary(
            "/quire.v1.TransferService/Abort",
            request_serializer=transfer_pb2.AbortRequest.SerializeToString,
            response_deserializer=transfer_pb2.AbortResponse.FromString,
        )


TransferServiceAsyncStub = TransferServiceStub


def add_TransferServiceServicer_to_server(servicer, server):
    methods = {
        "Join": grpc.unary_unary_rpc_method_handler(
            servicer.Join,
            request_deserializer=transfer_pb2.JoinRequest.FromString,
            response_serializer=transfer_pb2.JoinResponse.SerializeToString,
        ),
        "Reserve": grpc.unary_unary_rpc_method_handler(
            servicer.Reserve,
            request_deserializer=transfer_pb2.ReserveRequest.FromString,
            response_serializer=transfer_pb2.ReserveResponse.SerializeToString,
        ),
        "Write": grpc.stream_unary_rpc_method_handler(
            servicer.Write,
            request_deserializer=transfer_pb2.WriteRequest.FromString,
            response_serializer=transfer_pb2.WriteResponse.SerializeToString,
        ),
        "Read": grpc.unary_stream_rpc_method_handler(
            servicer.Read,
            request_deserializer=transfer_pb2.ReadRequest.FromString,
            response_serializer=transfer_pb2.ReadResponse.SerializeToString,
        ),
        "Commit": grpc.unary_unary_rpc_method_handler(
            servicer.Commit,
            request_deserializer=transfer_pb2.CommitRequest.FromString,
            response_serializer=transfer_pb2.CommitResponse.SerializeToString,
        ),
        "Abort": grpc.unary_unary_rpc_method_handler(
            servicer.Abort,
            request_deserializer=transfer_pb2.AbortRequest.FromString,
            response_serializer=transfer_pb2.AbortResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("quire.v1.TransferService", methods),))
