"""What one tenant sends takes neither the loop from others nor their turn at what a gateway does for all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.errors import InvalidRequest, QueueFull
from cluster.gateway import confined, work
from cluster.gateway.door.unread import UnreadBounds
from cluster.gateway.http import asks
from cluster.gateway.http.generation import HeldAnswers
from cluster.gateway.intake import read_prompt
from cluster.gateway.models import TextModel
from cluster.gateway.settings import GatewaySettings
from cluster.gateway.templates import Conversation, Template, Templates
from cluster.gateway.work import Work
from cluster.serving.auth import Caller, TokenBook, TokenEntry, digest_of
from cluster.wire.values import MAX_DEPTH, MAX_PARTS, parsed
from protos.quire.v1 import inference_pb2 as pb
from tests.http.scripted import HERMES, QWEN, Stage, on_stage, text_model
from tests.http.test_http import post, raw

DEEP = [100, MAX_DEPTH + 1, 400, 600, 900, 3_000, 200_000]
WIDE = {
    "objects": '{"a": [' + "{}," * 1_000_000 + "{}]}",
    "keys": "{" + ",".join(f'"{at}":1' for at in range(400_000)) + "}",
    "numbers": '{"a": [' + "1," * 2_000_000 + "1]}",
    "strings": '{"a": [' + '"",' * 1_000_000 + '""]}',
    "behind a quote": '{"a\\\\": "\\"", "b": [' + "[]," * 1_000_000 + "[]]}",
}


def call(arguments: str) -> pb.Chat:
    """A conversation in which a tool was called so."""
    chat = pb.Chat()
    chat.messages.add(role="user", content="x")
    chat.messages.add(role="assistant").tool_calls.add(id="1", name="f", arguments=arguments)
    return chat


def many_calls(arguments: str) -> pb.Chat:
    """The same in many pieces, each of which is small."""
    chat = call("{}")
    for _ in range(400):
        chat.messages[1].tool_calls.add(id="1", name="f", arguments='{"a": [' + "{}," * 400 + "{}]}")
    return chat


def tool(parameters: str) -> pb.Chat:
    chat = pb.Chat(tools=[f'{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}'])
    chat.messages.add(role="user", content="x")
    return chat


def words(given: str) -> pb.Chat:
    chat = pb.Chat(template_args=f'{{"enable_thinking": {given}}}')
    chat.messages.add(role="user", content="x")
    return chat


PLACES: dict[str, Callable[[str], pb.Chat]] = {"call": call, "tool": tool, "words": words}


async def stopped_s(ask: Awaitable[Any]) -> float:
    """Ends with the client's error, or not; how long this thread worked for it at a stretch."""
    longest, last = 0.0, time.thread_time()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    try:
        await ask
    except InvalidRequest:
        pass
    await asyncio.sleep(0.005)
    ticking.cancel()
    return longest


def read(chats: dict[str, pb.Chat], template: str = QWEN) -> dict[str, float]:
    model, doing = text_model(template), Work()
    # Of a model whose prompts are long, so that nothing is refused for its length.
    model = TextModel("m", model.tokenizer, vocab_size=model.vocab_size, max_model_len=1 << 17, defaults=model.defaults)

    async def run() -> dict[str, float]:
        try:
            await read_prompt(pb.Prompt(chat=call("{}")), model, doing, "t")
            return {
                name: await stopped_s(read_prompt(pb.Prompt(chat=chat), model, doing, "t"))
                for name, chat in chats.items()
            }
        finally:
            await doing.close()

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("place", PLACES)
def test_json_of_any_depth_in_a_conversation_is_its_senders_mistake_or_good(place: str) -> None:
    read({f"{num}": PLACES[place]('{"a": ' + "[" * num + "]" * num + "}") for num in DEEP})


@pytest.mark.parametrize("place", PLACES)
def test_json_of_many_parts_in_a_conversation_stops_nobody(place: str) -> None:
    chats = {name: PLACES[place](wide) for name, wide in WIDE.items()}
    chats["many calls"] = many_calls("{}")
    for name, seconds in read(chats).items():
        assert seconds < 0.15, f"{name} stopped the loop for {seconds:.2f} s"


@pytest.mark.parametrize("name", WIDE)
def test_parts_are_counted_before_they_are_made(name: str) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match="give at most 100,000"):
        parsed("body", WIDE[name].encode())
    assert time.thread_time() - began < 0.1
    with pytest.raises(InvalidRequest, match="is no JSON"):
        # What is counted is what is read: in another code a quote would look otherwise.
        parsed("body", '{"a": 1}'.encode("utf-16"))


def alone_s(do: Callable[[], Any]) -> float:
    """Seconds of a processor that `do`, in a thread, took at a stretch while no other thread of Python's could run."""
    longest, last = 0.0, time.process_time()
    thread = threading.Thread(target=do)
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    return longest


@pytest.mark.parametrize("number", [b"1", b"1e99"])
def test_numbers_of_a_long_body_stop_nobody_while_a_thread_reads_them(number: bytes) -> None:
    """Threads share one lock: a body of 8 MB, read in one of them, stood in every stream's way for half a second."""
    raw = b'{"prompt": [' + b",".join([number] * ((8 << 20) // (len(number) + 1))) + b"]}"
    read = list[Any]()

    def ask() -> None:
        with contextlib.suppress(InvalidRequest):
            read.append(parsed("body", raw, len(raw)))
            read.append(asks.read("completion", read[0], "r"))

    assert alone_s(ask) < 0.15
    # Token ids, or refused as none.
    assert len(read) == (1 if b"e" in number else 2)


def test_what_a_text_says_is_no_part() -> None:
    said = '[{"a": "\\\\"}, {}, ]' * MAX_PARTS
    for value in ({"a": said}, {'b"': [said, {"c\\": [1.5, None, True]}]}, ["\\", '"', '\\"', "[" * MAX_PARTS]):
        assert parsed("body", json.dumps(value).encode()) == value
    assert len(parsed("body", json.dumps(list(range(200_000))).encode(), 200_000)) == 200_000


def test_long_work_of_tenants_goes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "NUM_THREADS", 1)
    order: list[str] = []

    def do(tenant: str) -> None:
        time.sleep(0.002)
        order.append(tenant)

    async def run() -> None:
        doing = Work()
        many = [asyncio.create_task(doing.run("a", 5_000, do, "a")) for _ in range(work.MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="this tenant's"):
            await doing.run("a", 5_000, do, "a")
        few = [asyncio.create_task(doing.run("b", 5_000, do, "b")) for _ in range(3)]
        await asyncio.gather(*few)
        assert order.count("a") <= 6, order
        # Who does not wait any more leaves no work behind, and its place is free.
        for task in many[10:]:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        assert order.count("a") <= 12
        await asyncio.gather(*(doing.run("a", 5_000, do, "a") for _ in range(work.MAX_WAITING)))
        await doing.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_tenant_with_too_large_pieces_leaves_room_to_others() -> None:
    async def run() -> None:
        doing = Work()
        first = asyncio.create_task(doing.run("a", work.MAX_WAITING_SIZE, time.sleep, 0.05))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="this tenant's"):
            await doing.run("a", 5_000, time.sleep, 0)
        await doing.run("b", 5_000, time.sleep, 0)
        await first
        with pytest.raises(ZeroDivisionError):
            await doing.run("a", 5_000, lambda: 1 // 0)
        await doing.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_conversations_of_one_tenant_fill_no_others_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as can wait in all, of one tenant."""
    template, said = Template(HERMES, {}), Conversation([{"role": "user", "content": "x"}])

    async def run() -> None:
        templates = Templates(20.0)
        many = [asyncio.create_task(templates.render("a", template, said, 1_000)) for _ in range(confined.MAX_WAITING)]
        await asyncio.sleep(0)
        assert "[user]x" in await templates.render("b", template, said, 1_000)
        ended = await asyncio.gather(*many, return_exceptions=True)
        assert sum(isinstance(one, str) for one in ended) == 64
        assert {type(one) for one in ended} == {str, QueueFull}
        await templates.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_whole_answers_of_one_tenant_leave_room_for_others() -> None:
    held = HeldAnswers(UnreadBounds(tenant=100, total=250))
    assert held.change("a", 0, 60) == 60
    with pytest.raises(QueueFull, match="this tenant's"):
        held.change("a", 0, 60)
    assert held.change("b", 0, 100) == 100
    held.change("a", 60, 0)
    assert held.change("a", 0, 100) == 100
    with pytest.raises(QueueFull, match="answers are kept here"):
        held.change("c", 0, 60)


@pytest.mark.parametrize("way", ["a length", "chunks", "chunks and a small length"])
def test_a_tenant_has_few_large_bodies_on_the_way_and_others_have_theirs(way: str) -> None:
    """16 bodies of one tenant that do not come whole: its next one waits, and another tenant's does not."""
    book = TokenBook(TokenEntry(digest_of(name * 20), Caller(name, frozenset(["inference"]))) for name in ("a", "b"))
    body = b'{"prompt": "x"' + b" " * 100_000 + b"}"

    def asked(tenant: str) -> bytes:
        whole = post("/tokenize", body, f"Authorization: Bearer {tenant * 20}")
        if way == "a length":
            return whole
        length, told = f"Content-Length: {len(body)}\r\n".encode(), b"Transfer-Encoding: chunked\r\n"
        told += b"Content-Length: 5\r\n" if way == "chunks and a small length" else b""
        return whole.replace(length, told).replace(body, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    end = b"}" if way == "a length" else b"\r\n0\r\n\r\n"

    async def story(stage: Stage, client: Any) -> None:
        port = int(client.base_url.port)
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
        for _, writer in slow:
            writer.write(asked("a")[: -len(end)])
        await asyncio.sleep(0.2)
        waits = asyncio.create_task(raw(port, asked("a")))
        assert (await raw(port, asked("b"))).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.2)
        assert not waits.done()
        slow[0][1].write(end)
        assert (await waits).startswith(b"HTTP/1.1 200")
        for _, writer in slow:
            writer.close()

    on_stage(HERMES, story, settings=GatewaySettings(port=0, tokens=book))
