"""A client of the HTTP door as somebody writes one: it reads events, and goes on behind the last at any gateway.

Nothing of ours is in it but the request's body, so that what holds for the client of the gRPC door is seen to hold for
others too. A stream that breaks is asked for by its name with `Last-Event-ID` at another gateway; one that nobody knows
there is asked for with its body again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from cluster.sampling import SamplingParams

RETRY_S = 0.2
SILENT_S = 6.0
"""A stream that says nothing for so long is read elsewhere."""
GRACE_S = 30.0
"""How long a broken stream is asked for again."""
_NAMES = ("temperature", "top_p", "seed", "max_tokens", "ignore_eos", "beam_width", "logprobs")
_LATER = (404, 429, 503)
_BROKEN_OFF = ("abort", "error")


class LostStreamError(Exception):
    """What the door said for good."""


async def stream(
    addresses: Sequence[str], prompt: str | list[int], params: SamplingParams, random: Random, leaves: bool
) -> AsyncGenerator[tuple[int, list[int], int], None]:
    """(sequence, tokens, logprobs of them) as they come. `leaves`: now and then it goes elsewhere by itself."""
    name, body = secrets.token_hex(12), _body(params, prompt)
    at, last, broken_at = random.randrange(len(addresses)), "", 0.0
    asks_whole = True
    while True:
        events_left = random.randint(2, 60) if leaves and random.random() < 0.5 else 1 << 30
        said = "it broke"
        try:
            async for event_id, chunk in _events(addresses[at], name, body if asks_whole else None, last):
                # A door that answers has the request, however long it says nothing of it.
                broken_at = 0.0
                if not chunk:
                    if chunk is None:
                        return
                    continue
                last, asks_whole = event_id or last, False
                for choice in chunk["choices"]:
                    if choice["finish_reason"] in _BROKEN_OFF:
                        raise LostStreamError(
                            f"sequence {choice['index']} of {name} ended as {choice['finish_reason']}"
                        )
                    if choice.get("token_ids"):
                        given = choice.get("logprobs") or {}
                        yield choice["index"], choice["token_ids"], len(given.get("tokens") or ())
                events_left -= 1
                if events_left < 0:
                    broken_at = time.monotonic()
                    break
        except _Status as status:
            said = str(status)
            if status.code == 409 and asks_whole:
                # It got through the first time.
                asks_whole = False
            elif status.code == 404:
                asks_whole = True
            elif status.code not in _LATER:
                raise LostStreamError(said) from None
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            said = f"{type(error).__name__} {error}"
        broken_at = broken_at or time.monotonic()
        if time.monotonic() - broken_at > GRACE_S:
            raise LostStreamError(f"{said}, for {GRACE_S:g} s")
        at = (at + 1) % len(addresses)
        await asyncio.sleep(RETRY_S * random.random())


def _body(params: SamplingParams, prompt: str | list[int]) -> bytes:
    body: dict[str, Any] = {name: value for name in _NAMES if (value := getattr(params, name)) is not None}
    body |= {"model": "demo", "prompt": prompt, "n": params.n, "stream": True, "return_token_ids": True}
    body |= {"resume_grace_s": GRACE_S}
    structure = params.structured_outputs
    if structure is not None:
        body["structured_outputs"] = {structure.kind.replace("json_schema", "json"): structure.text}
    return json.dumps(body).encode()


class _Status(Exception):
    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"{code} {said}")
        self.code = code


async def _events(
    address: str, name: str, body: bytes | None, last: str
) -> AsyncGenerator[tuple[str, dict[str, Any] | None], None]:
    """("", {}) when a door has taken it, (id, chunk) of each event, ("", None) behind the last. Without a body it is
    asked for by its name alone."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port), limit=1 << 24), SILENT_S)
    try:
        path = "POST /v1/completions" if body is not None else f"GET /v1/requests/{name}/stream"
        head = [f"{path} HTTP/1.1", f"Host: {address}", f"X-Request-Id: {name}", "Connection: close"]
        head += [f"Last-Event-ID: {last}"] if last else []
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body is not None else []
        writer.write("\r\n".join([*head, "", ""]).encode() + (body or b""))
        await asyncio.wait_for(_check_status(reader), 2 * SILENT_S)
        yield "", {}
        event_id = ""
        async for line in _lines(reader):
            if line.startswith("id: "):
                event_id = line[4:]
            elif line == "data: [DONE]":
                yield "", None
                return
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    error = chunk["error"]
                    raise _Status(503 if error["type"] == "service_unavailable_error" else 500, error["message"])
                yield event_id, chunk
        raise EOFError("the stream ended before its end was said")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _check_status(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    code = int(head.split(" ", 2)[1])
    if code != 200:
        said = (await reader.read(4096)).decode(errors="replace")
        raise _Status(code, " ".join(said.split())[:300])


async def _lines(reader: asyncio.StreamReader) -> AsyncGenerator[str, None]:
    """Of a body in chunks."""
    held = b""
    while True:
        size = int((await asyncio.wait_for(reader.readline(), SILENT_S)).strip() or b"!", 16)
        if not size:
            return
        held += (await asyncio.wait_for(reader.readexactly(size + 2), SILENT_S))[:-2]
        *lines, held = held.split(b"\n")
        for line in lines:
            yield line.decode()
