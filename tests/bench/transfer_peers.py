"""What `transfer.py` holds our carriers against: plain copies, a gRPC byte stream, Ray's object store.

Each peer moves the same scattered blocks as often as it is called. The gRPC server runs in a process of its own, as a
host pool does, so that both ends have a processor if there are two.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import grpc
import numpy as np
import numpy.typing as npt

from cluster.register.states import Sums
from worker.transfer.checksum import Addresses, checksummer

Pool = npt.NDArray[np.uint8]
MESSAGE_BYTES = 1 << 20
_PIECE_BYTES = 256 << 10
_METHOD = "/quire.bench/Take"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def memcpy(targets: Addresses, sources: Addresses, size: int) -> Callable[[], None]:
    """The C library's copy, a call per block."""
    copy = ctypes.CDLL(None).memcpy
    copy.argtypes, copy.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_void_p
    pairs = list(zip(targets.tolist(), sources.tolist(), strict=True))

    def run() -> None:
        for target, source in pairs:
            copy(target, source, size)

    return run


def fused(targets: Addresses, sources: Addresses, size: int) -> Callable[[], Sums]:
    """The same with a CRC32C of each block, in one pass over memory, as transfers do it."""
    lengths = np.full(len(sources), size, np.int64)
    return lambda: checksummer().copy_many(targets, sources, lengths)


def inline(targets: Addresses, sources: Addresses, size: int) -> Callable[[], None]:
    """The same with a CRC32C behind it: a piece is copied and then summed while the cache still has it."""
    copy, sums = ctypes.CDLL(None).memcpy, checksummer().checksum
    copy.argtypes, copy.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_void_p
    pairs = list(zip(targets.tolist(), sources.tolist(), strict=True))
    piece = min(size, _PIECE_BYTES)

    def run() -> None:
        for target, source in pairs:
            for offset in range(0, size, piece):
                copy(target + offset, source + offset, piece)
                sums(source + offset, piece)

    return run


class ByteStream:
    """A gRPC client that streams bytes to a server which counts them, and nothing else."""

    def __init__(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve_bytes, args=(theirs,), daemon=True)
        self._process.start()
        if not ours.poll(60):
            raise RuntimeError("the gRPC server of the comparison did not start within 60 s")
        self._ours = ours
        self.pid = self._process.pid or 0
        self._channel = grpc.insecure_channel(f"127.0.0.1:{ours.recv()}", options=_OPTIONS)
        self._take = self._channel.stream_unary(_METHOD, _same, _same)

    def run(self, source: Pool) -> Callable[[], None]:
        """Sends the blocks of `source`, in messages of 1 MiB or a block, whichever is larger, made beforehand."""
        flat = source.reshape(-1)
        step = max(MESSAGE_BYTES, source.shape[1])
        messages = [flat[at : at + step].tobytes() for at in range(0, len(flat), step)]

        def send() -> None:
            taken = int(self._take(iter(messages), timeout=60))
            assert taken == len(flat), (taken, len(flat))

        return send

    def close(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.join()


def _same(message: bytes) -> bytes:
    return message


def _serve_bytes(pipe: Connection) -> None:
    def take(messages: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        return str(sum(len(message) for message in messages)).encode()

    server = grpc.server(ThreadPoolExecutor(2), options=_OPTIONS)
    handlers = {"Take": grpc.stream_unary_rpc_method_handler(take, _same, _same)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("quire.bench", handlers)])
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


class ObjectStore:
    """`ray.put` and `ray.get` of each block, and a copy to its place. Raises what Ray raises if it cannot start."""

    def __init__(self, size_bytes: int) -> None:
        import ray

        self._ray = ray
        ray.init(
            "local",  # never a cluster that happens to run here
            num_cpus=1,
            object_store_memory=max(128 << 20, 3 * size_bytes),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def run(self, target: Pool, source: Pool) -> Callable[[], None]:
        ray = self._ray

        def pass_on() -> None:
            for place in range(len(source)):
                target[place] = ray.get(ray.put(source[place]))

        return pass_on

    def close(self) -> None:
        self._ray.shutdown()
