"""The process that `quire bench cluster --parts door` measures: a real gateway, its token intake, and nothing else.

Started by the benchmark, told where the scheduler is, and asked for its processor time over its standard input. It ends
when that is closed, so that it never outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import worker.demo
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.gateway.front_tokens import TokenIntake
from cluster.gateway.gateway import Gateway
from cluster.gateway.http.server import HttpServer
from cluster.gateway.models import TextModel
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.links.security import ClusterSecurity
from cluster.messages import Tokens
from cluster.serving.inside import Inside

MODEL = "demo"
SECURITY = ClusterSecurity("a secret of this benchmark's own")


async def serve(scheduler: str) -> None:
    async def find() -> str:
        return scheduler

    def feed(tokens: Sequence[Tokens]) -> None:
        gateway.feed(tokens)

    intake = TokenIntake("gateway-0", 1, feed)
    token_address = await intake.listen(Inside("127.0.0.1", SECURITY))
    link = FrontLink(LinkSettings("gateway-0", 1, token_address, find, SECURITY))
    folder = Path(worker.demo.__file__).parent
    gateway = Gateway(GatewaySettings(port=0, max_messages_per_s=10_000), link, {MODEL: TextModel.load(MODEL, folder)})
    server = GatewayServer(gateway)
    await server.start()
    http = HttpServer(gateway, 0, must_be=True)
    await http.start()
    gc.freeze()
    print(json.dumps({"port": server.port, "http": http.port, "tokens": token_address}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "cpu":
            print(json.dumps({"cpu_s": time.process_time(), "stale": gateway.num_stale}), flush=True)
    await server.stop(0.1)
    await http.stop()
    intake.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
