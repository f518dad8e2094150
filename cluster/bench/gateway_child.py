"""The process that `quire bench gateway` measures: a real gateway, its token intake, and nothing else.

Started by the benchmark, told where the scheduler is, and asked for its processor time over its standard input. It ends
when that is closed, so that it never outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path

import grpc.aio

import worker.demo
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.gateway.front_tokens import TokenIntake
from cluster.gateway.gateway import Gateway
from cluster.gateway.models import TextModel
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from protos.quire.v1.front_pb2_grpc import add_TokenServiceServicer_to_server
from worker.security import ClusterSecurity

MODEL = "demo"
SECURITY = ClusterSecurity("a secret of this benchmark's own")


async def serve(scheduler: str) -> None:
    async def find() -> str:
        return scheduler

    options = [("grpc.max_receive_message_length", 64 << 20)]
    tokens = grpc.aio.server(options=options, interceptors=[SECURITY.aio_interceptor()])
    token_port = tokens.add_insecure_port("127.0.0.1:0")
    link = FrontLink(LinkSettings("gateway-0", 1, f"127.0.0.1:{token_port}", find, SECURITY))
    folder = Path(worker.demo.__file__).parent
    gateway = Gateway(GatewaySettings(port=0), link, {MODEL: TextModel.load(MODEL, folder)})
    add_TokenServiceServicer_to_server(TokenIntake(gateway.feed), tokens)
    await tokens.start()
    server = GatewayServer(gateway)
    await server.start()
    gc.freeze()
    print(json.dumps({"port": server.port, "token_port": token_port}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "cpu":
            print(json.dumps({"cpu_s": time.process_time(), "stale": gateway.num_stale}), flush=True)
    await server.stop(0.1)
    await tokens.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
