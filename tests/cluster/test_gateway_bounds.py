"""The public door under what strangers send: too much, too many, too fast, nothing at all; others do not notice."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from cluster import SamplingParams
from cluster.client.asynchronous import AsyncClient
from cluster.gateway import bodies, health
from cluster.gateway.models import TextModel
from cluster.gateway.settings import GatewaySettings
from cluster.serving import connections
from cluster.serving.auth import Caller, TokenBook, TokenEntry, digest_of
from cluster.sim import model as sim_model
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, long_seed, tokenizer
from tests.cluster.raw_http2 import HEADERS, SETTINGS, RawClient

HERE = Path(__file__).parent
SERVICE = "/quire.v1.InferenceService"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MIB = 1 << 20
NUM_TOKENS = 200


# -- messages as nobody's library would write them


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, raw: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def generate(sampling: bytes = b"", prompt: bytes = field(1, b"aaa"), rest: bytes = b"") -> bytes:
    return field(3, prompt) + field(4, sampling) + rest


MUCH = 15 * MIB
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty chat messages": ("Generate", lambda: generate(prompt=field(3, b"\x0a\x00" * (MUCH // 2)))),
    "a role": ("Generate", lambda: generate(prompt=field(3, field(1, field(1, b"r" * MUCH) + field(2, b"x"))))),
    "an id": ("Generate", lambda: generate(rest=field(1, b"i" * MUCH))),
    "a model": ("Generate", lambda: generate(rest=field(2, b"m" * MUCH))),
    "banned runs": ("Generate", lambda: generate(b"\x6a\x03\x0a\x01\x05" * (MUCH // 5))),
    "one banned run": ("Generate", lambda: generate(field(13, field(1, b"\x05" * MUCH)))),
    "allowed ids": ("Generate", lambda: generate(field(11, field(1, b"\x05" * MUCH)))),
    "stop ids": ("Generate", lambda: generate(field(19, b"\x05" * MUCH))),
    "stop strings": ("Generate", lambda: generate(b"\x92\x01\x01a" * (MUCH // 4))),
    "biases": ("Generate", lambda: generate(b"\x52\x02\x08\x01" * (MUCH // 4))),
    "images": ("Generate", lambda: generate(rest=b"\x62\x00" * (MUCH // 2))),
    "choices": ("Generate", lambda: generate(rest=b"\x72\x01a" * (MUCH // 3))),
    "positions": ("Generate", lambda: generate(rest=field(1, b"r") + field(6, field(1, b"\x05" * MUCH)))),
    "token ids": ("Generate", lambda: generate(prompt=field(2, field(1, b"\x05" * MUCH)))),
    "token ids one by one": ("Generate", lambda: generate(prompt=field(2, b"\x08\x05" * (MUCH // 2)))),
    "a text": ("Tokenize", lambda: field(2, field(1, b"a b " * (MUCH // 4)))),
    "ids to be text": ("Detokenize", lambda: field(2, b"\x05" * MUCH)),
    "a prefix": (
        "CachePrefix",
        lambda: field(2, field(1, b"b a " * (MUCH // 4))) + b"\x19" + b"\x00" * 6 + b"\x59\x40",
    ),
    "not decodable": ("Generate", lambda: b"\xff" * MUCH),
}


def with_long_model(story: Any, max_model_len: int) -> None:
    """A gateway whose model takes so many tokens, so that its bodies are let in up to the gateway's own bound."""

    async def wrapped(door: Door) -> None:
        model = TextModel(
            "m",
            tokenizer(),
            vocab_size=sim_model.VOCAB_SIZE,
            max_model_len=max_model_len,
            defaults={"eos_token_id": 0},
        )
        door.gateway.catalogue.models["m"] = model
        await story(door)

    at_the_door(wrapped, timeout_s=150)


async def ask(channel: grpc.aio.Channel, method: str, raw: bytes) -> tuple[grpc.StatusCode, str]:
    """The end of a call with these bytes."""
    try:
        async for _ in channel.unary_stream(f"{SERVICE}/{method}")(raw, timeout=100):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@asynccontextmanager
async def standstill() -> AsyncIterator[list[float]]:
    """Seconds of processor time that this loop's thread took between two of its turns, at most."""
    longest = [0.0]

    async def tick() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.002)
            now = time.thread_time()
            longest[0] = max(longest[0], now - last)
            last = now

    task = asyncio.create_task(tick())
    try:
        yield longest
    finally:
        task.cancel()


async def stream_of(client: AsyncClient, seed: int) -> list[int]:
    got: list[int] = []
    async for news in client.stream(PROMPT, SamplingParams(seed=seed, max_tokens=NUM_TOKENS), model="m"):
        got += news.token_ids
    return got


@pytest.mark.timeout(180)
@pytest.mark.parametrize("max_model_len", [2_048, 1 << 20])
def test_no_message_stops_the_loop_and_each_is_its_senders_mistake(max_model_len: int) -> None:
    async def story(door: Door) -> None:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(door.address, options=options) as channel:
            # The first of each kind imports what it needs.
            for raw in (generate(), generate(prompt=field(3, field(1, field(1, b"user") + field(2, b"x"))))):
                await ask(channel, "Generate", raw)
            for name, (method, make) in HOSTILE.items():
                raw = make()
                async with standstill() as longest:
                    code, details = await ask(channel, method, raw)
                    await asyncio.sleep(0.01)
                wanted = [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED]
                # What fits a long model, and takes long: others are served meanwhile.
                wanted += [grpc.StatusCode.DEADLINE_EXCEEDED] if name in ("a text", "a prefix") else []
                assert code in wanted, f"{name}: {code} {details}"
                assert len(details) < 2_000, name
                print(f"{name}: {longest[0] * 1000:.0f} ms, {details[:100]}")
                assert longest[0] < 0.25, f"{name} stopped the loop for {longest[0]:.2f} s"
        assert await stream_of(door.client, seed := long_seed(PROMPT, NUM_TOKENS)) == expected(PROMPT, seed, NUM_TOKENS)
        await door.settled()

    with_long_model(story, max_model_len)


def resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // MIB


FLOOD = """
import asyncio, collections, sys
import grpc.aio
async def one(channel, method, raw):
    try:
        await channel.unary_unary(method)(raw, timeout=60)
        return "OK"
    except grpc.aio.AioRpcError as error:
        return error.code().name
async def main(address, method, num_calls, size):
    raw = b"x" * size
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(5)]
    print(dict(collections.Counter(
        await asyncio.gather(*(one(channels[at % 5], method, raw) for at in range(num_calls))))))
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


async def flood(address: str, method: str, num_calls: int, size: int) -> tuple[Counter[str], int]:
    """Calls of another process, all at once; how they ended, and by how much this process grew meanwhile."""
    before = most = resident_mib()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FLOOD, address, method, str(num_calls), str(size)), stdout=asyncio.subprocess.PIPE
    )
    told = asyncio.create_task(child.communicate())
    while not told.done():
        most = max(most, resident_mib())
        await asyncio.sleep(0.01)
    out, _ = told.result()
    return Counter(eval(out.decode(), {})), most - before


BOOK = TokenBook([TokenEntry(digest_of("secret"), Caller("t", frozenset({"inference"})))])


@pytest.mark.timeout(120)
def test_bodies_are_not_read_before_tokens_and_strangers_have_small_ones() -> None:
    async def story(door: Door) -> None:
        for method, size in ((f"{SERVICE}/Generate", 16 * MIB - 100), (f"{SERVICE}/Cancel", 16 * MIB - 100)):
            ends, grown = await flood(door.address, method, 60, size)
            assert ends == {"UNAUTHENTICATED": 60}
            assert grown < 150, f"{method}: the gateway grew by {grown} MiB"
        # Health takes no token: few of its bodies are read at once, and none is that long.
        ends, grown = await flood(door.address, "/grpc.health.v1.Health/Check", 60, 16 * MIB - 100)
        assert set(ends) <= {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"} and sum(ends.values()) == 60
        assert grown < 300, f"the gateway grew by {grown} MiB"
        # What is larger than any message may be is refused by its head.
        ends, grown = await flood(door.address, "/grpc.health.v1.Health/Check", 10, 100 * MIB)
        assert ends == {"RESOURCE_EXHAUSTED": 10} and grown < 100

    at_the_door(story, settings=GatewaySettings(port=0, tokens=BOOK), timeout_s=110)


@pytest.mark.timeout(120)
def test_who_has_a_token_can_make_it_hold_only_its_share() -> None:
    async def story(door: Door) -> None:
        ends, grown = await flood(door.address, f"{SERVICE}/Generate", 60, 15 * MIB)
        assert ends == {"INVALID_ARGUMENT": 60}
        assert grown < 2.5 * bodies.READING_BYTES // MIB, f"the gateway grew by {grown} MiB"

    with_long_model(story, 1 << 20)


@pytest.mark.timeout(60)
def test_a_call_whose_message_does_not_come_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.4)
    monkeypatch.setattr(bodies, "STRANGERS_BODY_S", 0.4)

    async def story(door: Door) -> None:
        client = await RawClient.connect(door.address)
        calls = {
            client.call(f"{SERVICE}/Generate"): b"",
            client.call("/grpc.health.v1.Health/Check"): b"",
            client.call(f"{SERVICE}/Tokenize"): b"half",
            client.call(REFLECTION): b"half",
        }
        for stream, raw in calls.items():
            if raw:
                client.send(stream, raw, ends=False, size=1_000)
        ended = set()
        while ended != set(calls):
            kind, _, stream, _ = await client.read()
            if kind == HEADERS:
                ended.add(stream)
        await client.close()

    at_the_door(story)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", [REFLECTION, "/grpc.health.v1.Health/Check"])
def test_strangers_whose_messages_do_not_come_take_no_place_from_others(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Each could be sent 16 MiB in parts, for as long as it lasts."""
    monkeypatch.setattr(bodies, "STRANGERS_BODY_S", 30.0)

    async def story(door: Door) -> None:
        clients = [await RawClient.connect(door.address, local=f"127.0.0.{at}") for at in range(2, 10)]
        calls = {(client, client.call(path)) for client in clients for _ in range(20)}
        ended = set()

        async def read(client: RawClient) -> None:
            while True:
                kind, _, stream, _ = await client.read()
                if kind == HEADERS:
                    ended.add((client, stream))

        reading = [asyncio.create_task(read(client)) for client in clients]
        await door.until(lambda: len(ended) >= len(calls) - 4 * bodies.STRANGERS)
        await HealthStub(door.channel).Check(health_pb2.HealthCheckRequest())
        assert len(ended) < len(calls)
        for task in reading:
            task.cancel()
        for client in clients:
            await client.close()

    at_the_door(story)


@pytest.mark.timeout(60)
def test_one_machine_cannot_take_all_places_of_those_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHERS", 20)

    async def story(door: Door) -> None:
        async def watch(client: RawClient, num_calls: int) -> Counter[str]:
            """Opens so many watches; says what came of all of this client's, and which still last."""
            for _ in range(num_calls):
                client.send(client.call("/grpc.health.v1.Health/Watch"), b"")
                await client.writer.drain()
            await asyncio.sleep(0.3)
            return Counter()

        other = await RawClient.connect(door.address, local="127.0.0.2")
        await watch(other, 1)
        many = await RawClient.connect(door.address)
        await watch(many, 60)
        watchers = door.server.health._watchers
        assert {machine.rpartition(":")[2]: len(each) for machine, each in watchers.items()} == {
            "127.0.0.2": 1,
            "127.0.0.1": 19,
        }
        # Its own newest calls are served, and others still get in.
        late = await RawClient.connect(door.address, local="127.0.0.3")
        await watch(late, 1)
        assert sum(map(len, watchers.values())) == 20 and len(watchers) == 3
        for client in (other, many, late):
            await client.close()
        await door.until(lambda: not watchers)

    at_the_door(story)


@pytest.mark.timeout(120)
def test_a_client_that_resets_its_calls_as_fast_as_it_can_cancels_nobody_elses() -> None:
    async def story(door: Door) -> None:
        command = (sys.executable, "-m", "tests.cluster.raw_http2", door.address, "6")
        floods = [await asyncio.create_subprocess_exec("nice", *command) for _ in range(2)]
        streams = []
        for seed in range(12):
            streams.append(asyncio.create_task(stream_of(door.client, long_seed(PROMPT, NUM_TOKENS, 1 + 97 * seed))))
            await asyncio.sleep(0.5)
        for seed, stream in enumerate(streams):
            got = await stream
            assert got == expected(PROMPT, long_seed(PROMPT, NUM_TOKENS, 1 + 97 * seed), NUM_TOKENS)
        for child in floods:
            assert await child.wait() == 0
        await door.settled()

    at_the_door(story, timeout_s=100)


@pytest.mark.timeout(60)
def test_a_machine_has_its_share_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "EVERY_S", 0.1)

    async def story(door: Door) -> None:
        going = asyncio.create_task(stream_of(door.client, seed := long_seed(PROMPT, NUM_TOKENS)))
        first = await RawClient.connect(door.address)
        await asyncio.sleep(0.5)
        later = [await RawClient.connect(door.address) for _ in range(30)]
        elsewhere = await RawClient.connect(door.address, local="127.0.0.2")
        await asyncio.sleep(1.0)
        closed = [client for client in later if await client.is_closed()]
        assert 20 <= len(closed) < 30
        assert not await first.is_closed() and not await elsewhere.is_closed()
        assert await going == expected(PROMPT, seed, NUM_TOKENS)
        for client in (first, elsewhere, *later):
            await client.close()

    at_the_door(story, settings=GatewaySettings(port=0, max_connections_per_machine=8))


def others() -> Iterator[int]:
    """Descriptors, until there is none."""
    with suppress(OSError):
        while True:
            yield os.open("/dev/null", os.O_RDONLY)


async def as_soon_as_there_is_room(address: str) -> RawClient:
    async with asyncio.timeout(10.0):
        while True:
            try:
                return await RawClient.connect(address, local="127.0.0.2")
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                await asyncio.sleep(0.05)


HOLD = """
import socket, sys, time
host, port = sys.argv[1].split(":")
sys.stdin.readline()
held = []
for _ in range(60):
    try:
        held.append(socket.create_connection((host, int(port)), timeout=1))
    except OSError:
        break
print(len(held), flush=True)
sys.stdin.readline()
"""


@pytest.mark.timeout(60)
def test_a_gateway_whose_descriptors_are_all_taken_gets_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for connections that are too many needs none to do so: its loop ended, and the gateway with it."""
    monkeypatch.setattr(connections, "EVERY_S", 0.3)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def story(door: Door) -> None:
        await door.client.wait_ready(5.0)
        # What is imported at a first request needs files.
        seed = long_seed(PROMPT, NUM_TOKENS)
        assert await stream_of(door.client, seed) == expected(PROMPT, seed, NUM_TOKENS)
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, door.address, **pipes)
        assert stranger.stdin is not None and stranger.stdout is not None
        # Exactly twenty are left: the limit is on their numbers, and some below it are free.
        most = max(int(name) for name in os.listdir("/proc/self/fd"))
        fillers = [os.open("/dev/null", os.O_RDONLY)]
        while fillers[-1] < most:
            fillers.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 21, before[1]))
        stranger.stdin.write(b"\n")
        assert int(await stranger.stdout.readline()) > 50
        going = asyncio.create_task(stream_of(door.client, seed))
        await asyncio.sleep(2.0)
        assert await going == expected(PROMPT, seed, NUM_TOKENS)
        # And if every single one is taken, by whomever.
        taken = list(others())
        await asyncio.sleep(1.0)
        for one in taken:
            os.close(one)
        # Another machine gets in. Its end takes a descriptor of this process too, and has to wait for one like all.
        # It stands behind the stranger's; gRPC that got no descriptor for one asks again a second later.
        elsewhere = await as_soon_as_there_is_room(door.address)
        kind, _, _, _ = await asyncio.wait_for(elsewhere.read(), 30.0)
        assert kind == SETTINGS
        assert not any(task.done() for task in door.server._tasks)
        stranger.kill()
        await stranger.wait()
        await elsewhere.close()
        for one in fillers:
            os.close(one)

    try:
        at_the_door(story, settings=GatewaySettings(port=0, max_connections_per_machine=8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_whoever_had_all_descriptors_for_a_moment_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was something else at the last look may be connections now; they stayed until the thirtieth look after."""
    monkeypatch.setattr(connections, "EVERY_S", 0.01)
    monkeypatch.setattr(connections, "LOOKS_EVERY", 1_000_000)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    with socket.create_server(("127.0.0.1", 0)) as server:
        bound = connections.ConnectionBound(server.getsockname()[1], most=4)
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(name) for name in os.listdir("/proc/self/fd")) + 40, before[1])
        )
        taken = list(others())
        try:
            bound.look()
            for _ in range(20):
                os.close(taken.pop())
            ends = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in range(10)]

            async def watch() -> None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(bound.watch(), 0.3)

            for _ in range(3):  # that a loop needs
                os.close(taken.pop())
            asyncio.run(watch())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for one in taken:
                os.close(one)
        assert bound.num_closed == 6
        for pair in ends:
            for end in pair:
                end.close()


def test_a_process_may_open_what_the_system_lets_it() -> None:
    code = (
        "import resource as r; from cluster.serving import connections as c; r.setrlimit(r.RLIMIT_NOFILE, (99, 999));"
        "assert c.share_of_descriptors(5000) == 24; c.take_descriptors(); print(r.getrlimit(r.RLIMIT_NOFILE));"
        "assert c.share_of_descriptors(5000) == 249 and c.share_of_descriptors(7) == 7"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"(999, 999)\n"


@pytest.mark.timeout(60)
def test_connections_are_bounded_in_all() -> None:
    async def story(door: Door) -> None:
        clients = [await RawClient.connect(door.address) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert sum([await client.is_closed() for client in clients]) >= 5
        for client in clients:
            await client.close()

    at_the_door(story, settings=GatewaySettings(port=0, max_connections=5))
