"""Clients that come back through another gateway, over real streams to scheduler and workers: nothing lost, whoever
believed what, and no message of theirs ends a process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc.aio
import pytest

from cluster.errors import Aborted, InvalidRequest, NotFound, Unavailable
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.gateway.front_tokens import TokenIntake
from cluster.gateway.gateway import Gateway
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.serving.inside import Inside
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.front_door import PROMPT, expected, text_model, tokenizer
from tests.cluster.test_front import SECURITY, Wired, wired
from tests.cluster.test_gateway import chunks, collect, raised, request
from tests.cluster.test_gateway_endings import read_tokens


@dataclass
class Two:
    """A cluster with two gateways."""

    one: Wired
    gateways: list[Gateway]
    stubs: list[InferenceServiceAsyncStub]

    async def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """What a gateway said last may be lost with its session; then the scheduler waits for its clients' grace."""
        scheduler = self.one.cluster.host.scheduler
        try:
            await self.until(lambda: not any(gateway.num_open for gateway in self.gateways), 20.0)
            await self.until(lambda: not scheduler.requests and not scheduler.unclosed, 20.0)
        except TimeoutError:
            open_here = [[one.request_id for one in gateway._answers.values()] for gateway in self.gateways]
            left = [*scheduler.requests.values(), *scheduler.unclosed.values()]
            raise AssertionError(f"gateways hold {open_here}, the scheduler {left}") from None
        scheduler.check()


@contextlib.asynccontextmanager
async def two_gateways(step_s: float = 0.02) -> AsyncIterator[Two]:
    async with wired(2, step_s) as one, contextlib.AsyncExitStack() as stack:

        async def find() -> str:
            return one.scheduler_proxy.address

        def feed(tokens) -> None:
            gateway.feed(tokens)

        intake = TokenIntake("gateway-1", 1, feed)
        address = await intake.listen(Inside("127.0.0.1", SECURITY))
        link = FrontLink(LinkSettings("gateway-1", 1, address, find, SECURITY))
        gateway = Gateway(GatewaySettings(name="gateway-1", port=0), link, {"m": text_model()})
        server = GatewayServer(gateway)
        await server.start()
        stack.callback(intake.close)
        stack.push_async_callback(server.stop, 0.1)
        for pusher in one.pushers.values():
            pusher.direct({"gateway-0": one.token_proxy.address, "gateway-1": address})
        stubs = []
        for port in (one.port, server.port):
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
            stack.push_async_callback(channel.close, None)
            stubs.append(InferenceServiceAsyncStub(channel))
        two = Two(one, [one.gateway, gateway], stubs)
        await two.until(lambda: gateway.is_connected and bool(gateway.catalogue.served))
        yield two


def at_two_doors(story: Callable[[Two], Awaitable[None]], **how: float) -> None:
    async def run() -> None:
        async with two_gateways(**how) as two:
            await story(two)

    asyncio.run(asyncio.wait_for(run(), 60))


def resumed(message: pb.GenerateRequest, *positions: int) -> pb.GenerateRequest:
    again = pb.GenerateRequest()
    again.CopyFrom(message)
    again.resume.positions.extend(positions)
    return again


def ids_of(responses) -> list[int]:
    return [token for chunk in chunks(responses) for token in chunk.ids]


@pytest.mark.parametrize("gateway", [0, 1])
def test_a_resume_with_other_parameters_is_refused_by_name_and_harms_nobody(gateway: int):
    async def story(two: Two) -> None:
        message = request(seed=1, max_tokens=60, ignore_eos=True, request_id="q", resume_grace_s=5.0)
        call = two.stubs[0].Generate(message)
        got = await read_tokens(call, 3)
        for change, positions in (
            ({"n": 2}, [0, 0]),
            ({"temperature": 0.25}, [0]),
            ({"max_tokens": 61}, [0]),
            ({"seed": 2}, [0]),
            ({"priority": 3}, [0]),
        ):
            other = resumed(message, *positions)
            (name, value), *_ = change.items()
            setattr(other if name == "priority" else other.sampling, name, value)
            with pytest.raises(InvalidRequest) as caught:
                await raised(two.stubs[gateway].Generate(other))
            assert caught.value.field.removeprefix("sampling.") == name
        other = resumed(message, 0)
        other.prompt.token_ids.ids.append(8)
        with pytest.raises(InvalidRequest, match="other tokens"):
            await raised(two.stubs[gateway].Generate(other))
        got += ids_of(await collect(call))
        assert got == expected(PROMPT, 1, 60, ends=False)
        await two.settled()

    at_two_doors(story)


def test_a_request_lives_on_with_the_gateway_that_its_client_came_back_to():
    """The first gateway lives: its client's connection broke there, and its grace ends while the second one streams."""

    async def story(two: Two) -> None:
        message = request(seed=1, max_tokens=90, ignore_eos=True, request_id="q", resume_grace_s=0.3)
        first = two.stubs[0].Generate(message)
        got = await read_tokens(first, 3)
        second = two.stubs[1].Generate(resumed(message, len(got)))
        got += await read_tokens(second, 3)
        first.cancel()
        got += ids_of(await collect(second))
        assert got == expected(PROMPT, 1, 90, ends=False)
        await two.settled()
        assert not two.gateways[0]._answers

    at_two_doors(story)


def test_a_client_goes_from_one_gateway_to_the_other_and_back():
    async def story(two: Two) -> None:
        message = request(seed=1, max_tokens=150, ignore_eos=True, request_id="q", resume_grace_s=5.0)
        call = two.stubs[0].Generate(message)
        got = await read_tokens(call, 2)
        for gateway in (1, 0, 1, 1, 0, 0, 1, 0):
            before = call
            call = two.stubs[gateway].Generate(resumed(message, len(got)))
            got += await read_tokens(call, 2)
            with contextlib.suppress(Aborted, Unavailable):
                await asyncio.wait_for(raised(before), 5.0)
        got += ids_of(await collect(call))
        assert got == expected(PROMPT, 1, 150, ends=False)
        await two.settled()

    at_two_doors(story)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_new_scheduler_hears_of_the_gateway_that_took_over(when: str):
    """The scheduler dies before or after a client has changed gateways; both gateways live and tell what they hold."""

    async def story(two: Two) -> None:
        message = request(seed=1, max_tokens=120, ignore_eos=True, request_id="q", resume_grace_s=0.5)
        first = two.stubs[0].Generate(message)
        got = await read_tokens(first, 2)
        second = None
        if when == "after":
            second = two.stubs[1].Generate(resumed(message, len(got)))
            got += await read_tokens(second, 2)
        await two.one.cluster.replace_scheduler()
        first.cancel()
        if second is None:
            # Asked while the scheduler is away.
            second = two.stubs[1].Generate(resumed(message, len(got)))
        await asyncio.sleep(0.1)
        await two.one.meet_scheduler()
        got += ids_of(await collect(second))
        assert got == expected(PROMPT, 1, 120, ends=False)
        await two.settled()

    at_two_doors(story)


def test_a_resume_outlives_gateway_and_scheduler():
    """Both die at once. A worker alone knows the request, and not whose it is."""

    async def story(two: Two) -> None:
        message = request(seed=1, max_tokens=120, ignore_eos=True, request_id="q", resume_grace_s=5.0)
        first = two.stubs[0].Generate(message)
        got = await read_tokens(first, 2)
        # The first gateway is heard no more by anybody.
        two.one.gateway._link.send = lambda event: None  # type: ignore[method-assign]
        two.one.token_proxy.cut()
        two.one.token_proxy.flows.clear()
        await two.one.cluster.replace_scheduler()
        second = two.stubs[1].Generate(resumed(message, len(got)))
        await two.one.meet_scheduler()
        got += ids_of(await asyncio.wait_for(collect(second), 20))
        assert got == expected(PROMPT, 1, 120, ends=False)
        two.one.token_proxy.flows.set()

    at_two_doors(story)


def test_what_nobody_knows_is_not_found():
    async def story(two: Two) -> None:
        message = request(seed=1, max_tokens=20, request_id="never")
        with pytest.raises(NotFound):
            await raised(two.stubs[1].Generate(resumed(message, 0)))

    at_two_doors(story)


@pytest.mark.parametrize("how", ["new scheduler", "given up"])
def test_a_stop_string_that_is_found_while_the_scheduler_is_away_frees_the_blocks(how: str):
    """The worker writes on as far as its lease reaches, and further when the next scheduler renews it."""

    async def story(two: Two) -> None:
        said = expected(PROMPT, 1, 600, ends=False)
        message = request(seed=1, max_tokens=600, ignore_eos=True)
        # Within the first block, which the worker may fill without asking anybody.
        at = next(n for n in range(4, 9) if said[n] > 256)
        message.sampling.stop.append(tokenizer().decode(said[at : at + 1]).strip())
        call = two.stubs[0].Generate(message)
        got = await read_tokens(call, 1)
        if how == "new scheduler":
            await two.one.cluster._end_host()
        else:
            two.one.scheduler_proxy.flows.clear()
            await two.until(lambda: "gateway-0" not in two.one.front.sessions)
        answer = next(iter(two.gateways[0]._answers.values()))
        await two.until(lambda: answer.log.is_complete)
        if how == "new scheduler":
            await two.one.cluster.replace_scheduler()
            await two.one.meet_scheduler()
        else:
            two.one.scheduler_proxy.cut()
            two.one.scheduler_proxy.flows.set()
        got += ids_of(await asyncio.wait_for(collect(call), 10))
        assert got == said[: len(got)] and len(got) < 30
        workers = two.one.cluster.workers.values()
        await two.until(lambda: not any(worker.residents for worker in workers))
        assert sum(worker.desk.steps.num_steps for worker in workers) < 300
        await two.settled()

    at_two_doors(story)


def test_a_request_that_was_on_its_way_to_a_scheduler_that_died_is_accepted_by_the_next():
    """It would be given up by its gateway some time after it began."""

    async def story(two: Two) -> None:
        await two.one.cluster._end_host()
        message = request(seed=1, max_tokens=100, ignore_eos=True)
        call = two.stubs[0].Generate(message)
        await two.until(lambda: bool(two.gateways[0]._answers))
        await asyncio.sleep(0.1)
        await two.one.cluster.replace_scheduler()
        await two.one.meet_scheduler()
        got = await read_tokens(call, 2)
        answer = next(iter(two.gateways[0]._answers.values()))
        assert answer.accepted is not None and answer.entry.waits_until is None
        got += ids_of(await collect(call))
        assert got == expected(PROMPT, 1, 100, ends=False)

    at_two_doors(story)
