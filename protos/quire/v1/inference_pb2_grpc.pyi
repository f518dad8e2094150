"""Types of the services of quire/v1/inference.proto, written by protos/generate.py. Do not edit."""

import grpc
import grpc.aio

from protos.quire.v1 import inference_pb2

class InferenceServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Generate: grpc.UnaryStreamMultiCallable[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
    GenerateMany: grpc.StreamStreamMultiCallable[inference_pb2.GenerateManyRequest, inference_pb2.GenerateManyResponse]
    Cancel: grpc.UnaryUnaryMultiCallable[inference_pb2.CancelRequest, inference_pb2.CancelResponse]
    ListModels: grpc.UnaryUnaryMultiCallable[inference_pb2.ListModelsRequest, inference_pb2.ListModelsResponse]
    Tokenize: grpc.UnaryUnaryMultiCallable[inference_pb2.TokenizeRequest, inference_pb2.TokenizeResponse]
    Detokenize: grpc.UnaryUnaryMultiCallable[inference_pb2.DetokenizeRequest, inference_pb2.DetokenizeResponse]
    CachePrefix: grpc.UnaryUnaryMultiCallable[inference_pb2.CachePrefixRequest, inference_pb2.CachePrefixResponse]
    ListGateways: grpc.UnaryUnaryMultiCallable[inference_pb2.ListGatewaysRequest, inference_pb2.ListGatewaysResponse]

class InferenceServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Generate: grpc.aio.UnaryStreamMultiCallable[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
    GenerateMany: grpc.aio.StreamStreamMultiCallable[inference_pb2.GenerateManyRequest, inference_pb2.GenerateManyResponse]
    Cancel: grpc.aio.UnaryUnaryMultiCallable[inference_pb2.CancelRequest, inference_pb2.CancelResponse]
    ListModels: grpc.aio.UnaryUnaryMultiCallable[inference_pb2.ListModelsRequest, inference_pb2.ListModelsResponse]
    Tokenize: grpc.aio.UnaryUnaryMultiCallable[inference_pb2.TokenizeRequest, inference_pb2.TokenizeResponse]
    Detokenize: grpc.aio.UnaryUnaryMultiCallable[inference_pb2.DetokenizeRequest, inference_pb2.DetokenizeResponse]
    CachePrefix: grpc.aio.UnaryUnaryMultiCallable[inference_pb2.CachePrefixRequest, inference_pb2.CachePrefixResponse]
    ListGateways: grpc.aio.UnaryUnaryMultiCallable[inference_pb2.ListGatewaysRequest, inference_pb2.ListGatewaysResponse]

def add_InferenceServiceServicer_to_server(servicer: object, server: grpc.Server | grpc.aio.Server) -> None: ...
