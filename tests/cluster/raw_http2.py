"""Frames of HTTP/2 by hand, for what no gRPC client would do: floods of resets, bodies that never end, silence."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import time

from protos.quire.v1 import inference_pb2 as pb

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
CANCEL = 8


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._stream = -1

    @classmethod
    async def connect(cls, address: str, local: str = "127.0.0.1") -> RawClient:
        """`local`: where it seems to come from; every address of 127.0.0.0/8 is ours."""
        host, _, port = address.rpartition(":")
        client = cls(*await asyncio.open_connection(host, int(port), local_addr=(local, 0)))
        client.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
        return client

    def call(self, path: str, headers: dict[str, str] | None = None) -> int:
        """Begins a call; returns its stream."""
        self._stream += 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
            **(headers or {}),
        }
        block = b"".join(_literal(name) + _text(value) for name, value in fields.items())
        self.writer.write(frame(HEADERS, END_HEADERS, self._stream, block))
        return self._stream

    def send(self, stream: int, raw: bytes, *, ends: bool = True, size: int | None = None) -> None:
        """A message, or its beginning: `size` is what its head says."""
        body = struct.pack(">BI", 0, len(raw) if size is None else size) + raw
        for at in range(0, len(body), 16_384):
            last = at + 16_384 >= len(body)
            self.writer.write(frame(DATA, END_STREAM if ends and last else 0, stream, body[at : at + 16_384]))

    def reset(self, stream: int) -> None:
        self.writer.write(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    async def read(self) -> tuple[int, int, int, bytes]:
        """The next frame: kind, flags, stream, payload. EOFError when the server has closed."""
        head = await self.reader.readexactly(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        return kind, flags, stream, await self.reader.readexactly(size)

    async def is_closed(self) -> bool:
        """Whether the server has ended it; reads what had come."""
        try:
            async with asyncio.timeout(0.1):
                while True:
                    await self.read()
        except TimeoutError:
            return False
        except (EOFError, OSError):
            return True

    async def close(self) -> None:
        self.writer.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str) -> bytes:
    """A header by its name, not to be remembered."""
    return b"\x00" + _text(name)


def _text(value: str) -> bytes:
    raw = value.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw


async def flood_with_resets(address: str, seconds: float) -> None:
    """Begins calls and takes each back at once, until the server ends the connection if it does."""
    client, until = await RawClient.connect(address), time.monotonic() + seconds
    message = pb.GenerateRequest(model="m", prompt=pb.Prompt(text="aaa"))
    message.sampling.max_tokens = 500
    raw = message.SerializeToString()

    async def read() -> None:
        while True:
            await client.read()

    reading = asyncio.create_task(read())
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < until and not reading.done():
            for _ in range(200):
                stream = client.call("/quire.v1.InferenceService/Generate")
                client.send(stream, raw)
                client.reset(stream)
            await client.writer.drain()
    reading.cancel()


if __name__ == "__main__":
    asyncio.run(flood_with_resets(sys.argv[1], float(sys.argv[2])))
