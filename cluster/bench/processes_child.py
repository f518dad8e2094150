"""One worker or host pool in a process of its own, without Ray: `python -m cluster.bench.processes_child ABOUT`.

Started by `cluster/bench/processes.py` only, with JSON that says what it is. It prints one line of JSON once it serves,
and ends when its input is closed, so that it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.register.register import RegisterSettings
from cluster.settings import WorkerSettings
from worker.host_pool import HostPool, HostPoolSettings
from worker.host_pool_serve import serve_host_pool
from worker.transfer.server import Listening


def serve(argv: list[str]) -> None:
    about: dict[str, Any] = json.loads(argv[0])
    threading.Thread(target=_end_with_input, daemon=True).start()
    address = Path(about["address_file"])

    async def find() -> str:
        # A scheduler that starts again writes its new address there.
        return await asyncio.to_thread(address.read_text)

    security = ClusterSecurity(about["secret"], _tls(about["tls"]))
    if about["role"] == "worker":
        asyncio.run(_work(about, find, security))
    else:
        asyncio.run(_hold(about, find, security))


def _tls(paths: list[str]) -> TlsFiles | None:
    if not paths:
        return None
    certificate, key, authority = map(Path, paths)
    return TlsFiles(certificate, key, authority)


async def _work(about: dict[str, Any], find: Any, security: ClusterSecurity) -> None:
    # Torch is loaded in a process that runs a model and in no other.
    from worker.serve import WorkerServer
    from worker.worker import Worker

    settings = WorkerSettings(**{**about["settings"], "hash_key": bytes.fromhex(about["hash_key"])})
    worker = Worker(settings, replica=about["name"], incarnation=_incarnation(), node=about["node"])
    server = WorkerServer(worker, find, security=security, listening=Listening(about["host"]))
    layout = worker.parts.layout
    told = {
        "block_bytes": layout.block_bytes,
        "fingerprint": layout.fingerprint(),
        "blocks": worker.parts.pool.num_blocks,
    }
    print(json.dumps(told), flush=True)
    await server.run()


async def _hold(about: dict[str, Any], find: Any, security: ClusterSecurity) -> None:
    settings = HostPoolSettings(
        name=about["name"],
        node=about["node"],
        size=about["size"],
        block_bytes=about["block_bytes"],
        fingerprint=about["fingerprint"],
        incarnation=_incarnation(),
        listening=Listening(about["host"]),
        register=RegisterSettings(),
    )
    pool = HostPool(settings, security)
    print(json.dumps({"blocks": pool.num_blocks}), flush=True)
    await serve_host_pool(pool, find, security)


def _incarnation() -> int:
    return time.time_ns() // 1_000_000


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1:])
