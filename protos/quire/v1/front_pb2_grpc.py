"""Services of quire/v1/front.proto, written by protos/generate.py. Do not edit."""

import grpc

from protos.quire.v1 import front_pb2


class FrontServiceStub:
    def __init__(self, channel):
        self.Attach = channel.stream_stream(
            "/quire.v1.FrontService/Attach",
            request_serializer=front_pb2.AttachRequest.SerializeToString,
            response_deserializer=front_pb2.AttachResponse.FromString,
        )


FrontServiceAsyncStub = FrontServiceStub


def add_FrontServiceServicer_to_server(servicer, server):
    methods = {
        "Attach": grpc.stream_stream_rpc_method_handler(
            servicer.Attach,
            request_deserializer=front_pb2.AttachRequest.FromString,
            response_serializer=front_pb2.AttachResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("quire.v1.FrontService", methods),))


class FiguresServiceStub:
    def __init__(self, channel):
        self.GetFigures = channel.unary_unary(
            "/quire.v1.FiguresService/GetFigures",
            request_serializer=front_pb2.GetFiguresRequest.SerializeToString,
            response_deserializer=front_pb2.GetFiguresResponse.FromString,
        )


FiguresServiceAsyncStub = FiguresServiceStub


def add_FiguresServiceServicer_to_server(servicer, server):
    methods = {
        "GetFigures": grpc.unary_unary_rpc_method_handler(
            servicer.GetFigures,
            request_deserializer=front_pb2.GetFiguresRequest.FromString,
            response_serializer=front_pb2.GetFiguresResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("quire.v1.FiguresService", methods),))
