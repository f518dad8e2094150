"""One process of a cluster without Ray, of any kind: `python -m cluster.bench.processes_child ABOUT`.

Started by `cluster/bench/processes.py` only, with JSON that says what it is. It prints one line of JSON once it serves,
and ends when its input is closed, so that it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.register.register import RegisterSettings
from cluster.serving.auth import LOCAL, TokenBook, TokenEntry, digest_of
from cluster.serving.inside import Inside
from cluster.serving.public_port import PortTls, PublicPort
from cluster.settings import SchedulerSettings, WorkerSettings
from worker.host_pool import HostPoolServer, HostPoolSettings
from worker.host_pool_serve import serve_host_pool
from worker.serve import WorkerServer
from worker.transfer.server import Listening

Find: TypeAlias = Callable[[], Awaitable[str]]


def serve(argv: list[str]) -> None:
    about: dict[str, Any] = json.loads(argv[0])
    threading.Thread(target=_end_with_input, daemon=True).start()
    # What is made there goes with the folder of whoever started this.
    tempfile.tempdir = str(Path(about["address_file"]).parent)
    address = Path(about["front_file" if about["role"] == "gateway" else "address_file"])

    async def find() -> str:
        # A scheduler that starts again writes its new address there.
        return await asyncio.to_thread(address.read_text)

    inside = Inside(about["host"], ClusterSecurity(about["secret"], _tls(about["tls"])))
    serve_role = {
        "worker": _work,
        "made-up worker": _make_up,
        "host pool": _hold,
        "scheduler": _decide,
        "gateway": _open,
    }
    asyncio.run(serve_role[about["role"]](about, find, inside))


def _tls(paths: list[str]) -> TlsFiles | None:
    if not paths:
        return None
    certificate, key, authority = map(Path, paths)
    return TlsFiles(certificate, key, authority)


async def _work(about: dict[str, Any], find: Find, inside: Inside) -> None:
    # Torch is loaded in a process that runs a model and in no other.
    from worker.ranks.local import Ranks
    from worker.swap import swap_of

    settings = WorkerSettings(**{**about["settings"], "hash_key": bytes.fromhex(about["hash_key"])})
    ranks = Ranks(settings, about["num_ranks"])
    worker = ranks.start(replica=about["name"], incarnation=_incarnation(), node=about["node"])
    children = [child.pid for child in ranks.children]
    server = WorkerServer(
        worker, find, inside.security, swap=swap_of(worker, inside.security, Listening(about["host"]))
    )
    joined = worker.joined()
    _tell(
        block_bytes=joined.block_bytes,
        fingerprint=joined.fingerprint,
        blocks=worker.parts.pool.num_blocks,
        ranks=children,
    )
    await server.run()


async def _make_up(about: dict[str, Any], find: Find, inside: Inside) -> None:
    from cluster.torture.made_up import MadeUpWorker

    worker = MadeUpWorker(about["name"], _incarnation(), about["node"], **about["made_up"])
    server = WorkerServer(worker, find, inside.security)
    _tell()
    await server.run()


async def _hold(about: dict[str, Any], find: Find, inside: Inside) -> None:
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
    pool = HostPoolServer(settings, inside.security)
    _tell(blocks=pool.num_blocks)
    await serve_host_pool(pool, find, inside.security)


async def _decide(about: dict[str, Any], find: Find, inside: Inside) -> None:
    from cluster.serving.scheduler_server import Addresses, Doors, serve_scheduler

    def publish(addresses: Addresses) -> None:
        for file, found in (("address_file", addresses.control), ("front_file", addresses.front)):
            # Whole, whenever somebody looks.
            written = Path(f"{about[file]}.new")
            written.write_text(found)
            written.replace(about[file])
        _tell(admin=addresses.admin)

    await serve_scheduler(
        SchedulerSettings(**about["settings"]),
        about["life"],
        doors=Doors(inside, _door(about, 0), _door(about, 0)),
        hash_key=bytes.fromhex(about["hash_key"]),
        silence_s=about["silence_s"],
        journal=Path(about["journal"]) if about["journal"] else None,
        on_address=publish,
    )


async def _open(about: dict[str, Any], find: Find, inside: Inside) -> None:
    from cluster.gateway.process import serve_gateway
    from cluster.gateway.settings import GatewaySettings

    door = _door(about, about["port"])
    settings = GatewaySettings(
        about["name"],
        about["life"],
        door.host,
        door.port,
        about["http_port"],
        door.tls,
        door.tokens,
        doors=tuple((name, address) for name, address in about["doors"]),
    )
    await serve_gateway(settings, about["models"], str, find, lambda address: _tell(address=address), inside)


def _door(about: dict[str, Any], port: int) -> PublicPort:
    """For who knows the cluster's secret, where others could come in."""
    tls = _tls(about["tls"])
    if tls is None:
        return PublicPort("127.0.0.1", port)
    book = TokenBook((TokenEntry(digest_of(about["secret"]), LOCAL),))
    return PublicPort(about["host"], port, PortTls(tls.certificate, tls.key), book)


def _tell(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def _incarnation() -> int:
    return time.time_ns() // 1_000_000


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1:])
