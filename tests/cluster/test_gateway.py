"""The front door's streams: what comes out is what the model says, token by token, however it is cut and merged."""

import asyncio
from dataclasses import replace

import grpc.aio
import pytest

from cluster.client.errors import error_from_call
from cluster.errors import AlreadyExists, InvalidRequest, NeverFits, NotFound, Unavailable, Unsupported
from cluster.gateway.catalogue import Catalogue
from cluster.gateway.pace import Pace
from cluster.gateway.settings import GatewaySettings
from cluster.messages import Logprobs, Reason, Seal, Tokens, ids
from cluster.sampling import SamplingParams
from cluster.wire.gateways import ServedModel, ServedModels
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, long_seed, slow, text_model, tokenizer, word
from tests.cluster.live import SHAPE


def request(prompt=PROMPT, **settings):
    message = pb.GenerateRequest(prompt=pb.Prompt(token_ids=common_pb2.TokenIds(ids=prompt)))
    for name, value in settings.items():
        target = message if name in message.DESCRIPTOR.fields_by_name else message.sampling
        setattr(target, name, value)
    return message


async def collect(call):
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


def chunks(responses, sequence=0):
    return [r.tokens for r in responses if r.WhichOneof("event") == "tokens" and r.tokens.sequence == sequence]


def test_an_answer_that_is_cut_to_the_room_says_so_with_the_figure():
    async def story(door: Door) -> None:
        room = len(PROMPT) + 6

        async def finished(max_tokens: int) -> pb.Finished:
            asked = request(seed=5, max_tokens=max_tokens, ignore_eos=True)
            return (await collect(door.stub.Generate(asked)))[-2].finished

        cut = await finished(100)
        assert (cut.num_tokens, cut.reason) == (6, common_pb2.FINISH_REASON_LENGTH)
        assert cut.detail == (
            f"prompt and answer have {room} tokens, the most that this model takes here (the model itself: 2,048)"
        )
        assert (await finished(5)).detail == ""

    at_the_door(story, shapes=[slow(0.001, max_model_len=len(PROMPT) + 6)])


def test_one_request_from_accepted_to_done():
    async def story(door: Door) -> None:
        responses = await collect(door.stub.Generate(request(seed=5, max_tokens=40, request_id="mine")))
        kinds = [response.WhichOneof("event") for response in responses]
        assert (
            kinds[0] == "accepted" and kinds[-2:] == ["finished", "done"] and set(kinds[1:-2]) <= {"accepted", "tokens"}
        )
        accepted = responses[0].accepted
        assert (accepted.request_id, accepted.prompt_tokens) == ("mine", len(PROMPT))
        said = expected(PROMPT, 5, 40)
        position = 0
        for chunk in chunks(responses):
            assert chunk.position == position
            position += len(chunk.ids)
        assert [token for chunk in chunks(responses) for token in chunk.ids] == said
        finished, done = responses[-2].finished, responses[-1].done
        text = "".join(chunk.text for chunk in chunks(responses)) + finished.text
        assert text == tokenizer().decode(said, skip_special_tokens=True)
        assert finished.num_tokens == done.completion_tokens == len(said)
        assert finished.reason == common_pb2.FINISH_REASON_LENGTH
        assert 0 < done.time_to_first_token_s < done.total_s and done.device_block_seconds > 0
        await door.settled()

    at_the_door(story)


def test_an_end_token_stops_and_a_cached_prefix_is_told():
    async def story(door: Door) -> None:
        prompt = list(range(1, 60))
        for round_trip in range(2):
            responses = await collect(door.stub.Generate(request(prompt, seed=3, max_tokens=500)))
            said = expected(prompt, 3, 500)
            assert [token for chunk in chunks(responses) for token in chunk.ids] == said and said[-1] == 0
            assert responses[-2].finished.reason == common_pb2.FINISH_REASON_STOP
            started = [r.accepted for r in responses if r.HasField("accepted") and r.accepted.started]
            assert len(started) == 1
            # 59 tokens are three full blocks of 16, and a copy of the next one but for the last token.
            assert started[0].cached_tokens == responses[-1].done.cached_tokens == (58 if round_trip else 0)
        await door.settled()

    at_the_door(story)


def test_many_sequences_each_with_its_own_seed():
    async def story(door: Door) -> None:
        output = await door.client.generate(PROMPT, n=4, seed=9, max_tokens=30)
        for sequence in output.outputs:
            assert sequence.token_ids == expected(PROMPT, 9, 30, sequence.index)
        assert len({tuple(sequence.token_ids) for sequence in output.outputs}) == 4

    at_the_door(story)


def test_a_stop_string_cuts_text_tokens_and_usage():
    async def story(door: Door) -> None:
        seed = long_seed(PROMPT, 200)
        said = expected(PROMPT, seed, 200)
        # The stop string spans two tokens of the model's own words.
        at = next(n for n in range(20, 199) if said[n] > 256 and said[n + 1] > 256)
        stop = f"{word(said[at])[-1:]} {word(said[at + 1])[:2]}"
        whole = tokenizer().decode(said)
        for include in (False, True):
            message = request(seed=seed, max_tokens=200, include_stop_str_in_output=include)
            message.sampling.stop.append(stop)
            responses = await collect(door.stub.Generate(message))
            text = "".join(chunk.text for chunk in chunks(responses)) + responses[-2].finished.text
            found = whole.index(stop)
            assert text == whole[: found + (len(stop) if include else 0)]
            finished, got = responses[-2].finished, [token for chunk in chunks(responses) for token in chunk.ids]
            assert finished.stop_string == stop and finished.reason == common_pb2.FINISH_REASON_STOP
            assert got == said[: len(got)] and finished.num_tokens == responses[-1].done.completion_tokens == len(got)
            # The tokens reach no further than the stop string does.
            assert stop in tokenizer().decode(got) and stop not in tokenizer().decode(got[:-1])
            await door.settled()

    at_the_door(story)


def test_text_prompts_and_chats_are_tokenized_here():
    async def story(door: Door) -> None:
        ids_of_text = tokenizer().encode("wdaa weaa")
        chat = [{"role": "user", "content": "wdaa"}]
        ids_of_chat = [*tokenizer().encode("wdaa"), *tokenizer().encode(" wjjj", add_special_tokens=False)]
        assert await door.client.tokenize("wdaa weaa") == ids_of_text == [300, 400]
        assert await door.client.tokenize(chat) == ids_of_chat
        assert await door.client.detokenize([300, 0, 400]) == " wdaa weaa"
        for prompt, prompt_ids in (("wdaa weaa", ids_of_text), (chat, ids_of_chat)):
            output = await door.client.generate(prompt, seed=4, max_tokens=12)
            assert output.outputs[0].token_ids == expected(prompt_ids, 4, 12)
        long = ("wdaa " * 700).strip()
        assert len(await door.client.tokenize(long)) == 700

    at_the_door(story)


def test_many_requests_on_one_stream():
    async def story(door: Door) -> None:
        prompts = [[7, 8, 9, number + 1] for number in range(150)]
        outputs = await door.client.generate_many(prompts, seed=2, max_tokens=25)
        for prompt, output in zip(prompts, outputs, strict=True):
            assert output.outputs[0].token_ids == expected(prompt, 2, 25)
            assert output.finished
        await door.settled()

    at_the_door(story)


def test_an_error_of_one_request_leaves_the_others_alone():
    async def story(door: Door) -> None:
        params = [SamplingParams(max_tokens=5, seed=1) for _ in range(4)]
        prompts = [PROMPT, [99_999], PROMPT, list(range(1, 2048)) * 2]
        results = await door.client.try_many(prompts, params)
        assert [type(result).__name__ for result in results] == [
            "RequestOutput",
            "InvalidRequest",
            "RequestOutput",
            "NeverFits",
        ]
        assert isinstance(results[1], InvalidRequest) and results[1].field == "prompt.token_ids"
        assert isinstance(results[3], NeverFits) and results[3].available == 2048
        with pytest.raises(InvalidRequest, match="99,999"):
            await door.client.generate_many(prompts, params)

    at_the_door(story)


def test_a_slow_reader_gets_longer_messages_and_every_token():
    """While nothing is read, flow control holds the gateway's stream back; the model writes on, and tokens merge."""

    async def story(door: Door) -> None:
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        channel = grpc.aio.insecure_channel(door.address, options=narrow)
        stub = InferenceServiceAsyncStub(channel)
        call = stub.Generate(request(seed=6, max_tokens=800, n=12, ignore_eos=True))
        responses = [await call.read()]
        await door.until(lambda: all(answer.done is not None for answer in door.gateway._answers.values()), 30.0)
        responses += await collect(call)
        longest = 0
        for index in range(12):
            said = [token for chunk in chunks(responses, index) for token in chunk.ids]
            assert said == expected(PROMPT, 6, 800, index, ends=False)
            longest = max(longest, *(len(chunk.ids) for chunk in chunks(responses, index)))
        assert longest > 100
        await channel.close(None)
        await door.settled()

    at_the_door(story, shapes=[replace(SHAPE, num_blocks=1024)], timeout_s=60)


def test_merged_messages_hold_what_came_meanwhile():
    """The same by hand: three batches arrive before the stream's turn comes."""

    async def story(door: Door) -> None:
        call = door.stub.Generate(request(seed=1, max_tokens=100, detokenize=True))
        await call.read()
        await door.until(lambda: door.gateway.num_open == 1)
        (answer,) = door.gateway._answers.values()
        door.cluster.feeds.clear()
        door.gateway.take(seal(answer))
        known = len(answer.log.sequences[0].ids)
        more = [400 + n for n in range(30)]
        for at in range(0, 30, 10):
            new = ids(more[at : at + 10])
            door.gateway.feed([Tokens(answer.route, 0, answer.log.sealed + 1, known + at, new)])
        while True:
            response = await call.read()
            if response.WhichOneof("event") == "tokens" and 400 in response.tokens.ids:
                break
        assert list(response.tokens.ids)[-30:] == more
        assert response.tokens.text.endswith("".join(f" {word(token)}" for token in more))
        call.cancel()

    at_the_door(story, shapes=[slow(0.05)])


def seal(answer):
    return Seal("gateway-0", answer.route, answer.request_id, answer.log.attempt, answer.submit.digest)


def test_logprobs_travel_with_their_tokens():
    async def story(door: Door) -> None:
        message = request(seed=1, max_tokens=50, logprobs=2, prompt_logprobs=1)
        call = door.stub.Generate(message)
        await call.read()
        await door.until(lambda: bool(door.gateway._answers))
        (answer,) = door.gateway._answers.values()
        door.cluster.feeds.clear()
        door.gateway.take(seal(answer))
        known = len(answer.log.sequences[0].ids)
        top = ((11, -0.25), (12, -1.5))
        prompt = (None, *[Logprobs(token, -2.0, 3, ((9, -0.5),)) for token in PROMPT[1:]])
        door.gateway.feed(
            [Tokens(answer.route, 0, 99, known, ids([11]), Reason.LENGTH, (Logprobs(11, -0.25, 1, top),), "", prompt)]
        )
        responses = []
        while not responses or not responses[-1].HasField("finished"):
            responses.append(await call.read())
        prompts = [entry for r in responses for entry in r.tokens.prompt_logprobs]
        assert not prompts[0].HasField("logprob") and len(prompts) == len(PROMPT)
        assert (prompts[1].logprob.token, prompts[1].logprob.rank, prompts[1].logprob.top[0].token) == (17, 3, 9)
        last = next(r.tokens for r in reversed(responses) if r.tokens.ids)
        assert [(entry.token, entry.logprob) for entry in last.logprobs[-1].top] == [(11, -0.25), (12, -1.5)]
        call.cancel()

    at_the_door(story, shapes=[slow(0.05)])


def test_ids_are_unique_within_the_tenant():
    async def story(door: Door) -> None:
        first = door.stub.Generate(request(seed=1, max_tokens=400, request_id="same", ignore_eos=True))
        await first.read()
        with pytest.raises(AlreadyExists, match="same is under way"):
            await door.client.generate(PROMPT, request_id="same", resume_grace_s=0.0)
        assert await door.client.cancel("same")
        await collect(first)
        # An id is free again as soon as its request is over.
        await door.client.generate(PROMPT, request_id="same", max_tokens=3)

    at_the_door(story, shapes=[slow()])


def test_what_quire_does_not_do_is_named():
    async def story(door: Door) -> None:
        for name in ("lora",):
            message = request(max_tokens=3)
            setattr(message, name, "x")
            with pytest.raises(Unsupported) as caught:
                await raised(door.stub.Generate(message))
            assert caught.value.field == name

    at_the_door(story)


async def raised(call):
    try:
        await (collect(call) if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        raise error_from_call(error) from error


WRONG = [
    (pb.GenerateRequest, "prompt: is empty"),
    (lambda: request([]), "prompt.token_ids: has no tokens"),
    (lambda: request([-1]), "prompt.token_ids: holds token id -1"),
    (lambda: request(top_p=float("nan")), "sampling.top_p: is nan"),
    (lambda: request(temperature=-1.0), "sampling.temperature: is -1"),
    (lambda: request(n=0), "sampling.n: is 0"),
    (lambda: request(n=17), "sampling.n: is 17"),
    (lambda: request(max_tokens=0), "sampling.max_tokens: is 0"),
    (lambda: request(min_tokens=9, max_tokens=3), "sampling.min_tokens: is 9"),
    (lambda: request(priority=10**8), "priority: is 100,000,000"),
    (lambda: request(resume_grace_s=61.0), "resume_grace_s: is 61"),
    (lambda: request(resume_grace_s=float("nan")), "resume_grace_s: is nan"),
    (lambda: request(request_id="x" * 129), "request_id: has 129 characters"),
    (lambda: request(request_id="a\nb"), "request_id: holds characters"),
    (lambda: pb.GenerateRequest(prompt=pb.Prompt(text="")), "prompt.text: has no tokens"),
    (lambda: pb.GenerateRequest(prompt=pb.Prompt(chat=pb.Chat())), "prompt.chat.messages: is empty"),
]


@pytest.mark.parametrize(("make", "why"), WRONG, ids=[why for _, why in WRONG])
def test_what_a_client_says_wrong_is_told_by_field(make, why):
    async def story(door: Door) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await raised(door.stub.Generate(make()))
        assert why in str(caught.value), caught.value
        assert door.gateway.num_open == 0

    at_the_door(story)


def test_what_can_never_fit_is_refused_with_the_figures():
    async def story(door: Door) -> None:
        with pytest.raises(InvalidRequest, match=r"needs .* blocks"):
            await door.client.generate(list(range(1, 500)), max_tokens=1000, ignore_eos=True)
        with pytest.raises(NotFound, match="no model 'other' is served here; there is m"):
            await door.client.generate(PROMPT, model="other")
        await door.settled()

    at_the_door(story, shapes=[replace(SHAPE, num_blocks=40)])


def test_a_prefix_is_kept_and_a_short_one_refused():
    async def story(door: Door) -> None:
        prompt = list(range(1, 70))
        assert await door.client.cache_prefix(prompt, 30.0) == 64
        output = await door.client.generate([*prompt, 5], seed=1, max_tokens=4)
        assert output.metrics.cached_tokens == 64
        with pytest.raises(InvalidRequest, match="only full blocks of 16"):
            await door.client.cache_prefix([1, 2, 3], 30.0)
        with pytest.raises(InvalidRequest, match="ttl_s"):
            await door.client.cache_prefix(prompt, -1.0)

    at_the_door(story)


def test_a_request_that_waits_is_told_its_place():
    async def story(door: Door) -> None:
        busy = [door.stub.Generate(request(seed=1, max_tokens=300, ignore_eos=True)) for _ in range(2)]
        for call in busy:
            await call.read()
        await door.until(lambda: len(door.cluster.host.scheduler.replicas["r0"].residents) == 2)
        waiting = [door.stub.Generate(request(seed=1, max_tokens=5)) for _ in range(2)]
        places = [(await call.read()).accepted for call in waiting]
        assert sorted(accepted.place for accepted in places) == [0, 1] and not any(a.started for a in places)
        for call in busy:
            call.cancel()
        for call in waiting:
            responses = await collect(call)
            assert responses[0].accepted.started and responses[-1].done.queue_s > 0
        await door.settled()

    at_the_door(story, shapes=[slow(0.01, max_batch=2)])


def test_the_tokenizer_of_the_tests_has_the_models_vocabulary():
    assert text_model().vocab_size == len(tokenizer())


def test_streams_of_many_requests_interleave():
    async def story(door: Door) -> None:
        seen = []
        async for output in door.client.stream_many([PROMPT, [1, 2, 3]], seed=1, max_tokens=30):
            seen.append(output.prompt_index)
        assert set(seen[: len(seen) // 2]) == {0, 1}

    at_the_door(story, shapes=[slow(0.005)])


def test_two_clients_at_once_do_not_wait_for_each_other():
    async def story(door: Door) -> None:
        outputs = await asyncio.gather(
            *(door.client.generate([9, 8, number + 1], seed=3, max_tokens=20) for number in range(40))
        )
        for number, output in enumerate(outputs):
            assert output.outputs[0].token_ids == expected([9, 8, number + 1], 3, 20)
        await door.settled()

    at_the_door(story)


def test_the_pace_is_shared_by_all_streams_and_bounded():
    pace = Pace(10_000)
    gaps = []
    for pace.num_writing in (1, 64, 250, 20_000):
        gaps.append(pace.gap_s)
    assert gaps == [0.0001, 0.0064, 0.025, 0.04]


@pytest.mark.parametrize("is_many", [False, True])
def test_streams_that_say_nothing_slow_nobody_down(is_many: bool):
    """Some are open for later, others wait for their turn."""

    async def story(door: Door) -> None:
        many = [door.stub.GenerateMany() for _ in range(20)]
        await door.until(lambda: door.gateway.door.quotas.num_streams == 20)
        assert door.gateway.pace.gap_s == 0.0
        message = request(seed=6, max_tokens=200, ignore_eos=True)
        calls = [door.stub.Generate(message) for _ in range(30)]
        if is_many:
            await many[0].write(pb.GenerateManyRequest(tag=1, generate=request(seed=7, max_tokens=20)))
        await door.until(lambda: door.gateway.num_open - is_many == 30 and door.gateway.pace.num_writing >= 2)
        assert door.gateway.pace.num_writing <= 10
        for call in calls:
            call.cancel()
        await door.until(lambda: door.gateway.pace.num_writing == 0)
        for stream in many:
            stream.cancel()

    at_the_door(story, shapes=[slow(0.02, max_batch=10)])


@pytest.mark.parametrize("is_many", [False, True])
def test_tokens_beyond_the_pace_are_merged(is_many: bool):
    """A stream that may write every 20 ms and a worker that makes a token every 2: a late timer only merges more."""

    async def story(door: Door) -> None:
        message = request(seed=6, max_tokens=200, ignore_eos=True)
        if is_many:
            call = door.stub.GenerateMany()
            await call.write(pb.GenerateManyRequest(tag=1, generate=message))
            await call.done_writing()
            responses = [one for many in await collect(call) for one in many.responses]
        else:
            responses = await collect(door.stub.Generate(message))
        got = chunks(responses)
        assert [token for chunk in got for token in chunk.ids] == expected(PROMPT, 6, 200, ends=False)
        assert len(got) <= 120, "200 tokens should have been merged"
        await door.settled()

    at_the_door(story, settings=GatewaySettings(port=0, max_messages_per_s=50))


def test_a_model_that_has_no_worker_yet_is_asked_for_again_and_one_that_was_unloaded_is_not() -> None:
    """A new scheduler hears of workers one by one; until then a model is not one that nobody knows."""
    catalogue = Catalogue({"a": text_model(), "b": text_model()})
    both = ServedModel("a", True), ServedModel("b", True)
    catalogue.meet(1, b"key")
    catalogue.take_served(ServedModels(both[:1]))
    with pytest.raises(Unavailable, match="no worker of model b is here yet"):
        catalogue.find("b")
    with pytest.raises(NotFound, match="no model 'c' is served here; there is a"):
        catalogue.find("c")
    catalogue.take_served(ServedModels(both))
    assert catalogue.find("b")[0] is both[1]
    catalogue.meet(2, b"key")
    catalogue.take_served(ServedModels(both[:1]))
    with pytest.raises(Unavailable):
        catalogue.find("b")
    catalogue.take_served(ServedModels(both))
    # Only the connection to it had broken: what this one named it knows.
    catalogue.meet(2, b"key")
    catalogue.take_served(ServedModels(both[:1]))
    with pytest.raises(NotFound, match="no model 'b' is served here; there is a"):
        catalogue.find("b")
