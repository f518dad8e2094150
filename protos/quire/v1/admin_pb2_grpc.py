"""Services of quire/v1/admin.proto, written by protos/generate.py. Do not edit."""

import grpc

from protos.quire.v1 import admin_pb2


class AdminServiceStub:
    def __init__(self, channel):
        self.GetCluster = channel.unary_unary(
            "/quire.v1.AdminService/GetCluster",
            request_serializer=admin_pb2.GetClusterRequest.SerializeToString,
            response_deserializer=admin_pb2.GetClusterResponse.FromString,
        )
        self.ListWorkers = channel.unary_unary(
            "/quire.v1.AdminService/ListWorkers",
            request_serializer=admin_pb2.ListWorkersRequest.SerializeToString,
            response_deserializer=admin_pb2.ListWorkersResponse.FromString,
        )
        self.ListPools = channel.unary_unary(
            "/quire.v1.AdminService/ListPools",
            request_serializer=admin_pb2.ListPoolsRequest.SerializeToString,
            response_deserializer=admin_pb2.ListPoolsResponse.FromString,
        )
        self.ListRequests = channel.unary_unary(
            "/quire.v1.AdminService/ListRequests",
            request_serializer=admin_pb2.ListRequestsRequest.SerializeToString,
            response_deserializer=admin_pb2.ListRequestsResponse.FromString,
        )
        self.DescribeRequest = channel.unary_unary(
            "/quire.v1.AdminService/DescribeRequest",
            request_serializer=admin_pb2.DescribeRequestRequest.SerializeToString,
            response_deserializer=admin_pb2.DescribeRequestResponse.FromString,
        )
        self.WatchBlocks = channel.unary_stream(
            "/quire.v1.AdminService/WatchBlocks",
            request_serializer=admin_pb2.WatchBlocksRequest.SerializeToString,
            response_deserializer=admin_pb2.WatchBlocksResponse.FromString,
        )
        self.Drain = channel.unary_unary(
            "/quire.v1.AdminService/Drain",
            request_serializer=admin_pb2.DrainRequest.SerializeToString,
            response_deserializer=admin_pb2.DrainResponse.FromString,
        )
        self.CloseModel = channel.unary_unary(
            "/quire.v1.AdminService/CloseModel",
            request_serializer=admin_pb2.CloseModelRequest.SerializeToString,
            response_deserializer=admin_pb2.CloseModelResponse.FromString,
        )
        self.GetUsage = channel.unary_unary(
            "/quire.v1.AdminService/GetUsage",
            request_serializer=admin_pb2.GetUsageRequest.SerializeToString,
            response_deserializer=admin_pb2.GetUsageResponse.FromString,
        )


AdminServiceAsyncStub = AdminServiceStub


def add_AdminServiceServicer_to_server(servicer, server):
    methods = {
        "GetCluster": grpc.unary_unary_rpc_method_handler(
            servicer.GetCluster,
            request_deserializer=admin_pb2.GetClusterRequest.FromString,
            response_serializer=admin_pb2.GetClusterResponse.SerializeToString,
        ),
        "ListWorkers": grpc.unary_unary_rpc_method_handler(
            servicer.ListWorkers,
            request_deserializer=admin_pb2.ListWorkersRequest.FromString,
            response_serializer=admin_pb2.ListWorkersResponse.SerializeToString,
        ),
        "ListPools": grpc.unary_unary_rpc_method_handler(
            servicer.ListPools,
            request_deserializer=admin_pb2.ListPoolsRequest.FromString,
            response_serializer=admin_pb2.ListPoolsResponse.SerializeToString,
        ),
        "ListRequests": grpc.unary_unary_rpc_method_handler(
            servicer.ListRequests,
            request_deserializer=admin_pb2.ListRequestsRequest.FromString,
            response_serializer=admin_pb2.ListRequestsResponse.SerializeToString,
        ),
        "DescribeRequest": grpc.unary_unary_rpc_method_handler(
            servicer.DescribeRequest,
            request_deserializer=admin_pb2.DescribeRequestRequest.FromString,
            response_serializer=admin_pb2.DescribeRequestResponse.SerializeToString,
        ),
        "WatchBlocks": grpc.unary_stream_rpc_method_handler(
            servicer.WatchBlocks,
            request_deserializer=admin_pb2.WatchBlocksRequest.FromString,
            response_serializer=admin_pb2.WatchBlocksResponse.SerializeToString,
        ),
        "Drain": grpc.unary_unary_rpc_method_handler(
            servicer.Drain,
            request_deserializer=admin_pb2.DrainRequest.FromString,
            response_serializer=admin_pb2.DrainResponse.SerializeToString,
        ),
        "CloseModel": grpc.unary_unary_rpc_method_handler(
            servicer.CloseModel,
            request_deserializer=admin_pb2.CloseModelRequest.FromString,
            response_serializer=admin_pb2.CloseModelResponse.SerializeToString,
        ),
        "GetUsage": grpc.unary_unary_rpc_method_handler(
            servicer.GetUsage,
            request_deserializer=admin_pb2.GetUsageRequest.FromString,
            response_serializer=admin_pb2.GetUsageResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("quire.v1.AdminService", methods),))
