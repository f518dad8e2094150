"""Something between two ends on this machine: passes bytes on, holds them back, cuts what it has."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from cluster.links.security import ClusterSecurity
from cluster.links.sockets import listen, local_name

_PIECE = 65536
_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Proxy(ABC):
    """Listens once it is started, and passes on to wherever `_far_end` leads."""

    def __init__(self) -> None:
        self.num_cut = 0
        self.flows = asyncio.Event()
        self.flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    @abstractmethod
    async def _far_end(self) -> _Ends: ...

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._far_end()
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(_PIECE):
                    await self.flows.wait()
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            finally:
                sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def cut(self) -> None:
        """Every connection breaks, with what is on its way."""
        for writer in self._writers:
            if not writer.is_closing():
                self.num_cut += 1
                writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()


class LinkProxy(_Proxy):
    """Between two ends of a link. It listens at `address`; `target` may change."""

    def __init__(self, target: str = "") -> None:
        super().__init__()
        self.target = target
        self.address = ""

    async def start(self) -> None:
        self.address, (listening,) = listen("127.0.0.1", ClusterSecurity("of no importance here"))
        self._server = await asyncio.start_unix_server(self._serve, sock=listening)

    async def _far_end(self) -> _Ends:
        return await asyncio.open_unix_connection(local_name(self.target))


class PortProxy(_Proxy):
    """Between a client and a public port. It listens at `port`."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _far_end(self) -> _Ends:
        return await asyncio.open_connection("127.0.0.1", self.target)
