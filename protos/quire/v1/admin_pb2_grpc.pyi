"""Types of the services of quire/v1/admin.proto, written by protos/generate.py. Do not edit."""

import grpc
import grpc.aio

from protos.quire.v1 import admin_pb2

class AdminServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    GetCluster: grpc.UnaryUnaryMultiCallable[admin_pb2.GetClusterRequest, admin_pb2.GetClusterResponse]
    ListWorkers: grpc.UnaryUnaryMultiCallable[admin_pb2.ListWorkersRequest, admin_pb2.ListWorkersResponse]
    ListPools: grpc.UnaryUnaryMultiCallable[admin_pb2.ListPoolsRequest, admin_pb2.ListPoolsResponse]
    ListRequests: grpc.UnaryUnaryMultiCallable[admin_pb2.ListRequestsRequest, admin_pb2.ListRequestsResponse]
    DescribeRequest: grpc.UnaryUnaryMultiCallable[admin_pb2.DescribeRequestRequest, admin_pb2.DescribeRequestResponse]
    WatchBlocks: grpc.UnaryStreamMultiCallable[admin_pb2.WatchBlocksRequest, admin_pb2.WatchBlocksResponse]
    Drain: grpc.UnaryUnaryMultiCallable[admin_pb2.DrainRequest, admin_pb2.DrainResponse]
    CloseModel: grpc.UnaryUnaryMultiCallable[admin_pb2.CloseModelRequest, admin_pb2.CloseModelResponse]
    GetUsage: grpc.UnaryUnaryMultiCallable[admin_pb2.GetUsageRequest, admin_pb2.GetUsageResponse]

class AdminServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    GetCluster: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.GetClusterRequest, admin_pb2.GetClusterResponse]
    ListWorkers: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.ListWorkersRequest, admin_pb2.ListWorkersResponse]
    ListPools: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.ListPoolsRequest, admin_pb2.ListPoolsResponse]
    ListRequests: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.ListRequestsRequest, admin_pb2.ListRequestsResponse]
    DescribeRequest: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.DescribeRequestRequest, admin_pb2.DescribeRequestResponse]
    WatchBlocks: grpc.aio.UnaryStreamMultiCallable[admin_pb2.WatchBlocksRequest, admin_pb2.WatchBlocksResponse]
    Drain: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.DrainRequest, admin_pb2.DrainResponse]
    CloseModel: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.CloseModelRequest, admin_pb2.CloseModelResponse]
    GetUsage: grpc.aio.UnaryUnaryMultiCallable[admin_pb2.GetUsageRequest, admin_pb2.GetUsageResponse]

def add_AdminServiceServicer_to_server(servicer: object, server: grpc.Server | grpc.aio.Server) -> None: ...
