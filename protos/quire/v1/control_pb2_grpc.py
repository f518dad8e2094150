"""Services of quire/v1/control.proto, written by protos/generate.py. Do not edit."""

import grpc

from protos.quire.v1 import control_pb2


class ControlServiceStub:
    def __init__(self, channel):
        self.Connect = channel.stream_stream(
            "/quire.v1.ControlService/Connect",
            request_serializer=control_pb2.ConnectRequest.SerializeToString,
            response_deserializer=control_pb2.ConnectResponse.FromString,
        )


ControlServiceAsyncStub = ControlServiceStub


def add_ControlServiceServicer_to_server(servicer, server):
    methods = {
        "Connect": grpc.stream_stream_rpc_method_handler(
            servicer.Connect,
            request_deserializer=control_pb2.ConnectRequest.FromString,
            response_serializer=control_pb2.ConnectResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("quire.v1.ControlService", methods),))
