"""Services of quire/v1/inference.proto, written by protos/generate.py. Do not edit."""

import grpc

from protos.quire.v1 import inference_pb2


class InferenceServiceStub:
    def __init__(self, channel):
        self.Generate = channel.unary_stream(
            "/quire.v1.InferenceService/Generate",
            request_serializer=inference_pb2.GenerateRequest.SerializeToString,
            response_deserializer=inference_pb2.GenerateResponse.FromString,
        )
        self.GenerateMany = channel.stream_stream(
            "/quire.v1.InferenceService/GenerateMany",
            request_serializer=inference_pb2.GenerateManyRequest.SerializeToString,
            response_deserializer=inference_pb2.GenerateManyResponse.FromString,
        )
        self.Cancel = channel.unary_unary(
            "/quire.v1.InferenceService/Cancel",
            request_serializer=inference_pb2.CancelRequest.SerializeToString,
            response_deserializer=inference_pb2.CancelResponse.FromString,
        )
        self.ListModels = channel.unary_unary(
            "/quire.v1.InferenceService/ListModels",
            request_serializer=inference_pb2.ListModelsRequest.SerializeToString,
            response_deserializer=inference_pb2.ListModelsResponse.FromString,
        )
        self.Tokenize = channel.unary_unary(
            "/quire.v1.InferenceService/Tokenize",
            request_serializer=inference_pb2.TokenizeRequest.SerializeToString,
            response_deserializer=inference_pb2.TokenizeResponse.FromString,
        )
        self.Detokenize = channel.unary_unary(
            "/quire.v1.InferenceService/Detokenize",
            request_serializer=inference_pb2.DetokenizeRequest.SerializeToString,
            response_deserializer=inference_pb2.DetokenizeResponse.FromString,
        )
        self.CachePrefix = channel.unary_unary(
            "/quire.v1.InferenceService/CachePrefix",
            request_serializer=inference_pb2.CachePrefixRequest.SerializeToString,
            response_deserializer=inference_pb2.CachePrefixResponse.FromString,
        )
        self.ListGateways = channel.unary_unary(
            "/quire.v1.InferenceService/ListGateways",
            request_serializer=inference_pb2.ListGatewaysRequest.SerializeToString,
            response_deserializer=inference_pb2.ListGatewaysResponse.FromString,
        )


InferenceServiceAsyncStub = InferenceServiceStub


def add_InferenceServiceServicer_to_server(servicer, server):
    methods = {
        "Generate": grpc.unary_stream_rpc_method_handler(
            servicer.Generate,
            request_deserializer=inference_pb2.GenerateRequest.FromString,
            response_serializer=inference_pb2.GenerateResponse.SerializeToString,
        ),
        "GenerateMany": grpc.stream_stream_rpc_method_handler(
            servicer.GenerateMany,
            request_deserializer=inference_pb2.GenerateManyRequest.FromString,
            response_serializer=inference_pb2.GenerateManyResponse.SerializeToString,
        ),
        "Cancel": grpc.unary_unary_rpc_method_handler(
            servicer.Cancel,
            request_deserializer=inference_pb2.CancelRequest.FromString,
            response_serializer=inference_pb2.CancelResponse.SerializeToString,
        ),
        "ListModels": grpc.unary_unary_rpc_method_handler(
            servicer.ListModels,
            request_deserializer=inference_pb2.ListModelsRequest.FromString,
            response_serializer=inference_pb2.ListModelsResponse.SerializeToString,
        ),
        "Tokenize": grpc.unary_unary_rpc_method_handler(
            servicer.Tokenize,
            request_deserializer=inference_pb2.TokenizeRequest.FromString,
            response_serializer=inference_pb2.TokenizeResponse.SerializeToString,
        ),
        "Detokenize": grpc.unary_unary_rpc_method_handler(
            servicer.Detokenize,
            request_deserializer=inference_pb2.DetokenizeRequest.FromString,
            response_serializer=inference_pb2.DetokenizeResponse.SerializeToString,
        ),
        "CachePrefix": grpc.unary_unary_rpc_method_handler(
            servicer.CachePrefix,
            request_deserializer=inference_pb2.CachePrefixRequest.FromString,
            response_serializer=inference_pb2.CachePrefixResponse.SerializeToString,
        ),
        "ListGateways": grpc.unary_unary_rpc_method_handler(
            servicer.ListGateways,
            request_deserializer=inference_pb2.ListGatewaysRequest.FromString,
            response_serializer=inference_pb2.ListGatewaysResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("quire.v1.InferenceService", methods),))
