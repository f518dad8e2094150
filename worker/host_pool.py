"""A node's host pool: memory that blocks are swapped to, shared with the workers of the node and served to other nodes.

One process per node runs it (`python -m worker.host_pool`, or in an actor); it needs no GPU and no torch, and outlives
workers and scheduler. It owns the bytes and the states of their transfers; which block is whose is the ledger of the
scheduler, which can have everything listed after its own death. Nothing is left of it when it is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.errors import ConfigError, QuireError
from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.messages import HostPoolJoined, HostPoolSettled
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import layout_of
from cluster.sizes import format_bytes, parse_bytes
from worker.transfer.bytes import HostBytes
from worker.transfer.copy import Copier
from worker.transfer.end import PoolEnd
from worker.transfer.memory import SharedMemory
from worker.transfer.server import Listening, TransferServer

_MEASURED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class HostPoolSettings:
    """What a host pool is. `size` is an amount of memory ("8GiB"); blocks are those of the workers' device pools."""

    name: str
    node: str
    size: int | str
    block_bytes: int
    fingerprint: str
    # Higher with each start. None: the time of the start in milliseconds.
    incarnation: int | None = None
    listening: Listening = field(default_factory=Listening)
    register: RegisterSettings = field(default_factory=RegisterSettings)

    @property
    def num_blocks(self) -> int:
        if self.block_bytes < 64 or self.block_bytes % 64:
            raise ConfigError(f"blocks of {self.block_bytes} bytes: a pool's blocks have a multiple of 64 bytes")
        size = parse_bytes(self.size, "the host pool's memory")
        if size < self.block_bytes:
            raise ConfigError(
                f"the host pool's memory of {format_bytes(size)} holds no block of {format_bytes(self.block_bytes)}; "
                f"give {format_bytes(self.block_bytes)} or more"
            )
        return min(size // self.block_bytes, 2**31 - 1)


class HostPoolServer:
    """Serves from when it is made until `close`."""

    def __init__(self, settings: HostPoolSettings, security: ClusterSecurity) -> None:
        self.settings = settings
        self.num_blocks = settings.num_blocks
        self.incarnation = time.time_ns() // 1_000_000 if settings.incarnation is None else settings.incarnation
        layout = layout_of(settings.fingerprint, settings.block_bytes)
        self._memory = SharedMemory.create(f"quire-{settings.name}", self.num_blocks * settings.block_bytes)
        self._memory.populate()
        self._copier = Copier()
        pool = HostBytes(layout, self.num_blocks, self._memory.address, self._copier, shared=self._memory)
        self.bytes_per_s = self._measure(pool)
        register = Register(layout, self.num_blocks, self.incarnation, settings.register, own_content=False)
        self.end = PoolEnd(settings.name, register, pool)
        self._server = TransferServer(self.end, security, settings.listening)

    @property
    def address(self) -> str:
        """Of its transfer service."""
        return self._server.address

    def joined(self) -> HostPoolJoined:
        settings = self.settings
        return HostPoolJoined(
            pool=settings.name,
            incarnation=self.incarnation,
            node=settings.node,
            num_blocks=self.num_blocks,
            block_bytes=settings.block_bytes,
            fingerprint=settings.fingerprint,
            bytes_per_s=self.bytes_per_s,
        )

    def give_up(self, epoch: int, transfers: Sequence[int]) -> None:
        """The scheduler wants nothing of these, also if they never came here: it hears when each is settled."""
        for transfer in transfers:
            self.end.give_up(epoch, transfer)

    def take_settled(self) -> list[HostPoolSettled]:
        """Transfers, since the last call, that can no longer touch the pool: for the scheduler."""
        return [HostPoolSettled(self.settings.name, self.incarnation, number) for number in self.end.take_settled()]

    def close(self) -> None:
        self._server.close()
        self._copier.close()
        self._memory.close()

    def _measure(self, pool: HostBytes) -> float:
        """Bytes per second of a checked copy inside the pool's memory, which is empty yet."""
        half = min(self.num_blocks // 2, max(1, _MEASURED_BYTES // self.settings.block_bytes))
        if half == 0:
            return 0.0
        blocks = np.arange(half, dtype=np.int32)
        rows = pool.rows(blocks + half, write=True).addresses
        began = time.perf_counter()
        pool.copy_out(blocks, rows, None)
        return half * self.settings.block_bytes / (time.perf_counter() - began)


def main(argv: list[str] | None = None) -> int:
    """Runs a host pool until SIGTERM or SIGINT; prints one line of JSON once it can be reached."""
    options = parse(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        pool = start(options)
    except (QuireError, OSError) as error:
        print(f"host pool {options.name}: {error}", file=sys.stderr)
        return 1
    if options.stop_with_input:
        # The process that started this one has ended, or wants it to.
        threading.Thread(target=_stop_with_input, args=(stop,), daemon=True).start()
    stop.wait()
    pool.close()
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.host_pool", description="Serve a node's host pool.")
    parser.add_argument("--name", required=True, help="how the scheduler calls this pool")
    parser.add_argument("--node", required=True, help="name of this node")
    parser.add_argument("--size", required=True, help='memory of the pool, such as "8GiB"')
    parser.add_argument("--block-bytes", type=int, required=True, help="bytes of a block, those of the device pools")
    parser.add_argument("--fingerprint", required=True, help="of the block layout of the device pools")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port of the transfer service; 0: any")
    parser.add_argument("--data-port", type=int, default=0, help="port of the data socket; 0: any, -1: none")
    parser.add_argument("--advertised-port", type=int, default=0, help="the one that peers are told; 0: the same")
    parser.add_argument("--advertised-data-port", type=int, default=0, help="the one that peers are told; 0: the same")
    parser.add_argument("--incarnation", type=int, help="higher with each start; default: the time")
    parser.add_argument(
        "--idle", type=float, default=10.0, help="seconds of silence after which a transfer is given up"
    )
    parser.add_argument("--secret-file", type=Path, required=True, help="file with the secret of the cluster's pools")
    parser.add_argument("--tls", nargs=3, type=Path, metavar=("CERTIFICATE", "KEY", "AUTHORITY"), help="PEM files")
    parser.add_argument("--stop-with-input", action="store_true", help="end when standard input is closed")
    return parser.parse_args(argv)


def start(options: argparse.Namespace) -> HostPoolServer:
    """The pool that the options name; prints its line. Raises QuireError, OSError."""
    tls = TlsFiles(*options.tls) if options.tls else None
    security = ClusterSecurity(options.secret_file.read_text().strip(), tls)
    settings = HostPoolSettings(
        name=options.name,
        node=options.node,
        size=options.size,
        block_bytes=options.block_bytes,
        fingerprint=options.fingerprint,
        incarnation=options.incarnation,
        listening=Listening(
            options.host,
            options.port,
            None if options.data_port < 0 else options.data_port,
            options.advertised_port,
            options.advertised_data_port,
        ),
        register=RegisterSettings(idle_s=options.idle),
    )
    pool = HostPoolServer(settings, security)
    joined = {name: getattr(pool.joined(), name) for name in HostPoolJoined.__slots__}
    print(json.dumps({"address": pool.address, **joined}), flush=True)
    return pool


def _stop_with_input(stop: threading.Event) -> None:
    # Not through Python's buffer: its lock would be held when the interpreter ends for another reason.
    while os.read(0, 4096):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
