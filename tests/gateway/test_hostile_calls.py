"""Whatever a client sends to the gRPC doors is answered with a status that says whose mistake it is: never INTERNAL or
UNKNOWN. Every message of both services comes with every field at its edges or bytes changed; `--trust` sends 20,000.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from random import Random

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cluster.gateway.door.check import check as check_door
from cluster.serving.public_port import PublicPort
from protos.quire.v1 import admin_pb2, inference_pb2
from tests.cluster.doors import serving
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, long_seed
from tests.cluster.test_gateway_bounds import NUM_TOKENS, stream_of
from tests.links.drawn import changed, drawn

OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
CALL_S = 0.5
AT_ONCE = 16


def asked(method: MethodDescriptor, random: Random) -> bytes:
    """What no honest client sends, or one that asks for something that is served."""
    message = drawn(GetMessageClass(method.input_type), random)
    for part in (message, getattr(message, "generate", None)):
        _mend(part, random)
    raw = message.SerializeToString()
    return changed(raw, random) if random.random() < 0.2 else raw


def _mend(message: Message | None, random: Random) -> None:
    """Most of what is drawn would be refused at the first look."""
    if message is None or "model" not in message.DESCRIPTOR.fields_by_name or random.random() < 0.2:
        return
    message.model = "m"  # type: ignore[attr-defined]
    for name in ("lora", "images", "json_schema", "regex", "grammar", "choice", "resume"):
        if name in message.DESCRIPTOR.fields_by_name and random.random() < 0.8:
            message.ClearField(name)


async def call(
    channel: grpc.aio.Channel, service: ServiceDescriptor, method: MethodDescriptor, raws: list[bytes]
) -> grpc.StatusCode:
    async def messages() -> AsyncIterator[bytes]:
        for raw in raws:
            yield raw

    path, kind = f"/{service.full_name}/{method.name}", GetMessageClass(method.output_type)
    asking = channel.stream_stream(path)(messages(), timeout=CALL_S)
    try:
        async for raw in asking:
            if kind is inference_pb2.GenerateManyResponse:
                for one in kind.FromString(raw).responses:
                    assert one.failed.code not in {code.value[0] for code in OURS}, f"{one.failed}: {raws!r}"
    except grpc.aio.AioRpcError:
        pass
    code, details = await asking.code(), await asking.details()
    assert code not in OURS, f"{path} {code} {details}: {raws!r}"
    assert len(details or "") < 2_000
    return code


async def fuzz(address: str, service: ServiceDescriptor, seed: int, num: int) -> Counter[grpc.StatusCode]:
    random, counts, at_once = Random(f"calls/{seed}"), Counter[grpc.StatusCode](), asyncio.Semaphore(AT_ONCE)

    async def one(method: MethodDescriptor, raws: list[bytes]) -> None:
        async with at_once:
            counts[await call(channel, service, method, raws)] += 1

    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(max(1, num // len(service.methods) // 32)):
            async with asyncio.TaskGroup() as tasks:
                for method in service.methods:
                    for _ in range(32):
                        many = random.randrange(4) if method.client_streaming else 1
                        tasks.create_task(one(method, [asked(method, random) for _ in range(many)]))
    return counts


def fuzz_both(seed: int, num: int) -> None:
    async def story(door: Door) -> None:
        service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
        counts = await fuzz(door.address, service, seed, num)
        print(f"at the front {dict(counts)}")
        assert counts[grpc.StatusCode.OK] and counts[grpc.StatusCode.INVALID_ARGUMENT]
        goes_on = await stream_of(door.client, known := long_seed(PROMPT, NUM_TOKENS))
        assert goes_on == expected(PROMPT, known, NUM_TOKENS)
        await door.settled(60.0)
        check_door(door.gateway.door)
        with serving(PublicPort("127.0.0.1", 0)) as addresses:
            counts = await fuzz(addresses.admin, admin_pb2.DESCRIPTOR.services_by_name["AdminService"], seed, num // 4)
            print(f"for operators {dict(counts)}")
            assert counts[grpc.StatusCode.OK]

    at_the_door(story, timeout_s=1_500.0)


@pytest.mark.timeout(120)
def test_no_call_of_a_client_is_a_mistake_of_ours(seed: int) -> None:
    fuzz_both(seed, 1_024)


@pytest.mark.trust
@pytest.mark.timeout(1_600)
def test_twenty_thousand_calls(seed: int) -> None:
    fuzz_both(seed, 20_000)
