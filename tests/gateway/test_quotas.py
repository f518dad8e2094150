"""What one tenant may have: what is more is refused by name, with the figure and when to try again."""

import asyncio
import json

import grpc.aio
import pytest

from cluster.errors import ConfigError, InvalidRequest, NeverFits, NotFound, QueueFull
from cluster.gateway.door.quotas import BURST_S
from cluster.gateway.door.unread import UnreadBounds
from cluster.gateway.settings import GatewaySettings
from cluster.messages import HandOver, Logprobs, Pin, Reason, Seal, Tokens, ids
from cluster.serving.auth import load_tokens, make_tokens
from cluster.tenants import TenantLimits
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.front_door import Door, at_the_door, slow
from tests.cluster.test_gateway import raised, request
from tests.gateway.doors import At, accepted, done, submit


def ask(at: At, name: str, limits: TenantLimits, **sampling):
    reader = at.door.ask(submit(f"t/{name}", **sampling), 0.0, at.now, 0, limits)
    at.step()
    return reader


def refused(at: At, limits: TenantLimits, tenant: str = "t") -> QueueFull:
    with pytest.raises(QueueFull) as caught:
        at.door.quotas.check(tenant, limits, at.now)
    return caught.value


def test_open_requests_of_one_tenant_are_bounded_and_others_are_not_touched():
    at, limits = At(), TenantLimits(open_requests=2)
    first = ask(at, "a", limits)
    ask(at, "b", limits)
    assert "2 requests of this tenant are under way here, and 2 is its bound" in str(refused(at, limits))
    with pytest.raises(QueueFull):
        ask(at, "c", limits)
    at.door.ask(submit("u/c", "u"), 0.0, at.now, 0, limits)
    at.step()
    at.take(accepted(first.entry))
    at.tokens(first.entry, 0, 5, reason=Reason.STOP)
    at.take(done(first.entry))
    at.read(first)
    at.leave(first)
    ask(at, "c", limits)


def test_requests_a_second_with_a_burst_and_the_time_to_wait():
    at, limits = At(), TenantLimits(requests_per_s=2.0)
    for number in range(int(2 * BURST_S)):
        ask(at, f"{number}", limits)
    error = refused(at, limits)
    assert "2 requests a second" in str(error) and error.retry_after_s == pytest.approx(0.5)
    at.now += 0.5
    ask(at, "late", limits)
    refused(at, limits)
    at.now += 1e6
    for number in range(int(2 * BURST_S)):
        ask(at, f"again {number}", limits)
    refused(at, limits)


def test_tokens_a_second_count_what_was_asked_and_give_back_what_was_not_written():
    at, limits = At(), TenantLimits(tokens_per_s=10.0)
    # 8 of the prompt and 3 * 100 of answers, three times a burst: it gets through, and is waited for.
    large = ask(at, "large", limits, n=3, max_tokens=100)
    assert refused(at, limits).retry_after_s == pytest.approx((308 - 100 + 1) / 10)
    at.take(accepted(large.entry))
    for index in range(3):
        at.tokens(large.entry, 0, 5, 6, index=index, reason=Reason.STOP)
    at.take(done(large.entry))
    at.read(large)
    at.leave(large)
    at.door.quotas.check("t", limits, at.now)


def test_what_goes_on_at_another_gateway_is_not_given_back():
    """A tenant asked here, went on elsewhere, and could ask anew: as much as it liked."""
    at, limits = At(), TenantLimits(tokens_per_s=10.0)
    reader = ask(at, "a", limits, max_tokens=300)
    at.take(accepted(reader.entry))
    at.take(HandOver("a", reader.entry.route, "t/a"))
    assert refused(at, limits).retry_after_s > 15


def test_tokens_that_nobody_read_are_not_given_back():
    """A tenant that reads nothing had its answers written, dropped, and could ask anew: as much as it liked."""
    at, limits = At(unread=UnreadBounds(request=2_000)), TenantLimits(tokens_per_s=10.0)
    reader = ask(at, "a", limits, max_tokens=200)
    at.take(accepted(reader.entry))
    at.tokens(reader.entry, 0, *range(150))
    assert isinstance(reader.entry.failure, QueueFull) and not reader.entry.log.num_tokens
    at.take(done(reader.entry))
    at.leave(reader)
    assert not at.door.entries
    # 8 of the prompt and 150 that were written, of a burst of 100; 50 were never written.
    assert refused(at, limits).retry_after_s == pytest.approx((158 - 100 + 1) / 10)


def test_who_comes_back_again_and_again_is_bounded_and_who_comes_back_once_is_not():
    at, limits = At(), TenantLimits(requests_per_s=2.0)
    quotas = at.door.quotas
    for _ in range(50):
        quotas.come_back("t", limits, 50, at.now)
    with pytest.raises(QueueFull, match="may come back for 2 requests a second") as caught:
        quotas.come_back("t", limits, 50, at.now)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    # What is asked anew is another matter, and so are others.
    quotas.check("t", limits, at.now)
    quotas.come_back("u", limits, 50, at.now)
    at.now += 0.5
    quotas.come_back("t", limits, 50, at.now)


def test_requests_that_come_from_other_gateways_are_bounded():
    at = At()
    for name in "abc":
        at.door.resume(submit(f"t/{name}"), (0,), 5.0, at.now, most_open=3)
        at.step()
    with pytest.raises(QueueFull, match="and 3 is its bound"):
        at.door.resume(submit("t/d"), (0,), 5.0, at.now, most_open=3)
    at.door.resume(submit("t/a"), (0,), 5.0, at.now, most_open=3)
    at.door.resume(submit("u/d", "u"), (0,), 5.0, at.now, most_open=3)
    at.step()


def test_prefixes_that_are_kept_are_bounded():
    at, limits = At(), TenantLimits(pins=2)

    def pin(until: float) -> int:
        route = at.door.pin(Pin("t/p", "", 0, "m", "t", ids([1]), (), until), at.now, limits)
        at.step()
        return route

    pin(at.now + 50.0)
    gone = pin(at.now + 20.0)
    with pytest.raises(QueueFull, match="2 prefixes of this tenant are kept, and 2 is its bound") as caught:
        pin(at.now + 9.0)
    assert caught.value.retry_after_s == pytest.approx(20.0)
    at.door.leave_pin(gone)
    pin(at.now + 5.0)
    at.now += 5.0
    pin(at.now + 5.0)


def test_priorities_and_bytes_of_a_request():
    limits = TenantLimits(least_priority=0, most_priority=5, request_bytes=1000)
    limits.check(3, 1000)
    with pytest.raises(InvalidRequest, match="priority: is -1; this tenant may give 0 to 5"):
        limits.check(-1, 0)
    with pytest.raises(NeverFits, match="needs 1,001 bytes, and there are never more than 1,000"):
        limits.check(0, 1001)


def test_limits_stand_in_the_token_file_and_are_read_again(tmp_path):
    path = tmp_path / "tokens.json"
    make_tokens(path, [("one", ["inference"]), ("two", ["inference"])])
    book = load_tokens(path)
    assert book.limits("one") == TenantLimits()
    listed = json.loads(path.read_text())
    listed[0]["limits"] = {"open_requests": 3, "tokens_per_s": 2.5}
    path.write_text(json.dumps(listed, indent=4))
    assert book.limits("one") == TenantLimits(open_requests=3, tokens_per_s=2.5)
    assert book.limits("two") == TenantLimits()
    for wrong in ({"open": 3}, {"pins": -1}, {"pins": True}, {"pins": 1.5}, [1], {"tokens_per_s": "9"}):
        listed[0]["limits"] = wrong
        path.write_text(json.dumps(listed, indent=4))
        with pytest.raises(ConfigError, match="limits"):
            load_tokens(path)


def test_a_tenant_is_refused_with_the_figure_over_a_socket(tmp_path):
    path = tmp_path / "tokens.json"
    token = make_tokens(path, [("one", ["inference"])])["one"]
    listed = json.loads(path.read_text())
    listed[0]["limits"] = {"open_requests": 1, "request_bytes": 200, "most_priority": 3}
    path.write_text(json.dumps(listed))
    metadata = (("authorization", f"Bearer {token}"),)

    async def story(door: Door) -> None:
        busy = door.stub.Generate(request(seed=1, max_tokens=900, ignore_eos=True), metadata=metadata)
        await busy.read()
        with pytest.raises(QueueFull, match="1 requests of this tenant are under way here") as caught:
            await raised(door.stub.Generate(request(max_tokens=3), metadata=metadata))
        assert caught.value.retry_after_s == 1.0
        busy.cancel()
        await door.until(lambda: not door.gateway.num_open)
        with pytest.raises(InvalidRequest, match="may give"):
            await raised(door.stub.Generate(request(max_tokens=3, priority=4), metadata=metadata))
        long = request(max_tokens=3)
        long.prompt.token_ids.ids.extend(range(1, 300))
        with pytest.raises(NeverFits, match="never more than 200"):
            await raised(door.stub.Generate(long, metadata=metadata))

    at_the_door(story, settings=GatewaySettings(port=0, tokens=load_tokens(path)), shapes=[slow(0.02)])


def test_streams_of_many_requests_are_bounded_by_tenant(tmp_path):
    """What is half sent on each takes memory, up to the largest message, and nobody sees it come."""
    path = tmp_path / "tokens.json"
    tokens = make_tokens(path, [("one", ["inference"]), ("two", ["inference"])])
    listed = json.loads(path.read_text())
    listed[0]["limits"] = {"streams": 2}
    path.write_text(json.dumps(listed))
    metadata = {name: (("authorization", f"Bearer {token}"),) for name, token in tokens.items()}

    async def story(door: Door) -> None:
        def open_streams(tenant: str, count: int) -> list:
            return [door.stub.GenerateMany(metadata=metadata[tenant]) for _ in range(count)]

        async def refusal(tenant: str) -> str:
            with pytest.raises(QueueFull) as caught:
                await raised(door.stub.GenerateMany(metadata=metadata[tenant]))
            return str(caught.value)

        def num_streams() -> int:
            return door.gateway.door.quotas.num_streams

        def counted() -> float:
            families = door.gateway.watch.metrics.families(0, True, 0)
            samples = next(one.samples for one in families if one.name == "requests_total")
            return sum(one.value for one in samples if dict(one.labels)["outcome"] == "queue_full")

        one, two = open_streams("one", 2), open_streams("two", 3)
        await door.until(lambda: num_streams() == 5)
        assert (
            "2 GenerateMany streams of this tenant are open here, each for many requests, and 2 is its bound"
            in await refusal("one")
        )
        assert "3 is its bound" in await refusal("two")
        assert counted() == 2
        one[0].cancel()
        await door.until(lambda: num_streams() == 4)
        one += open_streams("one", 1)
        await door.until(lambda: num_streams() == 5)
        for stream in (*one, *two):
            stream.cancel()

    settings = GatewaySettings(port=0, tokens=load_tokens(path), max_message_bytes=1 << 20, half_sent_bytes=3 << 20)
    at_the_door(story, settings=settings)


def test_what_is_only_read_is_bounded_as_what_is_asked(tmp_path):
    """Tokenize and resume read prompts of any length, as often as one liked."""
    path = tmp_path / "tokens.json"
    token = make_tokens(path, [("one", ["inference"])])["one"]
    listed = json.loads(path.read_text())
    listed[0]["limits"] = {"open_requests": 4, "request_bytes": 200, "requests_per_s": 0.01}
    path.write_text(json.dumps(listed))
    metadata = (("authorization", f"Bearer {token}"),)
    short, long = pb.TokenizeRequest(), pb.TokenizeRequest()
    short.prompt.token_ids.ids.extend(range(1, 20))
    long.prompt.token_ids.ids.extend(range(1, 300))

    def back(last: int) -> pb.GenerateRequest:
        message = request(list(range(1, last)), request_id="gone")
        message.resume.positions.append(0)
        return message

    async def story(door: Door) -> None:
        stub = door.stub
        with pytest.raises(NeverFits, match="never more than 200"):
            await raised(stub.Tokenize(long, metadata=metadata))
        with pytest.raises(NeverFits, match="never more than 200"):
            await raised(stub.Detokenize(pb.DetokenizeRequest(ids=range(1, 300)), metadata=metadata))
        assert list((await stub.Tokenize(short, metadata=metadata)).ids) == list(range(1, 20))
        with pytest.raises(QueueFull, match=r"may ask for 0\.01 requests a second"):
            await raised(stub.Tokenize(short, metadata=metadata))
        with pytest.raises(NeverFits, match="never more than 200"):
            await raised(stub.Generate(back(300), metadata=metadata))
        for _ in range(3):
            with pytest.raises(NotFound):
                await raised(stub.Generate(back(20), metadata=metadata))
        with pytest.raises(QueueFull, match=r"may come back for 0\.01 requests a second"):
            await raised(stub.Generate(back(20), metadata=metadata))

    at_the_door(story, settings=GatewaySettings(port=0, tokens=load_tokens(path)))


def test_streams_that_nobody_reads_do_not_grow_a_gateway_without_bound():
    """16 of n = 4 with logprobs, which no client reads."""
    bound = 6 << 20

    async def story(door: Door) -> None:
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        channel = grpc.aio.insecure_channel(door.address, options=narrow)
        stub = InferenceServiceAsyncStub(channel)
        calls = [stub.Generate(request(seed=1, n=4, max_tokens=1_500, logprobs=5, ignore_eos=True)) for _ in range(16)]
        for call in calls:
            await call.read()
        await door.until(lambda: len(door.gateway._answers) == 16)
        door.cluster.feeds.clear()
        answers = list(door.gateway._answers.values())
        for answer in answers:
            door.gateway.take(
                Seal("gateway-0", answer.route, answer.request_id, answer.log.attempt, answer.submit.digest)
            )
        top = tuple((token, -1.0) for token in range(5))
        most = 0
        for _ in range(10):
            for answer in answers:
                for index, sequence in enumerate(answer.log.sequences):
                    new = ids(range(100))
                    logprobs = tuple(Logprobs(token, -0.5, 1, top) for token in new)
                    tokens = Tokens(answer.route, index, 99, len(sequence.ids), new, Reason.NONE, logprobs)
                    door.gateway.feed([tokens])
                    most = max(most, door.gateway.door.unread.total)
            await asyncio.sleep(0.01)
        assert bound // 2 < most <= bound
        ended = [answer for answer in answers if answer.failure is not None]
        assert ended and all("of this tenant's answers are unread" in str(answer.failure) for answer in ended)
        assert sum(answer.log.num_tokens for answer in ended) < 16 * 4 * 1_000 // 2, "their memory was let go"
        with pytest.raises(QueueFull, match=f"{bound:,} is the bound") as caught:
            await raised(calls[answers.index(ended[0])])
        assert caught.value.retry_after_s == 1.0
        for call in calls:
            call.cancel()
        await channel.close(None)

    settings = GatewaySettings(port=0, unread=UnreadBounds(tenant=bound))
    at_the_door(story, settings=settings, shapes=[slow(0.05, num_blocks=8192)], timeout_s=60)
