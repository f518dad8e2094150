"""A front door on loopback for the tests of gateway and client: real gRPC, real scheduler, simulated workers."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cluster.client.asynchronous import AsyncClient
from cluster.gateway.gateway import Gateway
from cluster.gateway.models import TextModel
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.settings import SchedulerSettings
from cluster.sim import model as sim_model
from cluster.sim.worker import WorkerShape
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.live import SHAPE, LiveCluster

PROMPT = [5, 17, 300, 41, 9, 2000, 77]


def word(token: int) -> str:
    """300 is "wdaa": letters alone, because the tokenizer parts letters from digits."""
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in str(token))


@functools.lru_cache
def tokenizer() -> Any:
    """As many tokens as simulated workers draw from: 256 single bytes, then words. Token 0 is the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: at for at, letter in enumerate(alphabet, 1)}}
    for at in range(len(vocabulary), sim_model.VOCAB_SIZE):
        vocabulary["Ġ" + word(at)] = at
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}wjjj{% endif %}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)


@functools.lru_cache
def text_model() -> TextModel:
    return TextModel(
        "m", tokenizer(), vocab_size=sim_model.VOCAB_SIZE, max_model_len=2048, defaults={"eos_token_id": 0}
    )


def expected(prompt: Sequence[int], seed: int, max_tokens: int, index: int = 0, *, ends: bool = True) -> list[int]:
    """What the simulated model must say: it is followed token by token from the prompt. Not `ends`: with ignore_eos."""
    outputs: list[int] = []
    before, read = sim_model.before_first("m"), 0
    for token in prompt:
        before = sim_model.slot_value(before, token)
        read = sim_model.crc32(before.to_bytes(sim_model.SLOT_BYTES, "little"), read)
    while len(outputs) < max_tokens:
        token = sim_model.draw(read, seed, index, len(prompt) - 1 + len(outputs), SHAPE.end_one_in)
        outputs.append(token)
        if ends and token == sim_model.END_TOKEN:
            break
        before = sim_model.slot_value(before, token)
        read = sim_model.crc32(before.to_bytes(sim_model.SLOT_BYTES, "little"), read)
    return outputs


def long_seed(prompt: Sequence[int], num_tokens: int, first: int = 1) -> int:
    """A seed with which the model does not end within so many tokens."""
    for seed in range(first, first + 100_000):
        if len(expected(prompt, seed, num_tokens)) == num_tokens:
            return seed
    raise AssertionError(f"no seed goes on for {num_tokens} tokens")


@dataclass
class Door:
    """Everything that is running."""

    cluster: LiveCluster
    server: GatewayServer
    client: AsyncClient
    channel: grpc.aio.Channel

    @property
    def gateway(self) -> Gateway:
        return self.server.gateway

    @property
    def stub(self) -> InferenceServiceAsyncStub:
        return InferenceServiceAsyncStub(self.channel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def settled(self, timeout_s: float = 5.0) -> None:
        """Waits until nothing is under way anywhere, and proves the ledgers."""
        async with asyncio.timeout(timeout_s):
            while self.gateway.num_open or self.cluster.host.scheduler.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        self.cluster.host.scheduler.check()

    async def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


Story = Callable[[Door], Awaitable[None]]


def at_the_door(
    story: Story,
    *,
    settings: GatewaySettings | None = None,
    scheduler: SchedulerSettings | None = None,
    shapes: Sequence[WorkerShape] = (SHAPE,),
    timeout_s: float = 30.0,
) -> None:
    """Opens a door, lets the story happen, and closes everything, also when it fails."""

    async def run() -> None:
        cluster = LiveCluster(scheduler)
        for number, shape in enumerate(shapes):
            cluster.add_worker(f"r{number}", shape)
        server = await open_server(cluster, settings or GatewaySettings(port=0))
        client = AsyncClient(f"127.0.0.1:{server.port}")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        try:
            await story(Door(cluster, server, client, channel))
        finally:
            await client.close()
            await channel.close(None)
            await server.stop(0.2)
            await cluster.close()

    asyncio.run(asyncio.wait_for(run(), timeout_s))


async def open_server(cluster: LiveCluster, settings: GatewaySettings) -> GatewayServer:
    gateway = Gateway(settings, cluster.link(settings.name), {"m": text_model()})
    cluster.feeds[settings.name] = gateway.feed
    server = GatewayServer(gateway)
    await server.start()
    await asyncio.sleep(0)
    return server


def slow(step_s: float = 0.02, **changes: Any) -> WorkerShape:
    return replace(SHAPE, step_base_s=step_s, **changes)
