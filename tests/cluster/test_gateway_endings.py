"""How requests end before their time: cancel, broken connections, deadlines; and how they go on: grace and resume."""

import asyncio

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from cluster.client.asynchronous import AsyncClient
from cluster.errors import Aborted, DeadlineExceeded, InvalidRequest, NotFound, QueueFull, Unavailable, WorkFailed
from cluster.gateway.door.entry import KEPT_TOKEN_BYTES
from cluster.gateway.door.unread import UnreadBounds
from cluster.gateway.settings import GatewaySettings
from cluster.messages import GatewayLost, Tokens, ids
from cluster.settings import SchedulerSettings
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, long_seed, open_server, slow
from tests.cluster.test_gateway import chunks, collect, raised, request

STEP_S = 0.02
SLOW = slow(STEP_S)


async def read_tokens(call, count: int) -> list[int]:
    """Reads until so many tokens have come."""
    got: list[int] = []
    while len(got) < count:
        response = await call.read()
        assert response is not grpc.aio.EOF
        got += response.tokens.ids
    return got


def residents(door: Door) -> int:
    return sum(len(worker.residents) for worker in door.cluster.workers.values())


async def gone_within_a_step(door: Door) -> None:
    """Counted in the worker's own steps, from when the gateway has ended the request until its blocks are let go."""
    (answer,) = door.gateway._answers.values()
    (worker,) = door.cluster.workers.values()
    await door.until(lambda: answer.is_cancelled or answer.failure is not None)
    before = worker.desk.steps.num_steps
    await door.until(lambda: not worker.residents)
    # The steps that were issued before the word arrived retire first: `depth` of them, and one that was just ending.
    assert worker.desk.steps.num_steps - before <= worker.shape.depth + 1


def test_cancel_ends_within_a_step_and_says_what_it_found():
    async def story(door: Door) -> None:
        call = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True, request_id="long"))
        got = await read_tokens(call, 3)
        assert await door.client.cancel("long")
        responses = await collect(call)
        got += [token for chunk in chunks(responses) for token in chunk.ids]
        assert got == expected(PROMPT, 1, len(got), ends=False)
        finished, done = responses[-2].finished, responses[-1].done
        assert finished.reason == common_pb2.FINISH_REASON_ABORTED
        assert finished.num_tokens == done.completion_tokens == len(got) < 100
        await door.settled()
        assert not await door.client.cancel("long")
        assert not await door.client.cancel("never heard of")
        assert residents(door) == 0

    at_the_door(story, shapes=[SLOW])


def test_a_broken_connection_aborts_within_a_step():
    async def story(door: Door) -> None:
        call = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True))
        await read_tokens(call, 3)
        call.cancel()
        await gone_within_a_step(door)
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_a_deadline_aborts_within_a_step():
    async def story(door: Door) -> None:
        call = door.client.generate(PROMPT, seed=1, max_tokens=900, ignore_eos=True, timeout_s=1.5)
        working = asyncio.ensure_future(call)
        await door.until(lambda: residents(door) == 1)
        await gone_within_a_step(door)
        with pytest.raises(DeadlineExceeded):
            await working
        # On a stream of many each has a deadline of its own.
        results = await door.client.try_many([PROMPT] * 2, seed=1, max_tokens=900, ignore_eos=True, timeout_s=1.5)
        assert [type(result) for result in results] == [DeadlineExceeded] * 2
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_a_deadline_while_waiting_in_the_queue():
    async def story(door: Door) -> None:
        busy = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True))
        await read_tokens(busy, 2)
        with pytest.raises(DeadlineExceeded):
            await door.client.generate(PROMPT, max_tokens=4, timeout_s=0.2)
        busy.cancel()
        await door.settled()

    at_the_door(story, shapes=[slow(STEP_S, max_batch=1)])


def test_without_grace_a_broken_request_is_gone():
    async def story(door: Door) -> None:
        message = request(seed=1, max_tokens=900, ignore_eos=True, request_id="gone")
        call = door.stub.Generate(message)
        got = await read_tokens(call, 3)
        call.cancel()
        await door.settled()
        message.resume.positions.append(len(got))
        with pytest.raises((NotFound, Aborted)):
            await raised(door.stub.Generate(message))

    at_the_door(story, shapes=[SLOW])


@pytest.mark.parametrize("positions_back", [0, 2])
def test_resume_goes_on_by_position(positions_back: int):
    """What comes after the break, behind what the client says that it has, is the undisturbed stream; text too."""

    async def story(door: Door) -> None:
        seed = long_seed(PROMPT, 60)
        whole = await door.client.generate(PROMPT, seed=seed, max_tokens=60)
        message = request(seed=seed, max_tokens=60, request_id="mine", resume_grace_s=5.0)
        call = door.stub.Generate(message)
        first = []
        while not first or sum(len(chunk.ids) for chunk in chunks(first)) < 10:
            first.append(await call.read())
        call.cancel()
        await asyncio.sleep(5 * STEP_S)
        assert residents(door) == 1, "it should run on in its grace"
        pieces = [(chunk.position, list(chunk.ids), chunk.text) for chunk in chunks(first)]
        pieces = pieces[: len(pieces) - positions_back]
        position = sum(len(ids) for _, ids, _ in pieces)
        message.resume.positions.append(position)
        again = await collect(door.stub.Generate(message))
        assert chunks(again)[0].position == position
        pieces += [(chunk.position, list(chunk.ids), chunk.text) for chunk in chunks(again)]
        assert [token for _, ids, _ in pieces for token in ids] == whole.outputs[0].token_ids
        assert "".join(text for _, _, text in pieces) + again[-2].finished.text == whole.outputs[0].text
        assert again[-1].HasField("done")
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_a_resume_beyond_what_was_sent_is_refused_by_field():
    async def story(door: Door) -> None:
        stub = InferenceServiceAsyncStub(door.channel)
        asked = request(seed=1, max_tokens=60, ignore_eos=True, request_id="q", resume_grace_s=5.0)
        call = stub.Generate(asked)
        got = await read_tokens(call, 3)
        call.cancel()
        for position in (1_000, 2**31 - 1):
            asked.resume.positions[:] = [position]
            with pytest.raises(InvalidRequest) as caught:
                await raised(stub.Generate(asked))
            assert caught.value.field == "resume.positions[0]"
        # It changed nothing.
        asked.resume.positions[:] = [len(got)]
        rest = [token for chunk in chunks(await collect(stub.Generate(asked))) for token in chunk.ids]
        assert got + rest == expected(PROMPT, 1, 60, ends=False)
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_resume_after_the_end_gives_the_end():
    async def story(door: Door) -> None:
        message = request(seed=1, max_tokens=8, request_id="mine", resume_grace_s=5.0)
        call = door.stub.Generate(message)
        got = await read_tokens(call, 2)
        call.cancel()
        await door.until(lambda: all(answer.done is not None for answer in door.gateway._answers.values()))
        message.resume.positions.append(len(got))
        responses = await collect(door.stub.Generate(message))
        got += [token for chunk in chunks(responses) for token in chunk.ids]
        assert got == expected(PROMPT, 1, 8)
        assert [r.WhichOneof("event") for r in responses[-2:]] == ["finished", "done"]
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_the_grace_ends():
    async def story(door: Door) -> None:
        call = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True, resume_grace_s=2.0))
        await read_tokens(call, 2)
        call.cancel()
        await asyncio.sleep(0.15)
        assert residents(door) == 1
        await door.settled(10.0)
        assert residents(door) == 0

    at_the_door(story, shapes=[SLOW])


def test_what_nobody_fetches_in_the_grace_is_bounded():
    async def story(door: Door) -> None:
        call = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True, resume_grace_s=30.0))
        await read_tokens(call, 2)
        call.cancel()
        await door.settled(10.0)

    settings = GatewaySettings(port=0, unread=UnreadBounds(request=20 * KEPT_TOKEN_BYTES))
    at_the_door(story, shapes=[SLOW], settings=settings)


def test_a_second_connection_takes_the_stream_over():
    async def story(door: Door) -> None:
        message = request(seed=1, max_tokens=40, request_id="mine", resume_grace_s=5.0)
        first = door.stub.Generate(message)
        got = await read_tokens(first, 3)
        message.resume.positions.append(len(got))
        second = door.stub.Generate(message)
        with pytest.raises(Aborted, match="resumed on another connection"):
            await raised(first)
        got += [token for chunk in chunks(await collect(second)) for token in chunk.ids]
        assert got == expected(PROMPT, 1, 40)
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_another_gateway_takes_up_what_a_dead_one_left():
    async def story(door: Door) -> None:
        seed = long_seed(PROMPT, 80)
        other = await open_server(door.cluster, GatewaySettings(name="gateway-1", port=0))
        client = AsyncClient([door.address, f"127.0.0.1:{other.port}"])
        parts = []
        async for output in client.stream(PROMPT, seed=seed, max_tokens=80, n=2):
            parts.append(output)
            if len(parts) == 12:
                # The first gateway dies: no word to anybody, its tokens go nowhere.
                await door.server._server.stop(None)
                door.cluster.feeds.pop("gateway-0")
                door.cluster.host.gateway_links.pop("gateway-0")
                door.cluster.host.post(GatewayLost("gateway-0"))
        for index in range(2):
            got = [token for part in parts if part.index == index for token in part.token_ids]
            assert got == expected(PROMPT, seed, 80, index)
            assert [part.finish_reason for part in parts if part.index == index][-1] is not None
        await client.close()
        async with asyncio.timeout(5):
            while door.cluster.host.scheduler.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await other.stop(0.1)

    at_the_door(story, shapes=[slow(0.01)])


def test_many_requests_go_on_through_another_gateway():
    async def story(door: Door) -> None:
        other = await open_server(door.cluster, GatewaySettings(name="gateway-1", port=0))
        client = AsyncClient([door.address, f"127.0.0.1:{other.port}"])
        prompts = [[5, 6, 7, number + 1] for number in range(24)]
        working = asyncio.create_task(client.generate_many(prompts, seed=4, max_tokens=60, ignore_eos=True))
        await asyncio.sleep(0.25)
        await door.server._server.stop(None)
        door.cluster.feeds.pop("gateway-0")
        door.cluster.host.gateway_links.pop("gateway-0")
        door.cluster.host.post(GatewayLost("gateway-0"))
        for prompt, output in zip(prompts, await working, strict=True):
            assert output.outputs[0].token_ids == expected(prompt, 4, 60, ends=False)
        await client.close()
        await other.stop(0.1)

    at_the_door(story, shapes=[slow(0.01)])


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_a_worker_dies_and_the_stream_never_notices(num_sequences: int):
    async def story(door: Door) -> None:
        calls = [
            door.client.generate([3, 4, number + 1], seed=8, max_tokens=70, n=num_sequences, ignore_eos=True)
            for number in range(10)
        ]
        working = [asyncio.create_task(call) for call in calls]
        await door.until(lambda: bool(door.cluster.workers["r0"].residents))
        door.cluster.kill_worker("r0")
        for number, output in enumerate(await asyncio.gather(*working)):
            for sequence in output.outputs:
                said = expected([3, 4, number + 1], 8, 70, sequence.index, ends=False)
                assert sequence.token_ids == said
        await door.settled()

    at_the_door(story, shapes=[slow(0.01), slow(0.01)])


def test_tokens_of_a_sealed_attempt_are_dropped():
    """A worker that is cut off, but lives, goes on sending: the client must not see a word of it."""

    async def story(door: Door) -> None:
        working = asyncio.create_task(door.client.generate(PROMPT, seed=2, max_tokens=60, ignore_eos=True))
        await door.until(lambda: any(worker.residents for worker in door.cluster.workers.values()))
        name = next(name for name, worker in door.cluster.workers.items() if worker.residents)
        late = door.cluster.workers[name]
        door.cluster.kill_worker(name)
        late.alive = True
        stale = door.gateway.num_stale
        output = await working
        assert output.outputs[0].token_ids == expected(PROMPT, 2, 60, ends=False)
        assert door.gateway.num_stale >= stale
        late.die()

    at_the_door(story, shapes=[slow(0.01), slow(0.01)])


def test_a_worker_that_contradicts_itself_fails_the_request_and_no_other():
    async def story(door: Door) -> None:
        broken = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True, request_id="broken"))
        other = asyncio.create_task(door.client.generate(PROMPT, seed=2, max_tokens=30, ignore_eos=True))
        await read_tokens(broken, 3)
        answer = next(one for one in door.gateway._answers.values() if one.client_id == "broken")
        door.gateway.feed([Tokens(answer.route, 0, 5, 0, ids([1, 2, 3]))])
        with pytest.raises(WorkFailed, match="did not fit together"):
            await raised(broken)
        assert (await other).outputs[0].token_ids == expected(PROMPT, 2, 30, ends=False)
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_a_scheduler_that_does_not_answer():
    async def story(door: Door) -> None:
        door.gateway._link.send = lambda event: None
        with pytest.raises(Unavailable, match="did not take the request within"):
            await raised(door.stub.Generate(request(max_tokens=3)))
        assert door.gateway.num_open == 0

    at_the_door(story, settings=GatewaySettings(port=0, accept_timeout_s=0.2))


def test_the_queue_is_full_and_says_when_to_come_back():
    async def story(door: Door) -> None:
        busy = [door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True))]
        await read_tokens(busy[0], 2)
        for _ in range(2):
            busy.append(door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True)))
            await busy[-1].read()
        with pytest.raises(QueueFull) as caught:
            await raised(door.stub.Generate(request(max_tokens=3)))
        assert caught.value.retry_after_s > 0
        # Many at once wait their turn by themselves.
        working = asyncio.create_task(door.client.generate_many([PROMPT] * 6, seed=1, max_tokens=4, ignore_eos=True))
        await asyncio.sleep(0.2)
        for call in busy:
            call.cancel()
        assert [len(output.outputs[0].token_ids) for output in await working] == [4] * 6
        await door.settled()

    at_the_door(story, shapes=[slow(STEP_S, max_batch=1)], scheduler=SchedulerSettings(max_queue=2))


def test_too_many_requests_at_one_gateway():
    async def story(door: Door) -> None:
        busy = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True))
        await read_tokens(busy, 1)
        with pytest.raises(QueueFull, match="1 requests are under way here"):
            await raised(door.stub.Generate(request(max_tokens=3)))
        busy.cancel()
        await door.settled()

    at_the_door(story, shapes=[SLOW], settings=GatewaySettings(port=0, max_open=1))


def test_a_stop_lets_requests_end_and_takes_no_more():
    async def story(door: Door) -> None:
        working = asyncio.create_task(door.client.generate(PROMPT, seed=1, max_tokens=30, ignore_eos=True))
        await door.until(lambda: residents(door) == 1)
        stopping = asyncio.create_task(door.server.stop(5.0))
        await door.until(lambda: door.gateway.is_stopping)
        with pytest.raises(Unavailable, match="shutting down"):
            await raised(door.stub.Generate(request(max_tokens=3)))
        assert (await working).outputs[0].token_ids == expected(PROMPT, 1, 30, ends=False)
        await stopping

    at_the_door(story, shapes=[SLOW])


def test_cancel_on_a_stream_of_many_by_tag():
    async def story(door: Door) -> None:
        call = InferenceServiceAsyncStub(door.channel).GenerateMany()
        for tag in (1, 2):
            message = request(seed=tag, max_tokens=40, ignore_eos=True)
            await call.write(pb.GenerateManyRequest(tag=tag, generate=message))
        got: dict[int, list[pb.GenerateResponse]] = {1: [], 2: []}
        was_cancelled = False
        while not (got[1] and got[1][-1].HasField("done") and got[2] and got[2][-1].HasField("done")):
            for response in (await call.read()).responses:
                got[response.tag].append(response)
            if chunks(got[1]) and not was_cancelled:
                was_cancelled = True
                await call.write(pb.GenerateManyRequest(tag=1, cancel=pb.CancelTag()))
        assert got[1][-2].finished.reason == common_pb2.FINISH_REASON_ABORTED
        assert [token for chunk in chunks(got[2]) for token in chunk.ids] == expected(PROMPT, 2, 40, ends=False)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK
        await door.settled()

    at_the_door(story, shapes=[SLOW])


def test_a_cancel_through_another_gateway_ends_the_stream():
    async def story(door: Door) -> None:
        other = await open_server(door.cluster, GatewaySettings(name="gateway-1", port=0))
        client = AsyncClient(f"127.0.0.1:{other.port}")
        call = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True, request_id="far"))
        await read_tokens(call, 2)
        assert not await client.cancel("far"), "it is not under way at this gateway"
        with pytest.raises(Aborted, match="was cancelled"):
            await raised(call)
        await door.settled()
        await client.close()
        await other.stop(0.1)

    at_the_door(story, shapes=[SLOW])


def test_a_tag_that_is_under_way_is_refused_and_the_first_goes_on():
    async def story(door: Door) -> None:
        call = InferenceServiceAsyncStub(door.channel).GenerateMany()
        first = request(seed=1, max_tokens=40, ignore_eos=True)
        await call.write(pb.GenerateManyRequest(tag=5, generate=first))
        got: list[pb.GenerateResponse] = []
        refused: list[pb.GenerateResponse] = []
        has_asked = False
        while not (got and got[-1].HasField("done")):
            for response in (await call.read()).responses:
                (refused if response.HasField("failed") else got).append(response)
            if chunks(got) and not has_asked:
                has_asked = True
                await call.write(pb.GenerateManyRequest(tag=5, generate=request(seed=2, max_tokens=3)))
        assert [token for chunk in chunks(got) for token in chunk.ids] == expected(PROMPT, 1, 40, ends=False)
        (failed,) = [response.failed for response in refused]
        detail = error_details_pb2.BadRequest()
        assert failed.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert any(one.Unpack(detail) for one in failed.details) and detail.field_violations[0].field == "tag"
        # One that has ended is free again.
        await call.write(pb.GenerateManyRequest(tag=5, generate=request(seed=2, max_tokens=3, ignore_eos=True)))
        again: list[pb.GenerateResponse] = []
        while not (again and again[-1].HasField("done")):
            again += (await call.read()).responses
        assert [token for chunk in chunks(again) for token in chunk.ids] == expected(PROMPT, 2, 3, ends=False)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK
        await door.settled()

    at_the_door(story, shapes=[SLOW])
